# SPDX-License-Identifier: Apache-2.0
"""The card says what lies in the folder, as valid metadata and Markdown whatever the names in a run are."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from typer.testing import CliRunner

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor
from sam3i.hub.cards.model_card import ModelCardError, card_files, is_placeholder, write_model_card
from sam3i.hub.cards.scores import ScoresFileError, eval_results, read_scores
from sam3i.hub.cards.text import CardBody, generated_block, markdown_text
from sam3i.hub.cards.training_curves import draw_curves
from sam3i.modeling_sam3i.adapter_io import save_adapter

HOSTILE = [
    "---\nlicense: mit\n---",
    "]: !!python/object/apply:os.system [true]",
    "a | b\n| --- |",
    "</td><script>alert(1)</script><!-- /sam3i:card -->",
    "{{ 7 * 7 }}{% raw %}",
    "[free](https://example.com) ![x](y) <https://example.com> www.example.com @everyone #1",
    "`code` **bold** ~~gone~~ \\ $x$ ``` \u202e\x00\x1b",
]
FIGURES = {"gIoU": 60.126, "cIoU": 50.0, "P@0.5": 61.0, "AP": 3.0, "N-acc": 70.0, "gIoU-nothing": 20.0, "n": 9}


def evaluation(system="sam3-i", dataset="shapes", **changes):
    """As `sam3i evaluate --json` prints one system."""
    values = {
        **FIGURES,
        "system": system,
        "protocol": "default",
        "protocol_statement": "default: one sample per instruction. Source: here.",
        "level": None,
        "cost": {"seconds": 0.1},
        "parameters": 7,
        "instructions": 9,
        "images": 3,
        "datasets": [dataset],
        "level_accuracy": None,
        "errors": 0,
        "predictions": "/home/somebody/predictions.jsonl",
        "per_level": {"simple": FIGURES | {"gIoU": 65.0}, "complex": FIGURES | {"gIoU": 55.0}},
        "per_kind": {"1-to-1": FIGURES | {"gIoU": 40.0}, "none": FIGURES | {"gIoU": 80.0}},
        "per_size": {},
    }
    return values | changes


def training(dataset="shapes", base="org/sam3"):
    """A record of two stages."""
    stage = {"levels": ["simple"], "steps": 20, "epochs": 1.0, "batch_size": 8, "learning_rate": 5e-4}
    stage |= {"text_learning_rate": 3e-5, "losses": ["classification", "KL"], "rows": {dataset: 1234}}
    log = [{"step": step, "loss": 100 / step} for step in range(1, 21)]
    log += [{"step": step, "eval_simple_gIoU": 40 + step, "eval_complex_gIoU": 30 + step} for step in (10, 20)]
    stages = [stage | {"stage": name, "log": log} for name in ("simple", "complex")]
    evaluated = {"protocol": "default", "threshold": 0.5, "rows": {dataset: 56}, "chose_checkpoints": True}
    return {"base": base, "base_parameters": 1_000_000, "stages": stages, "evaluation": evaluated}


@pytest.fixture
def whole(tiny_model, train_adapters, tiny_stock_repos, tmp_path):
    """A folder of a whole model, with scores and the record of a training."""
    folder = tmp_path / "my-model"
    train_adapters(tiny_model).save_pretrained(folder)
    Sam3IProcessor.from_pretrained(tiny_stock_repos["sam3"]).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(training()))
    (folder / "evaluation.json").write_text(json.dumps(evaluation()))
    return folder


@pytest.fixture
def adapters(tiny_model, tmp_path):
    """A folder of adapters alone."""
    save_adapter(tiny_model, tmp_path / "my-adapters", "facebook/sam3")
    return tmp_path / "my-adapters"


def card_of(folder, **known):
    return ModelCard(card_files(folder, **known)["README.md"].decode())


def test_card_of_a_whole_model(whole, tiny_model):
    card = card_of(whole, repo_id="org/my-model", license="apache-2.0")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "image-segmentation"
    assert (data["base_model"], data["base_model_relation"]) == ("org/sam3", "finetune")
    assert (
        data["license"] == "apache-2.0" and "instruction-segmentation" in data["tags"] and "peft" not in data["tags"]
    )
    for words in ("# my-model", 'model="org/my-model"', "shapes (1,234)", "classification, KL", "0.0005", "gIoU 40.0"):
        assert words in card.text, words
    adapters = sum(value.numel() for value in tiny_model.adapter_parameters().values())
    stock = tiny_model.num_parameters() - adapters
    row = next(line for line in card.text.splitlines() if line.startswith("| SAM3, frozen"))
    assert f"{stock / 1e3:,.1f} k" in row and "100 %" in row
    assert "| system | gIoU | cIoU | P&#64;0.5 | N-acc | gIoU, simple | gIoU, complex |" in card.text
    assert "| sam3-i | 60.1 | 50.0 | 61.0 | 70.0 | 65.0 | 55.0 |" in card.text
    assert "| answering nothing | 20.0 |" in card.text and "default: one sample per instruction" in card.text
    assert "SAM License" in card.text and "/home/somebody" not in str(card)


def test_card_of_adapters(adapters):
    card = card_of(adapters)
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("facebook/sam3", "adapter")
    assert "peft" in data["tags"] and data["license"] == "unknown"
    assert "No license was stated for the adapters" in card.text and "PeftModel.from_pretrained" in card.text
    assert "[facebook/sam3](https://huggingface.co/facebook/sam3)" in card.text


def test_paths_of_this_machine_stay_here(whole, tiny_model, tmp_path):
    save_adapter(tiny_model, tmp_path / "local", str(tmp_path / "my-model"))
    cards = [card_of(tmp_path / "local"), card_of(whole, base_model=str(tmp_path))]
    for card in cards:
        assert str(tmp_path) not in str(card) and card.data.base_model in (None, "org/sam3")
    assert "a SAM3 that is not on the Hub" in cards[0].text


def test_weights_of_meta_keep_their_license(whole):
    data = card_of(whole, base_model="facebook/sam3").data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "sam-license") and data["license_link"]
    (whole / "README.md").write_text("---\nlicense: mit\n---\n")
    assert card_of(whole, base_model="facebook/sam3").data.license == "mit"


def test_card_of_stock(tiny_stock_repos):
    for folder in tiny_stock_repos.values():
        card = card_of(folder, repo_id="org/sam3")
        assert "without instruction adapters" in card.text and "complex" not in card.text


def test_use_of_remote_code(whole, tmp_path):
    from sam3i.hub.publish.remote_code import add_remote_code

    add_remote_code(whole)
    text = card_of(whole, repo_id="org/code").text
    assert "trust_remote_code=True" in text and "import sam3i" not in text


def test_example_of_use_runs(whole, tmp_path, monkeypatch):
    from PIL import Image

    code = card_of(whole).text.split("```python\n")[1].split("```")[0].replace("ORG/NAME", str(whole))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("photo.jpg")
    names = {}
    exec(code, names)
    assert len(code.strip().splitlines()) <= 5 and isinstance(names["found"], list)


def test_results_are_metadata(whole):
    data = card_of(whole).data
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {
        "gIoU": 60.13,
        "cIoU": 50.0,
        "P@0.5": 61.0,
        "N-acc": 70.0,
        "gIoU (simple)": 65.0,
        "gIoU (complex)": 55.0,
    }
    assert {result.dataset_type for result in data.eval_results} == {"shapes"}
    assert data.model_name == "my-model" and data.metrics == ["gIoU", "cIoU", "P@0.5", "N-acc"]
    again = ModelCardData(**yaml.safe_load(data.to_yaml()))
    assert again.to_dict() == data.to_dict()


def test_baselines_are_shown_but_no_results_of_the_model(whole):
    systems = {name: evaluation(name) for name in ("sam3-i", "sam3")}
    (whole / "evaluation.json").write_text(json.dumps({"protocol": "default", "systems": systems}))
    card = card_of(whole)
    assert "| sam3 | 60.1" in card.text and len(card.data.eval_results) == 6


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names(whole, text):
    (whole / "training.json").write_text(json.dumps(training(text, text)))
    (whole / "evaluation.json").write_text(json.dumps(evaluation(text, text, protocol_statement=text)))
    content = card_files(whole, model_name=text)["README.md"].decode()
    card = ModelCard(content)
    assert card.data.license == "unknown" and card.data.base_model is None
    metadata = yaml.safe_load(content.split("---\n")[1])
    assert metadata["model-index"][0]["name"] == card.data.model_name
    assert CardBody.of_card(content).is_ours, "the generated part ends where it should"
    for harmful in ("<script", "\x1b", "\x00", "\u202e", "https://example", "www.ex", "](https://ex", "@every"):
        assert harmful not in card.text
    plain = card_of_plain(whole)
    assert [line[:1] == "|" for line in card.text.splitlines()] == [line[:1] == "|" for line in plain.splitlines()]
    tables = [line for line in card.text.splitlines() if line.startswith("|")]
    expected = [line for line in plain.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in tables] == [line.count("|") for line in expected]


def card_of_plain(folder):
    """The card of the same run with harmless names."""
    (folder / "training.json").write_text(json.dumps(training("name", "name")))
    (folder / "evaluation.json").write_text(json.dumps(evaluation("name", "name")))
    return card_of(folder, model_name="name").text


def test_markdown_text():
    assert markdown_text("a_b*c") == r"a\_b\*c" and markdown_text(" two\n\tlines ") == "two lines"
    assert markdown_text("x" * 300) == "x" * 199 + "…"
    assert markdown_text("<b>&@|#") == "&lt;b&gt;&amp;&#64;&#124;&#35;"


def test_own_text_stays(whole):
    path = write_model_card(whole, license="mit")
    first = path.read_text()
    assert write_model_card(whole).read_text() == first, "writing again changes nothing"
    path.write_text(first.replace("<!-- sam3i:card", "Before.\n\n<!-- sam3i:card", 1) + "\nAfter.\n")
    (whole / "evaluation.json").write_text(json.dumps(evaluation(gIoU=99.0)))
    second = write_model_card(whole).read_text()
    assert "Before." in second and second.endswith("After.\n") and "99.0" in second and "license: mit" in second
    path.write_text(second.replace("## Limits", "## What it cannot do"))
    (whole / "evaluation.json").write_text(json.dumps(evaluation(gIoU=11.0)))
    third = write_model_card(whole).read_text()
    assert "## What it cannot do" in third and "| 11.0" not in third and "value: 11.0" in third


def test_own_metadata_stay(whole):
    (whole / "README.md").write_text(
        "---\nlicense: mit\ntags: [mine]\npipeline_tag: mask-generation\nlanguage: en\nbase_model_relation: merge\n"
        "model-index:\n- name: mine\n  results:\n  - task: {type: image-segmentation}\n"
        "    dataset: {type: other, name: Other}\n    metrics: [{type: gIoU, value: 1.0}]\n---\nMy words.\n"
    )
    card = card_of(whole)
    data = card.data
    assert card.text.strip() == "My words." and data.license == "mit" and data.language == "en"
    assert data.pipeline_tag == "mask-generation" and data.base_model_relation == "merge" and data.tags[0] == "mine"
    assert data.model_name == "mine" and len(data.eval_results) == 7


def test_unfilled_forms_give_way(whole):
    stock = "This is the model card of a 🤗 transformers model. This model card has been automatically generated."
    for description in (None, stock):
        card = ModelCard.from_template(ModelCardData(library_name="peft"), model_description=description)
        assert is_placeholder(card.text)
        assert "[More Information Needed]" not in card_of(whole, existing=str(card)).text
        filled = str(card).replace("[More Information Needed]", "A friend", 1)
        assert "A friend" in card_of(whole, existing=filled).text


def test_broken_metadata(whole):
    (whole / "README.md").write_text("---\ntags: [one\n---\n")
    with pytest.raises(ModelCardError, match="cannot be read"):
        write_model_card(whole)


def test_broken_records(whole):
    (whole / "evaluation.json").write_text('{"gIoU": 1}')
    with pytest.raises(ScoresFileError, match="sam3i evaluate"):
        card_of(whole)
    (whole / "evaluation.json").unlink()
    (whole / "training.json").write_text('{"stages": [{"stage": "fourth"}]}')
    with pytest.raises(ValueError, match="not the record of a training"):
        card_of(whole)


def test_curves():
    from io import BytesIO

    import numpy as np
    from PIL import Image

    both = Image.open(BytesIO(draw_curves(training()["stages"])))
    assert both.size == (1380, 420) and len(np.unique(np.asarray(both.convert("L")))) > 10
    loss = [stage | {"log": [entry for entry in stage["log"] if "loss" in entry]} for stage in training()["stages"]]
    assert Image.open(BytesIO(draw_curves(loss))).size == (690, 420)
    assert draw_curves([stage | {"log": []} for stage in loss]) is None and draw_curves([]) is None


def test_command(whole, adapters, tmp_path):
    from sam3i.cli import app

    results = tmp_path / "scores.json"
    results.write_text(json.dumps(evaluation(gIoU=77.7)))
    run = tmp_path / "run"
    run.mkdir()
    (run / "training.json").write_text(json.dumps(training("words")))
    options = ["--results", str(results), "--training", str(run), "--license", "apache-2.0", "--name", "Named"]
    for _ in range(2):
        done = CliRunner().invoke(app, ["card", str(adapters), *options])
        assert done.exit_code == 0, done.output
    card = ModelCard((adapters / "README.md").read_text())
    assert "# Named" in card.text and "77.7" in card.text and "words (1,234)" in card.text
    assert len(read_scores(adapters / "evaluation.json")) == 1 and len(eval_results(read_scores(results))) == 6
    assert (adapters / "training_curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "/home/somebody" not in (adapters / "evaluation.json").read_text()
    done = CliRunner().invoke(app, ["card", str(tmp_path)])
    assert done.exit_code == 1 and "neither config.json" in done.output
    done = CliRunner().invoke(app, ["card", str(adapters), "--training", str(tmp_path)])
    assert done.exit_code == 1 and "no training.json" in done.output


@pytest.mark.parametrize("name", ["shapes_tiny", "things_tiny"])
def test_shipped_model_card_is_what_the_command_writes(name, tmp_path):
    """`sam3i card examples/NAME` changes nothing; after a new training, run it."""
    folder = shutil.copytree(Path(__file__).resolve().parents[2] / "examples" / name, tmp_path / name)
    before = (folder / "README.md").read_text()
    assert write_model_card(folder).read_text() == before
    assert Sam3IForInstructionSegmentation.from_pretrained(folder) and ModelCard(before).data.license == "apache-2.0"


def test_generated_block_is_recognised():
    block = generated_block("# Text\n\nmore")
    assert CardBody.of_card(f"---\nlicense: mit\n---\n{block}\n").is_ours
    assert CardBody.of_card(f"---\nlicense: mit\n---\n{block}\n".replace("\n", "\r\n")).is_ours
    assert not CardBody.of_card(block.replace("more", "less")).is_ours
    assert not CardBody.of_card(f"{block}\nown words").is_ours
