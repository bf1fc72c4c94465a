# SPDX-License-Identifier: Apache-2.0
"""A Hub on loopback that speaks the calls of `huggingface_hub`: accounts, repositories, uploads and downloads.

It follows the client's side of the protocol: whoami, repos/create, validate-yaml, preupload, commit (NDJSON), the LFS
batch, info, tree, paths-info, refs, branches, and resolve with HEAD, ETag and ranges. Xet is not spoken: clients run
with HF_HUB_DISABLE_XET=1.

Fixtures: `hub_server` (a Hub with the user "ann" of the organisation "org"), `hub_here` (this process is online, with
that Hub as *the* Hub and ann logged in). A child process goes there with `env=hub_server.environment(folder)`.
"""

import base64
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from hub_repositories import Blob, HubError, HubRepositories, Repository, User

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
DATE = "2026-01-01T00:00:00.000Z"
NAME = r"(?P<name>[^/]+/[^/]+)"
API = rf"/api/(?P<kinds>models|datasets|spaces)/{NAME}"
FILES = rf"/(?:(?P<kinds>datasets|spaces)/)?{NAME}"


class HubServer(HubRepositories):
    """The Hub; `with HubServer() as hub:` serves it.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        token: of the user "ann", who may write to "ann/..." and "org/...".
        requests: method, path and status of every call, in order.
    """

    def __init__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        super().__init__(f"http://127.0.0.1:{self._server.server_address[1]}")
        self.token = self.add_user("ann", ("org",))
        self.requests: list[tuple[str, str, int | None]] = []
        self._faults: list[list[Any]] = []

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: str | Path, token: str | None = "", **more: str) -> dict[str, str]:
        """Variables for a child process whose Hub this is; ann's token if not told otherwise, None for no token."""
        home = str(home)
        inherited = {
            name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ
        }
        variables = {"HF_ENDPOINT": self.endpoint, "HF_HOME": f"{home}/hf", "HOME": home, "HF_HUB_DISABLE_XET": "1"}
        variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "NO_PROXY": "127.0.0.1"}
        if token is not None:
            variables["HF_TOKEN"] = token or self.token
        return inherited | variables | more

    def seed(self, name: str, folder: str | Path, kind: str = "model", **rights: Any) -> Repository:
        """Put a folder here as a repository, without any call; `rights`: private, gated, readers."""
        repository = self.repositories.setdefault((kind, name), Repository(name, kind))
        for right, value in rights.items():
            setattr(repository, right, value)
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        names = {path.relative_to(folder).as_posix(): path for path in paths}
        files = {file: self.blob(file, path.read_bytes()) for file, path in names.items()}
        repository.add_commit("main", "seed", files)
        return repository

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """What a repository holds now."""
        commit = self.repositories[kind, name].commit(revision)
        return {path: blob.content for path, blob in commit.files.items()}

    def fail(self, method: str, path: str, status: int | None = None, times: int = 1, message: str = "Fault") -> None:
        """Answer the next calls whose path matches with an error; `status` None cuts the connection instead."""
        self._faults.append([method, re.compile(path), status, times, message])

    def clear_faults(self) -> None:
        """Answer as usual again."""
        self._faults.clear()

    def take_fault(self, method: str, path: str) -> tuple[int | None, str] | None:
        """The fault that this call meets."""
        for fault in self._faults:
            if fault[0] == method and fault[3] > 0 and fault[1].search(path):
                fault[3] -= 1
                return fault[2], fault[4]
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    hub: HubServer

    def log_message(self, *args) -> None:
        """Tests read `HubServer.requests`."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.hub.requests.append((self.command, self.path, status))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _handle(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        if fault := self.hub.take_fault(self.command, self.path):
            if fault[0] is None:
                self.hub.requests.append((self.command, self.path, None))
                self.close_connection = True
                return
            return self._answer(fault[0], json.dumps({"error": fault[1]}).encode(), X_Error_Message=fault[1])
        try:
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            user = self.hub.user(token if scheme == "Bearer" else None)
            for methods, pattern, call in ROUTES:
                if self.command in methods and (match := re.fullmatch(pattern, url.path)):
                    fields = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                    query = {name: values[0] for name, values in parse_qs(url.query).items()}
                    return call(self, user, body, query, **fields)
            raise HubError(404, f"Cannot {self.command} {url.path}")
        except HubError as refusal:
            code = {"X_Error_Code": refusal.code} if refusal.code else {}
            content = json.dumps({"error": refusal.message} | refusal.more).encode()
            self._answer(refusal.status, content, X_Error_Message=refusal.message, **code)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode())

    # Accounts and repositories

    def whoami(self, user: User | None, body, query) -> None:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        organizations = [{"name": name, "roleInOrg": "write"} for name in user.organizations]
        auth = {"accessToken": {"displayName": "test", "role": user.role}}
        self._json({"type": "user", "name": user.name, "fullname": user.name, "orgs": organizations, "auth": auth})

    def create(self, user: User | None, body, query) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repository = self.hub.create(user, name, asked.get("type") or "model", private)
        self._json({"url": self.hub.page(repository.kind, repository.name), "name": repository.name})

    def validate_yaml(self, user, body, query) -> None:
        match = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", json.loads(body)["content"], re.DOTALL)
        if match is None:
            return self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        try:
            values = yaml.safe_load(match[1])
        except yaml.YAMLError as error:
            return self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        faults = [] if isinstance(values, dict) else [{"message": "metadata is not an object"}]
        self._json({"errors": faults, "warnings": []}, 400 if faults else 200)

    def info(self, user, body, query, kinds, name, revision="main") -> None:
        repository = self.hub.find(user, name, KINDS[kinds])
        commit = repository.commit(revision)
        files = [{"rfilename": path} for path in sorted(commit.files)]
        values = {"id": name, "modelId": name, "author": name.split("/")[0], "sha": commit.oid, "siblings": files}
        values |= {"private": repository.private, "gated": "manual" if repository.gated else False, "disabled": False}
        values |= {"createdAt": DATE, "lastModified": DATE, "downloads": 0, "likes": 0, "tags": []}
        readme = commit.files.get("README.md")
        match = re.match(r"---\r?\n(.*?)\r?\n---", readme.content.decode(), re.DOTALL) if readme else None
        card = (yaml.safe_load(match[1]) if match else None) or {}
        values |= {"cardData": card, "tags": card.get("tags") or [], "library_name": card.get("library_name")}
        self._json(values | ({"pipeline_tag": card["pipeline_tag"]} if "pipeline_tag" in card else {}))

    def tree(self, user, body, query, kinds, name, revision, path="") -> None:
        commit = self.hub.find(user, name, KINDS[kinds]).commit(revision)
        start = f"{path.strip('/')}/" if path.strip("/") else ""
        found, folders = [], set()
        for file, blob in sorted(commit.files.items()):
            if not file.startswith(start):
                continue
            parts = file[len(start) :].split("/")[:-1]
            folders |= {start + "/".join(parts[: place + 1]) for place in range(len(parts))}
            if not parts or query.get("recursive", "").lower() == "true":
                found.append(_entry(file, blob))
        if start and not found and not folders:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        deep = query.get("recursive", "").lower() == "true"
        shown = [folder for folder in sorted(folders) if deep or "/" not in folder[len(start) :]]
        self._json([{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in shown] + found)

    def paths_info(self, user, body, query, kinds, name, revision) -> None:
        commit = self.hub.find(user, name, KINDS[kinds]).commit(revision)
        text = body.decode()
        form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        paths = parse_qs(text).get("paths", []) if form else json.loads(text)["paths"]
        self._json([_entry(path, commit.files[path]) for path in paths if path in commit.files])

    def refs(self, user, body, query, kinds, name) -> None:
        branches = self.hub.find(user, name, KINDS[kinds]).branches
        listed = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commits[-1].oid}
            for branch, commits in branches.items()
        ]
        self._json({"branches": listed, "converts": [], "tags": [], "pullRequests": []})

    def branch(self, user, body, query, kinds, name, branch) -> None:
        repository = self.hub.find(user, name, KINDS[kinds], to="write")
        if branch in repository.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        repository.branches[branch] = [repository.commit(start)]
        self._json({})

    # Uploads

    def preupload(self, user, body, query, kinds, name, revision) -> None:
        files = self.hub.find(user, name, KINDS[kinds], to="write").commit(revision).files
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if self.hub.is_large(file["path"], file["size"]) else "regular",
                        "shouldIgnore": False,
                        "oid": files[file["path"]].oid if file["path"] in files else None,
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        )

    def batch(self, user, body, query, name, kinds="models") -> None:
        self.hub.find(user, name, KINDS[kinds], to="write")
        objects = [{"oid": item["oid"], "size": item["size"]} for item in json.loads(body)["objects"]]
        for item in objects:
            if item["oid"] not in self.hub.large_files:
                item["actions"] = {"upload": {"href": f"{self.hub.endpoint}/large/{item['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, user, body, query, oid) -> None:
        if Blob(body, True).sha256 != oid:
            raise HubError(400, "The content does not have the announced hash")
        self.hub.large_files[oid] = body
        self._answer(200, ETag=f'"{oid}"')

    def commit(self, user, body, query, kinds, name, revision) -> None:
        repository = self.hub.find(user, name, KINDS[kinds], to="write")
        last = repository.commit(revision)
        files, title = dict(last.files), ""
        for line in body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, last.oid):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise HubError(400, f"The large file of {value['path']} was not uploaded")
                files[value["path"]] = Blob(self.hub.large_files[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
            elif key == "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"])}
            else:
                raise HubError(400, f"Unknown operation {key}")
        pull_requests = [branch for branch in repository.branches if branch.startswith("refs/pr/")]
        branch = f"refs/pr/{len(pull_requests) + 1}" if query.get("create_pr") else revision
        commit = repository.add_commit(branch, title, files)
        page = self.hub.page(repository.kind, name)
        pull_request = f"{page}/discussions/{len(pull_requests) + 1}" if query.get("create_pr") else None
        self._json(
            {"commitUrl": f"{page}/commit/{commit.oid}", "commitOid": commit.oid, "pullRequestUrl": pull_request}
        )

    # Downloads

    def resolve(self, user, body, query, name, revision, path, kinds="models") -> None:
        commit = self.hub.find(user, name, KINDS[kinds], to="read").commit(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        blob = commit.files[path]
        content, status = blob.content, 200
        headers = {"ETag": f'"{blob.oid}"', "X_Repo_Commit": commit.oid, "Content_Type": "application/octet-stream"}
        if blob.large:
            headers |= {"X_Linked_Etag": f'"{blob.sha256}"', "X_Linked_Size": str(len(content))}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._answer(status, content, **headers)


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "oid": blob.git_oid, "size": len(blob.content)}
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
    return entry


ROUTES = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate_yaml),
    (("GET",), API, _Handler.info),
    (("GET",), rf"{API}/revision/(?P<revision>[^/]+)", _Handler.info),
    (("GET",), rf"{API}/tree/(?P<revision>[^/]+)(?P<path>/.+)?", _Handler.tree),
    (("POST",), rf"{API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (("GET",), rf"{API}/refs", _Handler.refs),
    (("POST",), rf"{API}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (("POST",), rf"{API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), rf"{API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (("POST",), rf"{FILES}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), r"/large/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    (("GET", "HEAD"), rf"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    """A Hub of its own for the test; see `HubServer`."""
    with HubServer() as hub:
        yield hub


@pytest.fixture
def hub_here(hub_server, monkeypatch, tmp_path) -> HubServer:
    """This process online, with `hub_server` as its Hub, ann logged in, and an empty cache."""
    from datasets import config
    from huggingface_hub import constants, hf_api
    from transformers.utils.hub import hf_api as transformers_api

    cache = str(tmp_path / "hub-cache")
    for name, value in {
        "ENDPOINT": hub_server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": cache,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(config, "HF_ENDPOINT", hub_server.endpoint)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    for api in (hf_api.api, transformers_api()):  # made when the modules were imported
        monkeypatch.setattr(api, "endpoint", hub_server.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub_server.token)
    return hub_server
