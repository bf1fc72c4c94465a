# SPDX-License-Identifier: Apache-2.0
"""Settled pairs of a run as rows of our schema: JSON Lines, the authors' JSON, or parquet with a dataset card."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Template

from ..datasets.conversion import WRITERS, convert_dataset
from ..datasets.schema import LEVEL_FIELDS, InstructionRow, make_row
from .checks import ACCEPTED
from .review.desk import ReviewDesk
from .run import RunDirectory
from .status import run_status

FILE_NAMES = {"jsonl": "data.jsonl", "official": "sam3i.json", "parquet": "data.parquet"}


class ExportError(ValueError):
    """Nothing to export, or an unknown format."""


def accepted_rows(run: RunDirectory) -> Iterator[InstructionRow]:
    """One row per target with an accepted instruction, in the order of the source.

    Questions that denote the same target of a picture share a row. As in the official files, `concept` holds the
    category's noun in every row: it anchors the row, and denotes the row's target only where the target is all of its
    category ("object" stands where anything may answer).
    """
    desk = ReviewDesk(run)
    rows: dict[tuple, dict[str, Any]] = {}
    for pair, target, picture, outcome, text in desk.settled():
        if outcome != ACCEPTED:
            continue
        # Without a target every question is a row of its own: nothing says that two of them mean the same.
        apart = pair["pair_id"].rsplit("/", 2)[0] if not target["targets"] else None
        key = picture["image_id"], tuple(target["targets"]), target["noun"], target["kind"], apart
        row = rows.setdefault(
            key, {"picture": picture, "target": target, "texts": {level: [] for level in LEVEL_FIELDS}}
        )
        if text not in row["texts"][pair["level"]]:
            row["texts"][pair["level"]].append(text)
    counts: dict[str, int] = {}
    for row in rows.values():
        picture, target, texts = row["picture"], row["target"], row["texts"]
        image_id = picture["image_id"]
        number = counts[image_id] = counts.get(image_id, -1) + 1
        instances = {item["annotation_id"]: item for item in picture["instances"]}
        chosen = [instances[i] for i in target["targets"]]
        yield make_row(
            image=_image(run, picture["image"]),
            file_name=picture["file_name"],
            width=picture["width"],
            height=picture["height"],
            concept=texts["concept"] or [target["noun"] or "object"],
            simple=texts["simple"],
            complex=texts["complex"],
            masks=[item["mask"] for item in chosen],
            boxes=[item["box"] for item in chosen],
            target_kind=target["kind"],
            row_id=f"{image_id}/{number}",
            image_id=image_id,
            annotation_ids=target["targets"],
            dataset=picture["dataset"],
            split=picture["split"],
        )


def _image(run: RunDirectory, image: str | None) -> Any:
    """The picture of a row: a path of its own, or the bytes of one that lies in the run folder."""
    if image is None or Path(image).is_absolute() or not (run.path / image).is_file():
        return image
    return {"path": Path(image).name, "bytes": (run.path / image).read_bytes()}


def export_run(run: RunDirectory, folder: str | Path, format: str = "jsonl", name: str | None = None) -> Path:
    """Write the accepted instructions and a dataset card (README.md) into a folder; returns the data file.

    Args:
        format: "jsonl", "official" or "parquet" (the pictures inside).
        name: of the data set, for the card; the folder's name if not given.

    Raises:
        ExportError: an unknown format, or a run without an accepted instruction.
    """
    if format not in WRITERS:
        raise ExportError(f"`format` must be one of {', '.join(WRITERS)}; received {format!r}.")
    folder = Path(folder)
    if not any(outcome == ACCEPTED for *_, outcome, _ in ReviewDesk(run).settled()):
        raise ExportError(f"{run.path} has no accepted instruction yet; `sam3i data status {run.path}` says why.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAMES[format]
    pictures: set[str] = set()

    def noted_rows() -> Iterator[InstructionRow]:
        for row in accepted_rows(run):
            pictures.add(row["image_id"])
            yield row

    count = convert_dataset(noted_rows(), path, format)
    card = dataset_card(run, count, len(pictures), name or folder.name, path.name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return path


def push_export(path: Path, repo_id: str, private: bool = False) -> str:
    """Upload an export as a data set of the Hub, in one commit; returns its address.

    The folder holds the data file, the card and, but for parquet, the pictures; pictures that are files elsewhere are
    in parquet only.

    Args:
        repo_id: "owner/name"; made where it does not exist.

    Raises:
        ExportError: rows whose pictures would not be uploaded, or a Hub that refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if path.suffix != ".parquet" and _lacks_pictures(path):
        raise ExportError(
            f"{path.parent} lacks pictures that lie elsewhere; export with --to parquet, which holds them."
        )
    api = HfApi()
    try:
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=path.parent,
            repo_type="dataset",
            allow_patterns=[path.name, "README.md", "images/*"],
            commit_message="Upload instructions made by the data engine of sam3i",
        )
    except (HfHubHTTPError, HFValidationError) as error:
        raise ExportError(f"The Hub did not take {repo_id}: {error}") from error
    return str(url)


def _lacks_pictures(path: Path) -> bool:
    """Whether a file names pictures that are not in its folder."""
    if path.suffix == ".jsonl":
        names = {json.loads(line)["file_name"] for line in path.read_text(encoding="utf-8").splitlines()}
    else:
        names = {image["file_name"] for image in json.loads(path.read_text(encoding="utf-8"))["images"]}
    return any(name is None or not (path.parent / name).is_file() for name in names)


def dataset_card(run: RunDirectory, targets: int, pictures: int, name: str, data_file: str) -> str:
    """A dataset card: what is in it, how it was made, how it was checked."""
    template = Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"), keep_trailing_newline=True)
    about = {"targets": targets, "pictures": pictures, "name": name, "data_file": data_file}
    return template.render(status=run_status(run), config=run.config, **about)
