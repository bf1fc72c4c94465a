# SPDX-License-Identifier: Apache-2.0
"""Every workflow in examples/ starts, runs a little and prints what it promises; `run_all.py` checks their targets."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LITTLE = ["--steps", "2", "--scenes", "6", "--test-scenes", "2"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs an example in this process, in an empty folder, and returns what it prints."""

    def run_example(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_scripts_are_short():
    names = runpy.run_path(str(EXAMPLES / "run_all.py"))["SCRIPTS"]
    lengths = {name: len((EXAMPLES / f"{name}.py").read_text().splitlines()) for name in names}
    assert len(lengths) == 9 and max(lengths.values()) <= 80, lengths


def test_inference(run, tmp_path):
    output = run("inference")
    assert re.search(r"scene: [1-9] instances of '.+' in", output) and "level simple" in output
    assert (tmp_path / "runs" / "inference" / "scene.png").is_file()


def test_many_instructions(run):
    output = run("many_instructions")
    assert re.search(r"12 instructions, 1 pictures encoded, .* \(12 pictures encoded\)", output)
    assert all(f"\n{level}" in f"\n{output}" for level in ("concept", "simple", "complex"))


def test_inference_on_own_pictures(run, tmp_path):
    from PIL import Image

    for name in ("one", "two"):
        Image.new("RGB", (60, 40), "white").save(tmp_path / f"{name}.png")
    pictures = ["--images", str(tmp_path / "one.png"), str(tmp_path / "two.png"), "--text", "the red circle"]
    assert re.search(r"one: \d+ instances.*two: \d+ instances", run("inference", *pictures), re.DOTALL)
    output = run("many_instructions", *pictures, "circle", "the square on the left")
    assert "6 instructions, 2 pictures encoded" in output


def test_evaluate(run):
    output = run("evaluation", "--scenes", "1")
    table = {line.split()[0] for line in output.splitlines() if line.strip()}
    assert {"sam3-i", "sam3", "sam3-concept", "agent"} <= table


def test_shapes_score_prints_every_level_kind_and_family(run):
    output = run("shapes_score", "--model", str(EXAMPLES / "shapes_tiny"), "--seed", "5", "--cases", "2")
    names = {line.split("  ")[0] for line in output.splitlines()}
    assert {"concept", "simple", "complex", "all", "1-to-1", "1-to-N", "1-to-all", "none", "held-out words"} <= names
    counts = re.findall(r"^all +(\d+) +\d+\.\d +\d+\.\d\d", output, re.MULTILINE)
    assert (
        counts == ["10", "8", "8"] and len(re.findall(r"^expected calibration error: \d", output, re.MULTILINE)) == 3
    )


def test_convert_checkpoint(run, tmp_path):
    output = run("convert_checkpoint")
    arrived, everything = re.search(r"(\d+) of (\d+) weights arrived bit for bit", output).groups()
    assert arrived == everything and int(everything) > 400
    assert (tmp_path / "runs" / "converted" / "conversion_report.json").is_file()


def test_finetune_domain(run, tmp_path):
    output = run("finetune_domain", *LITTLE)
    assert "concepts unchanged, bit for bit: 1 (at least 1): met" in output
    assert "weights changed outside of the simple path: 0 (at most 0): met" in output
    [folder] = (tmp_path / "runs").glob("finetune_domain_*")
    assert (folder / "adapter_model.safetensors").is_file()


def test_finetune_lora(run, tmp_path):
    output = run("finetune_lora", *LITTLE)
    assert "concepts without the LoRA unchanged: 1 (at least 1): met" in output
    assert re.search(r"merged, greatest relative difference: .*: met", output)
    assert re.search(r"parameters trained: .* % \(at most 5\): met", output)
    assert (tmp_path / "runs" / "finetune_lora" / "merged" / "model.safetensors").is_file()


def test_combine_adapters(run):
    output = run("combine_adapters", *LITTLE)
    lines = [line.split("  ")[0] for line in output.splitlines()]
    assert re.search(r"both, above the better one: \S+ points", output)
    assert {"stock SAM3", "instruction adapter", "domain LoRA", "both"} <= set(lines)


def test_video(run, tmp_path):
    output = run("video", "--clips", "1")
    assert re.search(r"SAM3-I, video +\d\.\d{3} +\d\.\d{3}", output)
    assert (tmp_path / "runs" / "video.png").is_file()


def test_video_of_own_frames(run, tmp_path):
    (tmp_path / "frames").mkdir()
    for number in range(3):
        Image.new("RGB", (112, 112), (90, 30 * number, 40)).save(tmp_path / "frames" / f"{number}.png")
    frames, picture = str(tmp_path / "frames"), tmp_path / "found" / "out.png"
    output = run("video", "--frames", frames, "--text", "the red circle", "--output", str(picture))
    assert "'the red circle'" in output and picture.is_file()
    with pytest.raises(SystemExit):
        run("video", "--frames", frames)


def test_export_onnx_says_what_it_needs(run, monkeypatch):
    monkeypatch.setattr("sam3i.hub.publish.graphs.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"sam3i\[export\]"):
        run("export_onnx", "--levels", "simple")


@pytest.mark.slow
def test_export_onnx(run):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert "parity" in run("export_onnx", "--levels", "simple")


@pytest.mark.slow
def test_run_all_reports_what_fails(tmp_path):
    command = [sys.executable, str(EXAMPLES / "run_all.py"), "--only", "inference", "--limit", "0"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and "slower than 0 s" in result.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_identities_are_kept_on_twenty_clips(run):
    output = run("video", "--clips", "20")
    scores = {
        name: [float(value) for value in re.search(rf"^{name} +(\S+) +(\S+)$", output, re.MULTILINE).groups()]
        for name in ("stock SAM3, frame by frame", "SAM3-I, frame by frame", "SAM3-I, video")
    }
    stock, frames, video = scores.values()
    assert video[0] > stock[0] + 0.15 and video[1] > stock[1] + 0.15
    assert video[0] > frames[0] - 0.05 and video[1] > frames[1] - 0.05
