# SPDX-License-Identifier: Apache-2.0
"""Pushing a saved model to the Hub in one commit: whole, as adapters alone, or with the code that runs it.

What is on the Hub changes at the end or not at all. Large files that arrived before an interruption are not sent
again by the next attempt.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.utils import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    httpx,
)
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, logging

from ..cards.model_card import CARD_NAME, is_placeholder, keep_records, read_metadata, write_model_card
from ..cards.text import CardBody
from .remote_code import remote_code_files, serving_files
from .staging import RECORDS, RepositoryForm, find_form, foreign_content, stage_repository

logger = logging.get_logger(__name__)

MESSAGES = {
    RepositoryForm.FULL: "Upload model",
    RepositoryForm.ADAPTER: "Upload adapters",
    RepositoryForm.REMOTE_CODE: "Upload model with its code",
}
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


class PushError(OSError):
    """A repository that was not pushed; what was on the Hub before is still there, as it was."""


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    form: str | RepositoryForm | None = None,
    base_model: str | None = None,
    license: str | None = None,
    results: Sequence[str | Path] = (),
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Upload a saved model, or what a training left, with its processor and a model card.

    The repository is made if need be; files of an earlier push that are none of this one are removed with it. A card
    that somebody wrote, here or on the Hub, keeps its text (see `model_card`).

    Args:
        folder: What `save_pretrained`, `save_adapter` or `sam3i train` wrote.
        repo_id (`str`): "organization/name", or a name for the own namespace.
        form: What to push; what the folder holds if not given. Adapters become a whole model with their base, a whole
            model gives its adapters.
        base_model (`str`, *optional*): Repository of SAM3 to name as the base, instead of what the adapters say.
        license (`str`, *optional*): See `card_files`.
        results: Files of `sam3i evaluate --json`, for the card.
        private (`bool`, *optional*): Whether a new repository is private; one that is there must be already.
        revision (`str`, *optional*): Branch; made if need be.
        message (`str`, *optional*): Of the commit.
        token (`str`, *optional*): Instead of the one that is logged in.

    Returns:
        [`CommitInfo`], whose `repo_url` says where it is.

    Raises:
        PushError: when the Hub refuses or cannot be reached, or the repository holds something else.
        ValueError: when the folder does not hold what is to be pushed.
    """
    folder = Path(folder)
    form = find_form(folder) if form is None else RepositoryForm(form)
    if constants.is_offline_mode():
        raise PushError("Offline mode is set (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE): unset it to push.")
    if not (token or get_token()):
        raise PushError("Nobody is logged in: run `hf auth login`, or set HF_TOKEN to a token that may write.")
    api = HfApi(token=token, library_name="sam3i")
    with tempfile.TemporaryDirectory(prefix="sam3i-push-") as temporary:
        staged = Path(temporary) / "repository"
        stage_repository(folder, form, base_model, staged)
        keep_records(staged, results)
        with _explained(api, repo_id):
            if form is RepositoryForm.ADAPTER:
                _check_base(api, staged)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if private and not api.model_info(repo_id).private:
                raise PushError(f"{repo_id} exists and is public. Make it private first, or name a new repository.")
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            there = api.list_repo_files(repo_id, revision=revision)
            _check_same_kind(api, repo_id, revision, there)
            _write_card(api, repo_id, revision, there, staged, base_model, license)
            paths = {path.name: path for path in sorted(staged.iterdir())}
            return api.create_commit(
                repo_id,
                operations=[
                    *(CommitOperationAdd(name, str(path)) for name, path in paths.items()),
                    *(CommitOperationDelete(name) for name in _stale_files(there, paths)),
                ],
                commit_message=message or MESSAGES[form],
                revision=revision,
            )


def _check_base(api: HfApi, staged: Path) -> None:
    base = json.loads((staged / ADAPTER_CONFIG_NAME).read_text())["base_model_name_or_path"]
    try:
        api.model_info(base)
    except RepositoryNotFoundError as error:
        raise PushError(
            f"The adapters work on {base}, which is not on the Hub, or not for this token: nobody could load them. "
            "Name another repository of SAM3 (--base ORG/NAME), or push that one first."
        ) from error


def _read_remote(api: HfApi, repo_id: str, revision: str | None, name: str) -> str:
    return Path(api.hf_hub_download(repo_id, name, revision=revision)).read_text(encoding="utf-8")


def _check_same_kind(api: HfApi, repo_id: str, revision: str | None, there: list[str]) -> None:
    """A repository with something else in it is not written to."""
    configs = [
        json.loads(_read_remote(api, repo_id, revision, name)) if name in there else None
        for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)
    ]
    foreign = foreign_content(*configs)
    if foreign is not None:
        raise PushError(f"{repo_id} holds {foreign}, which this push would replace. Name another repository.")


def _stale_files(there: list[str], now: dict[str, Path]) -> list[str]:
    """Files of an earlier push: weights, configurations, code and records that do not belong to this one."""
    ours = {CONFIG_NAME, ADAPTER_CONFIG_NAME, *remote_code_files(), *serving_files(), *RECORDS[1:]}
    return [
        name
        for name in there
        if name not in now and (name in ours or any(fnmatch(name, pattern) for pattern in WEIGHTS))
    ]


def _write_card(api, repo_id, revision, there, staged: Path, base_model, license) -> None:
    """Bring up to date the card that somebody wrote: the folder's before the Hub's, before one made by us."""
    path = staged / CARD_NAME
    existing = path.read_text(encoding="utf-8") if path.is_file() else None
    body = CardBody.of_card(existing or "")
    if CARD_NAME in there and (existing is None or body.is_ours or is_placeholder(body.text)):
        stated = read_metadata(existing).license
        license = license or (stated if stated != "unknown" else None)
        existing = _read_remote(api, repo_id, revision, CARD_NAME)
    write_model_card(staged, repo_id=repo_id, base_model=base_model, license=license, existing=existing)


@contextmanager
def _explained(api: HfApi, repo_id: str) -> Iterator[None]:
    """Errors of the Hub and of the way there as what they mean for a push."""
    try:
        yield
    except PushError:
        raise
    except (HfHubHTTPError, httpx.HTTPError, OfflineModeIsEnabled, HFValidationError, RuntimeError) as error:
        raise PushError(_explain(error, api, repo_id)) from error


def _explain(error: BaseException, api: HfApi, repo_id: str) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError | httpx.HTTPError | OfflineModeIsEnabled):
        cause = cause.__cause__ or cause.__context__  # uploads of large files hide what stopped them
    if isinstance(cause, HfHubHTTPError):
        return f"{_explain_refusal(cause, api, repo_id)} Nothing was committed."
    if cause is not None:
        return (
            f"The connection to {api.endpoint} failed while pushing to {repo_id} ({cause}). Nothing was committed; "
            "the same command goes on where it stopped."
        )
    return f"{repo_id} was not pushed: {error}"


def _explain_refusal(error: HfHubHTTPError, api: HfApi, repo_id: str) -> str:
    status = error.response.status_code
    said = f"(it says: {error.server_message})" if error.server_message else f"(status {status})"
    if status == 401:
        return f"The Hub does not accept the token {said}: run `hf auth login` again, or set HF_TOKEN to a valid one."
    if status == 403:
        try:
            account = api.whoami()
            names = ", ".join([account["name"], *(each["name"] for each in account.get("orgs", []))])
            who = f"it belongs to {account['name']}, whose namespaces are: {names}"
        except (HfHubHTTPError, httpx.HTTPError):
            who = "it may be limited to some repositories"
        return f"The token may not write to {repo_id} {said}; {who}. Use a token with write permission there."
    if status >= 500:
        return f"The Hub is out of order {said}: try again later."
    return f"The Hub refused the push to {repo_id} {said}."
