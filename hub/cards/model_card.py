# SPDX-License-Identifier: Apache-2.0
"""The model card of a repository, written from what lies in its folder: configuration, weights, training, scores.

Metadata that are there already stay, ours are added. The generated text stands between two markers; text outside of
them, and text inside once it was changed, is never touched.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ...trainer.evaluation.tables import format_count
from ...trainer.record import RECORD_NAME, TrainingRecordError, read_record
from ..repo_info import RepoInfo, repo_info
from .scores import SCORES_NAME, Scores, eval_results, read_scores, score_tables, write_scores
from .text import CardBody, generated_block, markdown_text, plain_text
from .training_curves import CURVES_NAME, draw_curves

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
SAM_LICENSE = "https://github.com/facebookresearch/sam3/blob/main/LICENSE"
SAM_LICENSE_NAME = "sam-license"
PLACEHOLDER_ID = "ORG/NAME"
TAGS = ["sam3i", "sam3", "instruction-segmentation", "referring-expression-segmentation"]
SIZES = ("adapter_dim", "adapter_heads", "adapter_rank")


class ModelCardError(ValueError):
    """A card that cannot be written, or metadata of an existing one that cannot be read."""


def is_hub_id(name: object) -> bool:
    """Whether a name is "organization/name", as others can load it from the Hub."""
    if not isinstance(name, str) or "/" not in name:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def write_model_card(folder: str | Path, **known: Any) -> Path:
    """Write `README.md` and the picture of the training into a folder; see `card_files`."""
    for name, content in card_files(folder, **known).items():
        Path(folder, name).write_bytes(content)
    return Path(folder) / CARD_NAME


def card_files(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    model_name: str | None = None,
    existing: str | None = None,
) -> dict[str, bytes]:
    """The card of a saved model or a training folder, and the picture in it, as files.

    Args:
        base_model (`str`, *optional*): Repository of the SAM3 that the model was made from; where the adapters or the
            training say, if not given.
        model_name (`str`, *optional*): Title; the name of the repository, or what the card or the folder is called, if
            not given.

    Returns:
        `dict[str, bytes]`: Contents by file name.

    Raises:
        ModelCardError: when the metadata of the existing card are no YAML.
        FileNotFoundError, ValueError: when the folder holds no model.
    """
    folder = Path(folder)
    info, record = repo_info(folder), read_record(folder) or {"stages": []}
    scores = read_scores(folder / SCORES_NAME) if (folder / SCORES_NAME).is_file() else []
    if existing is None and (folder / CARD_NAME).is_file():
        existing = (folder / CARD_NAME).read_text(encoding="utf-8")
    data = read_metadata(existing)
    base = base_model or info.base or data.base_model or record.get("base")
    base = next(iter(base), None) if isinstance(base, list) else base
    base = base if is_hub_id(base) and base != repo_id else None  # a folder's path says nothing to others
    form = _form(folder, info)
    name = plain_text(model_name or (repo_id or "").rpartition("/")[2] or data.model_name or folder.resolve().name)
    _update_metadata(data, form, base, license, name, scores)
    curves = draw_curves(record["stages"])
    text = _render(
        name=name,
        form=form,
        base=base,
        repo_id=repo_id or PLACEHOLDER_ID,
        license=data.get("license_name") or data.license,
        curves=CURVES_NAME if curves else None,
        tables=score_tables(scores),
        weakest=_weakest(scores),
        **_facts(info, record),
    )
    body = CardBody.of_card(existing or "")
    body = CardBody("") if is_placeholder(body.text) else body
    card = f"---\n{data.to_yaml()}\n---\n\n{body.with_generated(generated_block(text))}"
    ModelCard(card)  # reads it as the Hub's clients do
    return {CARD_NAME: card.encode()} | ({CURVES_NAME: curves} if curves else {})


def keep_records(folder: str | Path, results: Sequence[str | Path] = (), training: str | Path | None = None) -> None:
    """Keep what a card is written from beside the model: `evaluation.json` and `training.json`.

    Args:
        results: Output of `sam3i evaluate --json`; newer scores replace those of the same system and data.

    Raises:
        ScoresFileError: when a result cannot be read.
        TrainingRecordError: when nothing was trained in `training`.
    """
    folder = Path(folder)
    if results:
        known = read_scores(folder / SCORES_NAME) if (folder / SCORES_NAME).is_file() else []
        write_scores(folder / SCORES_NAME, known + [entry for path in results for entry in read_scores(path)])
    if training is not None:
        record = read_record(training)
        if record is None:
            raise TrainingRecordError(f"Expected a training in {training}, found no {RECORD_NAME} and no stages.")
        (folder / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _form(folder: Path, info: RepoInfo) -> str:
    if info.kind == "SAM3-I adapters":
        return "adapter"
    if info.kind.startswith("stock"):
        return "stock"
    return "remote-code" if (folder / "modeling_sam3i.py").is_file() else "full"


def read_metadata(card: str | None) -> ModelCardData:
    """The metadata of a card; empty ones for none. Raises ModelCardError when they are no YAML."""
    try:
        return cast(ModelCardData, ModelCard(card or "---\n{}\n---\n").data)
    except Exception as error:  # the YAML parser and the client raise types of their own
        raise ModelCardError(
            f"The metadata of the existing {CARD_NAME} cannot be read: {error}. Mend or delete the file."
        ) from error


def _update_metadata(
    data: ModelCardData, form: str, base: str | None, license: str | None, name: str, scores: list[Scores]
) -> None:
    placeholder = data.library_name in (None, "transformers", "peft")  # as Transformers and PEFT write by themselves
    data.library_name = "transformers" if placeholder else data.library_name
    data.pipeline_tag = data.pipeline_tag or "image-segmentation"
    if base is not None:
        data.base_model = base
    if data.base_model and "base_model_relation" not in data.to_dict():
        relation = "adapter" if form == "adapter" else "finetune"
        data.base_model_relation = relation  # type: ignore[attr-defined]  # cards keep fields of any name
    if license is not None:
        data.license, data.license_name, data.license_link = license, None, None
    elif data.license is None and form != "adapter" and str(data.base_model).startswith("facebook/"):
        data.license, data.license_name, data.license_link = "other", SAM_LICENSE_NAME, SAM_LICENSE
    data.license = data.license or "unknown"
    ours = [*TAGS, "peft"] if form == "adapter" else TAGS
    data.tags = [*(data.tags or []), *(tag for tag in ours if tag not in (data.tags or []))]
    results = eval_results(scores)
    if results:
        identities = {_identity(result) for result in results}
        others = [result for result in data.eval_results or [] if _identity(result) not in identities]
        data.eval_results, data.model_name = [*others, *results], name
        data.metrics = list(dict.fromkeys([*(data.metrics or []), *(result.metric_type for result in results)]))


def _identity(result: Any) -> tuple:
    return (result.task_type, result.dataset_type, result.dataset_config, result.metric_type, result.metric_name)


def _facts(info: RepoInfo, record: Mapping[str, Any]) -> dict[str, Any]:
    whole = info.kind != "SAM3-I adapters"
    base_parameters = info.parameters - info.adapter_parameters if whole else record.get("base_parameters")
    trained_on = dict.fromkeys(name for stage in record["stages"] for name in stage.get("rows", {}) if name)
    return {
        "sizes": _sizes(base_parameters, whole, info.level_parameters),
        "design": info.settings.get("adapter_design"),
        "settings": {key.replace("_", " "): info.settings[key] for key in SIZES if key in info.settings},
        "max_instruction_length": info.settings.get("max_instruction_length", 32),
        "stages": _stage_rows(record["stages"]),
        "evaluation": record.get("evaluation"),
        "trained_on": list(trained_on),
    }


def _sizes(base: int | None, whole: bool, levels: Mapping[str, int]) -> list[list[str]]:
    """Rows of the table of parameters; the share of SAM3's where its size is known."""
    rows = [["", "parameters"]]
    if base:
        rows.append([f"SAM3, frozen{'' if whole else ' (not in this repository)'}", format_count(base)])
    rows += [[f"adapters, {level}", format_count(number)] for level, number in levels.items()]
    if base and levels:
        shares = ["share of SAM3's", "100 %", *(f"{100 * number / base:.1f} %" for number in levels.values())]
        rows = [[*row, share] for row, share in zip(rows, shares, strict=True)]
    return rows


def _stage_rows(stages: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of the table of stages; what a training did not record is a dash."""
    if not stages:
        return []
    rows = [["stage", "steps", "batch", "peak learning rate", "of text adapters", "targets", "losses"]]
    for stage in stages:
        rates = [stage.get(name) for name in ("learning_rate", "text_learning_rate")]
        rows.append(
            [stage["stage"], f"{stage['steps']:,}", str(stage.get("batch_size", "–"))]
            + ["–" if rate is None else f"{rate:.3g}" for rate in rates]
            + [_counts(stage.get("rows", {})) or "–", ", ".join(stage.get("losses", [])) or "–"]
        )
    return rows


def _counts(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{plain_text(name) or 'unnamed'} ({number:,})" for name, number in rows.items())


def _weakest(scores: list[Scores]) -> tuple[str, str] | None:
    known = [
        (figures["gIoU"], kind)
        for entry in scores
        if entry.own and len(entry.kinds) > 1
        for kind, figures in entry.kinds.items()
        if figures.get("gIoU") is not None
    ]
    return (min(known)[1], f"{min(known)[0]:.1f}") if known else None


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"md": markdown_text, "counts": _counts, "repository": _linked, "table": _table}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _linked(name: str | None) -> str:
    return f"[{markdown_text(name)}](https://huggingface.co/{name})" if name else "a SAM3 that is not on the Hub"


def _table(rows: list[list[str]]) -> str:
    """Rows of text as a table, the first one as its header; cells may hold losses and names of any length."""
    lines = ["| " + " | ".join(markdown_text(cell, 1000) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _render(**values: Any) -> str:
    text = _template().render(**values, sam_license=SAM_LICENSE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


@cache
def _placeholder_lines() -> frozenset[str]:
    return frozenset(str(ModelCard.from_template(ModelCardData()).text).splitlines())


def is_placeholder(body: str) -> bool:
    """Whether a card's text is the form that Transformers and PEFT save, with nothing filled in."""
    if "[More Information Needed]" not in body:
        return False
    own = re.compile(r"#+ Framework versions|- PEFT \S+|.*This model card has been automatically generated\.?.*|\s*")
    return all(line in _placeholder_lines() or own.fullmatch(line) for line in body.splitlines())
