# SPDX-License-Identifier: Apache-2.0
"""What is pushed can be loaded from the Hub, by every route; what fails leaves the Hub as it was and says why."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import AutoModel, Sam3Model, pipeline
from typer.testing import CliRunner

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor
from sam3i.hub.publish.push import PushError, push_folder
from sam3i.modeling_sam3i.adapter_io import BaseModelNotFoundError, save_adapter
from sam3i.modeling_sam3i.peft.loading import load_instruction_adapter

WITHOUT_PACKAGE = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "sam3i" or name.startswith("sam3i."):
            raise ImportError("this package is not installed here")
sys.meta_path.insert(0, Refuse())
from transformers import AutoProcessor, pipeline
pipe = pipeline("instruction-segmentation", model="org/code", trust_remote_code=True)
results = pipe(sys.argv[1], text=["dog", "the dog on the left"], level=["concept", "complex"], threshold=0.0)
assert type(AutoProcessor.from_pretrained("org/code", trust_remote_code=True)).__name__ == "Sam3IProcessor"
assert not any(name == "sam3i" for name in sys.modules)
print(json.dumps([[item["score"] for item in one] for one in results]))
"""


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def stock_on_hub(hub_here, tiny_stock_repos):
    """A stock SAM3 as org/sam3."""
    hub_here.seed("org/sam3", tiny_stock_repos["sam3"])
    return "org/sam3"


@pytest.fixture
def trained(stock_on_hub, train_adapters):
    """A model on org/sam3, as if its adapters had been trained, and its processor."""
    model = Sam3IForInstructionSegmentation.from_pretrained(stock_on_hub, adapter_dim=8, adapter_heads=4)
    return train_adapters(model).eval(), Sam3IProcessor.from_pretrained(stock_on_hub)


@pytest.fixture
def whole(trained, tmp_path):
    """A folder of the whole model."""
    folder = tmp_path / "whole"
    for part in trained:
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def adapters(trained, tmp_path):
    """A folder of the adapters alone."""
    save_adapter(trained[0], tmp_path / "adapters")
    trained[1].save_pretrained(tmp_path / "adapters")
    return tmp_path / "adapters"


def outputs(model, processor, **options):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    inputs = processor(images=picture, text=["the dog", "the dog on the left"], return_tensors="pt", **options)
    levels = torch.tensor([1, 2])
    with torch.no_grad():
        return model(**inputs | {"instruction_levels": levels}).pred_masks


def same(model, trained):
    _, processor = trained
    return torch.allclose(outputs(model.eval(), processor), outputs(*trained), atol=1e-5)


def test_whole_model(hub_here, whole, trained):
    commit = push_folder(whole, "org/whole", license="apache-2.0")
    assert commit.repo_url.repo_id == "org/whole"
    files = hub_here.files("org/whole")
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"} <= set(files)
    assert hub_here.repositories["model", "org/whole"].commit("main").title == "Upload model"
    assert same(Sam3IForInstructionSegmentation.from_pretrained("org/whole"), trained)
    assert same(AutoModel.from_pretrained("org/whole"), trained)
    assert Sam3IProcessor.from_pretrained("org/whole").tokenizer.vocab_size == trained[1].tokenizer.vocab_size
    card = ModelCard.load("org/whole")
    assert card.data.license == "apache-2.0" and 'model="org/whole"' in card.text


def test_adapters_find_their_base_on_the_hub(hub_here, adapters, trained, photo):
    push_folder(adapters, "org/adapters", private=True)
    files = hub_here.files("org/adapters")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files) and "config.json" not in files
    assert hub_here.repositories["model", "org/adapters"].private
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/sam3"
    assert same(Sam3IForInstructionSegmentation.from_pretrained("org/adapters"), trained)
    pipe = pipeline("instruction-segmentation", model="org/adapters")
    assert pipe(photo, text="the dog", level="complex", threshold=0.0)
    data = ModelCard.load("org/adapters").data
    assert data.base_model == "org/sam3" and data.base_model_relation == "adapter" and "peft" in data.tags


def test_adapters_on_stock_through_peft(adapters, trained, stock_on_hub):
    from peft import PeftModel

    push_folder(adapters, "org/adapters")
    peft_model = PeftModel.from_pretrained(
        Sam3Model.from_pretrained(stock_on_hub), "org/adapters", adapter_name="instruction"
    )
    assert same(peft_model, trained)
    stock = load_instruction_adapter(Sam3Model.from_pretrained(stock_on_hub), "org/adapters")
    assert same(stock, trained)


def test_peft_model_pushes_itself(hub_here, adapters, trained, stock_on_hub):
    from peft import PeftModel

    stock = Sam3Model.from_pretrained(stock_on_hub)
    PeftModel.from_pretrained(stock, adapters, adapter_name="instruction").push_to_hub("org/from-peft")
    files = set(hub_here.files("org/from-peft"))
    folder = "instruction/" if "instruction/adapter_config.json" in files else ""
    assert f"{folder}adapter_model.safetensors" in files
    model = Sam3IForInstructionSegmentation.from_pretrained("org/from-peft", subfolder=folder.rstrip("/"))
    assert same(model, trained)


@pytest.mark.slow  # test_export.py shows the same of a folder
def test_code_runs_without_the_package(hub_here, whole, photo, tmp_path):
    push_folder(whole, "org/code", form="remote-code")
    assert "auto_map" not in json.loads((whole / "config.json").read_text())
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, photo],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=hub_here.environment(tmp_path),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    here = pipeline("instruction-segmentation", model=str(whole))(
        photo, text=["dog", "the dog on the left"], level=["concept", "complex"], threshold=0.0
    )
    for expected, scores in zip(here, json.loads(done.stdout.splitlines()[-1]), strict=True):
        np.testing.assert_allclose(scores, [item["score"] for item in expected], atol=1e-5)


@pytest.mark.parametrize("form", ["full", "remote-code"])
def test_adapters_become_a_whole_model(hub_here, adapters, trained, form):
    push_folder(adapters, "org/other", form=form)
    files = hub_here.files("org/other")
    assert "adapter_config.json" not in files and ("modeling_sam3i.py" in files) == (form == "remote-code")
    for name in ("config.json", "processor_config.json"):
        assert ("auto_map" in json.loads(files[name])) == (form == "remote-code")
    assert same(Sam3IForInstructionSegmentation.from_pretrained("org/other"), trained)


def test_whole_model_gives_its_adapters(hub_here, whole, trained):
    with pytest.raises(ValueError, match="--base"):
        push_folder(whole, "org/other", form="adapter")
    push_folder(whole, "org/other", form="adapter", base_model="org/sam3")
    assert "config.json" not in hub_here.files("org/other")
    assert same(Sam3IForInstructionSegmentation.from_pretrained("org/other"), trained)


def test_another_form_leaves_nothing_of_the_first(hub_here, whole, adapters, trained):
    push_folder(whole, "org/changing", form="remote-code")
    HfApi().upload_file(repo_id="org/changing", path_or_fileobj=b"mine", path_in_repo="notes.txt")
    push_folder(adapters, "org/changing")
    files = hub_here.files("org/changing")
    assert files["notes.txt"] == b"mine"
    assert not {"config.json", "model.safetensors", "modeling_sam3i.py"} & set(files)
    assert same(Sam3IForInstructionSegmentation.from_pretrained("org/changing"), trained)
    push_folder(whole, "org/changing")
    assert "adapter_config.json" not in hub_here.files("org/changing")


def test_revision_and_message(hub_here, adapters):
    push_folder(adapters, "org/branches", revision="next", message="Try it")
    assert set(hub_here.files("org/branches")) == {".gitattributes"}
    assert hub_here.repositories["model", "org/branches"].commit("next").title == "Try it"
    assert Sam3IForInstructionSegmentation.from_pretrained("org/branches", revision="next")


def test_methods_of_transformers(hub_here, trained):
    model, processor = trained
    model.push_to_hub("org/methods")
    processor.push_to_hub("org/methods")
    assert same(Sam3IForInstructionSegmentation.from_pretrained("org/methods"), trained)
    card = ModelCard.load("org/methods")
    assert "[More Information Needed]" not in card.text and "instruction-segmentation" in card.data.tags
    assert card.data.base_model == "org/sam3"
    assert pipeline("instruction-segmentation", model="org/methods").task == "instruction-segmentation"


def test_lora_on_top_keeps_its_own_card(hub_here, trained):
    from peft import LoraConfig

    model, _ = trained
    model.add_adapter(LoraConfig(target_modules=["q_proj"], r=2), adapter_name="domain")
    model.push_to_hub("org/lora")
    files = hub_here.files("org/lora")
    assert json.loads(files["adapter_config.json"])["peft_type"] == "LORA"
    assert b"instruction adapters" not in files["README.md"]


def test_card_edited_on_the_hub_stays(hub_here, trained, whole):
    push_folder(whole, "org/card", license="mit")
    text = hub_here.files("org/card")["README.md"].decode()
    edited = text.replace("# card", "# The card of a friend").replace("- sam3\n", "- sam3\n- mine\n")
    HfApi().upload_file(repo_id="org/card", path_or_fileobj=edited.encode(), path_in_repo="README.md")
    for push in (lambda: push_folder(whole, "org/card"), lambda: trained[0].push_to_hub("org/card")):
        push()
        card = hub_here.files("org/card")["README.md"].decode()
        assert "# The card of a friend" in card and "- mine" in card and "license: mit" in card


def test_own_card_in_the_folder_wins(hub_here, whole):
    push_folder(whole, "org/card")
    (whole / "README.md").write_text("---\nlicense: mit\n---\n# My words\n")
    push_folder(whole, "org/card")
    card = hub_here.files("org/card")["README.md"].decode()
    assert card.endswith("# My words\n") and "pipeline_tag: image-segmentation" in card
    assert (whole / "README.md").read_text() == "---\nlicense: mit\n---\n# My words\n"


def refusal(folder, repo_id="org/new", **options):
    with pytest.raises(PushError) as error:
        push_folder(folder, repo_id, **options)
    return str(error.value)


def test_offline_and_logged_out(hub_here, whole, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refusal(whole)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(whole)
    assert hub_here.requests == [] or all(method in ("GET", "HEAD") for method, *_ in hub_here.requests)


def test_wrong_token_and_no_permission(hub_here, whole, monkeypatch):
    assert "does not accept the token" in refusal(whole, token="hf_wrong")
    reader = hub_here.add_user("ben", role="read")
    assert "may not write to org/new" in refusal(whole, token=reader)
    monkeypatch.setenv("HF_TOKEN", hub_here.add_user("cleo", ("club",)))
    message = refusal(whole)
    assert "cleo" in message and "club" in message and "rights to create" in message
    hub_here.seed("org/there", whole)
    before = hub_here.files("org/there")
    assert "may not write to org/there" in refusal(whole, "org/there")
    assert hub_here.files("org/there") == before
    assert ("model", "org/new") not in hub_here.repositories


def test_private_means_private(hub_here, whole):
    push_folder(whole, "org/open")
    before = hub_here.repositories["model", "org/open"].commit("main").oid
    assert "is public" in refusal(whole, "org/open", private=True)
    assert hub_here.repositories["model", "org/open"].commit("main").oid == before
    push_folder(whole, "org/closed", private=True)
    push_folder(whole, "org/closed", private=True)
    assert hub_here.repositories["model", "org/closed"].private


def test_names_and_foreign_repositories(hub_here, whole, tmp_path):
    assert "not pushed" in refusal(whole, "a/b/c")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    hub_here.seed("org/bert", tmp_path / "other")
    assert "a model of the type 'bert'" in refusal(whole, "org/bert")
    assert set(hub_here.files("org/bert")) == {"config.json"}


@pytest.mark.parametrize("method, path", [("PUT", "/large/"), ("POST", "/commit/"), ("POST", "/preupload/")])
def test_interrupted_upload(hub_here, whole, trained, method, path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    push_folder(whole, "org/kept")
    before = hub_here.files("org/kept")
    model, processor = trained
    with torch.no_grad():
        next(iter(model.adapter_parameters().values())).add_(1)
    model.save_pretrained(whole)
    hub_here.fail(method, path, times=20)
    message = refusal(whole, "org/kept")
    assert "Nothing was committed" in message and hub_here.endpoint in message
    assert hub_here.files("org/kept") == before
    hub_here.clear_faults()
    push_folder(whole, "org/kept")
    assert same(Sam3IForInstructionSegmentation.from_pretrained("org/kept"), trained)


def test_hub_out_of_order(hub_here, whole):
    hub_here.fail("POST", "/commit/", 503, message="maintenance")
    assert "out of order (it says: maintenance)" in refusal(whole)


def test_base_that_others_lack(hub_here, adapters, tmp_path, tiny_stock_repos):
    assert "not on the Hub" in refusal(adapters, base_model="org/nowhere")
    config = json.loads((adapters / "adapter_config.json").read_text())
    for base, found in ((str(tiny_stock_repos["sam3"]), "others do not have"), (None, "name none")):
        text = json.dumps(config | {"base_model_name_or_path": base})
        (adapters / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=found):
            push_folder(adapters, "org/new")
    assert ("model", "org/new") not in hub_here.repositories
    push_folder(adapters, "org/new", base_model="org/sam3")
    pushed = json.loads(hub_here.files("org/new")["adapter_config.json"])
    assert pushed["base_model_name_or_path"] == "org/sam3"
    assert json.loads((adapters / "adapter_config.json").read_text())["base_model_name_or_path"] is None


def test_gated_or_vanished_base(hub_here, adapters, tmp_path):
    push_folder(adapters, "org/adapters")
    hub_here.repositories["model", "org/sam3"].gated = True
    stranger = hub_here.add_user("dan")
    for loader in (Sam3IForInstructionSegmentation, AutoModel):
        with pytest.raises(OSError, match="gated repo") as error:
            loader.from_pretrained("org/adapters", token=stranger, cache_dir=tmp_path / "one")
        assert "org/sam3" in str(error.value)
    del hub_here.repositories["model", "org/sam3"]
    with pytest.raises(BaseModelNotFoundError, match="works on org/sam3, which cannot be loaded"):
        Sam3IForInstructionSegmentation.from_pretrained("org/adapters", cache_dir=tmp_path / "two")


def test_folders_that_are_no_model(hub_here, whole, adapters, tmp_path):
    empty = tmp_path / "empty"
    (empty / "stage-1-simple").mkdir(parents=True)
    cases = {"not come to its end": empty}
    for name, content in (("lora", {"peft_type": "LORA"}), ("nothing", {"peft_type": "SAM3I"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(content))
    cases |= {"adapters of the method 'LORA'": tmp_path / "lora", "Expected weights": tmp_path / "nothing"}
    both = tmp_path / "both"
    both.mkdir()
    for folder in (whole, adapters):
        for path in folder.glob("*.json"):
            (both / path.name).write_bytes(path.read_bytes())
    cases["found both"] = both
    for message, folder in cases.items():
        with pytest.raises(ValueError, match=message):
            push_folder(folder, "org/new")
    (whole / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="processor beside the model"):
        push_folder(whole, "org/new")
    assert ("model", "org/new") not in hub_here.repositories


def test_what_stays_at_home(hub_here, adapters):
    for name in ("training_args.bin", "optimizer.pt", "projector.safetensors", ".secret.json", "_draft.json"):
        (adapters / name).write_bytes(b"{}")
    (adapters / "stage-1-simple" / "checkpoint-4").mkdir(parents=True)
    (adapters / "stage-1-simple" / "checkpoint-4" / "trainer_state.json").write_text(
        '{"global_step": 4, "epoch": 1, "train_batch_size": 2, "log_history": []}'
    )
    push_folder(adapters, "org/adapters")
    expected = {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    expected |= {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(hub_here.files("org/adapters")) == expected


def test_command_line(hub_here, adapters, whole):
    from sam3i.cli import app

    run = CliRunner().invoke
    done = run(app, ["push", str(adapters), "org/cli", "--private", "--message", "Hello", "--license", "apache-2.0"])
    assert done.exit_code == 0, done.output
    assert f"{hub_here.endpoint}/org/cli" in done.output
    repository = hub_here.repositories["model", "org/cli"]
    assert repository.private and repository.commit("main").title == "Hello"
    done = run(app, ["push", str(whole), "org/cli2", "--as", "adapter", "--base", "org/sam3", "--revision", "one"])
    assert done.exit_code == 0, done.output
    assert "adapter_config.json" in hub_here.files("org/cli2", "one")
    done = run(app, ["push", str(whole), "org/cli", "--as", "half"])
    assert done.exit_code == 2
    hub_here.fail("POST", "/commit/", 500)
    done = run(app, ["push", str(whole), "org/cli"])
    assert done.exit_code == 1 and "Error: The Hub is out of order" in done.output


def test_only_what_belongs_to_a_model_leaves(hub_here, whole, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text("secret")
    (whole / "credentials.json").write_text("secret")
    (whole / "notes.md").write_text("secret")
    (whole / "tokenizer_extra.py").write_text("secret")
    (whole / "vocab.json").unlink(missing_ok=True)
    (whole / "vocab.json").symlink_to(secret)
    push_folder(whole, "org/careful")
    files = hub_here.files("org/careful")
    assert "model.safetensors" in files
    assert not {"credentials.json", "notes.md", "tokenizer_extra.py", "vocab.json"} & set(files)
