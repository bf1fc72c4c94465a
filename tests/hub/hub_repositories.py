# SPDX-License-Identifier: Apache-2.0
"""The repositories of a Hub in memory: branches, commits, large files, and who may read and write them."""

import hashlib
import re
import secrets
from dataclasses import dataclass, field

LARGE_FILES = (".safetensors", ".parquet", ".arrow", ".bin", ".pt", ".onnx", ".zip", ".tar", ".gz")
LARGE_BYTES = 10_000_000
GIT_ATTRIBUTES = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE_FILES).encode()


class HubError(Exception):
    """An answer that is an error, as the Hub words it: a status, and its code and message in headers."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: str):
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


@dataclass(frozen=True)
class Blob:
    """One version of one file; large files are known by their SHA-256, others as git knows them."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        """Identity of a large file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        """Identity in git."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def oid(self) -> str:
        """What the Hub's upload calls compare."""
        return self.sha256 if self.large else self.git_oid


@dataclass
class Commit:
    """A state of a repository."""

    oid: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repository:
    """A model, data set or space."""

    name: str
    kind: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def add_commit(self, branch: str, title: str, files: dict[str, Blob]) -> Commit:
        """Put a state on a branch."""
        commit = Commit(secrets.token_hex(20), title, files)
        self.branches.setdefault(branch, []).append(commit)
        return commit

    def commit(self, revision: str) -> Commit:
        """The state that a branch or the identity of a commit names.

        Raises:
            HubError: when there is none.
        """
        if revision in self.branches:
            return self.branches[revision][-1]
        for commits in self.branches.values():
            for commit in commits:
                if commit.oid == revision:
                    return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass
class User:
    """An account; a token with the role "read" cannot write."""

    name: str
    token: str
    organizations: tuple[str, ...] = ()
    role: str = "write"


class HubRepositories:
    """Accounts, repositories and large files of a Hub.

    Args:
        endpoint (`str`): Its address.
    """

    def __init__(self, endpoint: str):
        self.endpoint = endpoint
        self.users: dict[str, User] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}

    def add_user(self, name: str, organizations: tuple[str, ...] = (), role: str = "write") -> str:
        """Make an account.

        Returns:
            `str`: Its token.
        """
        token = f"hf_{secrets.token_hex(17)}"
        self.users[token] = User(name, token, organizations, role)
        return token

    def user(self, token: str | None) -> User | None:
        """The account of a token; None without one.

        Raises:
            HubError: when no account has it.
        """
        if token is None:
            return None
        if token not in self.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def create(self, user: User | None, name: str, kind: str = "model", private: bool = False) -> Repository:
        """Make a repository, as `user` asks.

        Raises:
            HubError: when it exists, or the user may not.
        """
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if "/" not in name:
            name = f"{user.name}/{name}"
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise HubError(400, f"Invalid repo name: {name}")
        self._check_writes(user, name)
        if (kind, name) in self.repositories:
            raise HubError(409, f"You already created this {kind} repo: {name}", name=name, url=self.page(kind, name))
        repository = Repository(name, kind, private)
        repository.add_commit("main", "initial commit", {".gitattributes": Blob(GIT_ATTRIBUTES, False)})
        self.repositories[kind, name] = repository
        return repository

    def page(self, kind: str, name: str) -> str:
        """Address of a repository's page."""
        return f"{self.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"

    @staticmethod
    def _check_writes(user: User, name: str) -> None:
        namespace = name.split("/")[0]
        if user.role != "write":
            raise HubError(403, f"You don't have the rights to write with this token in the namespace {namespace!r}")
        if namespace not in (user.name, *user.organizations):
            raise HubError(403, f"You don't have the rights to create a model under the namespace {namespace!r}")

    def find(self, user: User | None, name: str, kind: str = "model", *, to: str = "look") -> Repository:
        """A repository for a purpose: "look" (its description), "read" (its files) or "write".

        Raises:
            HubError: when it does not exist for the user, or the purpose is not allowed.
        """
        repository = self.repositories.get((kind, name))
        member = user is not None and name.split("/")[0] in (user.name, *user.organizations)
        if repository is None or (repository.private and not member):
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if to == "read" and repository.gated and not member and (user is None or user.name not in repository.readers):
            message = f"Access to {kind} {name} is restricted and you are not in the authorized list."
            raise HubError(401 if user is None else 403, message, "GatedRepo")
        if to == "write":
            if user is None:
                raise HubError(401, "Invalid username or password.")
            self._check_writes(user, name)
        return repository

    def blob(self, path: str, content: bytes) -> Blob:
        """A file as it would be stored: large by its ending or its size."""
        large = self.is_large(path, len(content))
        if large:
            self.large_files[hashlib.sha256(content).hexdigest()] = content
        return Blob(content, large)

    @staticmethod
    def is_large(path: str, size: int) -> bool:
        """Whether a file is uploaded by the protocol of large files."""
        return path.endswith(LARGE_FILES) or size > LARGE_BYTES
