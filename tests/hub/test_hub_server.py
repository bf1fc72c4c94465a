# SPDX-License-Identifier: Apache-2.0
"""The Hub of the tests answers `huggingface_hub` as the real one does, refusals included."""

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    httpx,
)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    (path / "deep").mkdir(parents=True)
    (path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [one]\n---\n# Hello\n")
    (path / "deep" / "notes.txt").write_text("notes")
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    return path


def test_upload_and_download(hub_here, folder):
    api = HfApi()
    assert api.whoami()["name"] == "ann"
    assert api.create_repo("org/thing").repo_id == "org/thing"
    api.upload_folder(repo_id="org/thing", folder_path=folder, commit_message="first")
    assert set(hub_here.files("org/thing")) == {".gitattributes", "README.md", "deep/notes.txt", "model.safetensors"}
    assert {path for method, path, _ in hub_here.requests if method == "PUT"} != set()
    copy = snapshot_download("org/thing")
    for path in ("README.md", "deep/notes.txt", "model.safetensors"):
        with open(f"{copy}/{path}", "rb") as file:
            assert file.read() == (folder / path).read_bytes()
    info = api.model_info("org/thing")
    assert info.sha == hub_here.repositories["model", "org/thing"].commit("main").oid and info.tags == ["one"]
    assert api.file_exists("org/thing", "README.md") and not api.file_exists("org/thing", "no.txt")
    assert api.create_repo("org/thing", exist_ok=True).repo_id == "org/thing"


def test_unchanged_files_are_not_sent_again(hub_here, folder):
    api = HfApi()
    api.create_repo("thing")
    api.upload_folder(repo_id="ann/thing", folder_path=folder)
    sent = len([path for method, path, _ in hub_here.requests if method == "PUT"])
    (folder / "deep" / "notes.txt").write_text("other notes")
    api.upload_folder(repo_id="ann/thing", folder_path=folder)
    assert len([path for method, path, _ in hub_here.requests if method == "PUT"]) == sent == 1
    assert hub_here.files("ann/thing")["deep/notes.txt"] == b"other notes"


def test_branches_and_pull_requests(hub_here, folder):
    api = HfApi()
    api.create_repo("thing")
    api.create_branch("ann/thing", branch="next")
    api.upload_folder(repo_id="ann/thing", folder_path=folder, revision="next")
    assert set(hub_here.files("ann/thing")) == {".gitattributes"}
    assert hf_hub_download("ann/thing", "README.md", revision="next")
    assert [branch.name for branch in api.list_repo_refs("ann/thing").branches] == ["main", "next"]
    commit = api.upload_folder(repo_id="ann/thing", folder_path=folder, create_pr=True)
    assert commit.pr_revision == "refs/pr/1" and set(hub_here.files("ann/thing")) == {".gitattributes"}


def test_refusals(hub_here, folder):
    hub_here.seed("org/secret", folder, private=True)
    hub_here.seed("other/gated", folder, gated=True)
    hub_here.seed("other/open", folder)
    stranger = hub_here.add_user("ben")
    reader = hub_here.add_user("ann", role="read")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=stranger).model_info("org/secret")
    with pytest.raises(GatedRepoError):
        hf_hub_download("other/gated", "README.md")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("other/open", "nothing.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("other/open", "README.md", revision="none")
    for token, name in ((stranger, "org/new"), (reader, "ann/new")):
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(token=token).create_repo(name)
        assert error.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(token="hf_wrong").whoami()
    assert error.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError) as error:
        HfApi().create_repo("org/secret")
    assert error.value.response.status_code == 409
    (folder / "README.md").write_text("---\ntags: [one\n---\n")
    with pytest.raises(ValueError, match="Invalid metadata"):
        HfApi().upload_folder(repo_id="org/secret", folder_path=folder)


def test_faults(hub_here, folder):
    api = HfApi()
    api.create_repo("thing")
    hub_here.fail("POST", "/commit/", 500, message="out of order")
    with pytest.raises(HfHubHTTPError, match="out of order"):
        api.upload_folder(repo_id="ann/thing", folder_path=folder)
    hub_here.fail("POST", "/commit/")
    with pytest.raises(httpx.HTTPError):
        api.upload_folder(repo_id="ann/thing", folder_path=folder)
    assert set(hub_here.files("ann/thing")) == {".gitattributes"}
    api.upload_folder(repo_id="ann/thing", folder_path=folder)
    assert "README.md" in hub_here.files("ann/thing")


def test_data_sets(hub_here, tmp_path):
    Dataset.from_dict({"text": ["a", "b"]}).push_to_hub("org/data")
    assert "data/train-00000-of-00001.parquet" in hub_here.files("org/data", kind="dataset")
    again = load_dataset("org/data", split="train", cache_dir=str(tmp_path / "cache"))
    assert again["text"] == ["a", "b"]
