# SPDX-License-Identifier: Apache-2.0
"""`sam3i predict`: whole folders, resumed, with faults named, in the formats of other tools."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from transformers import Sam3ImageProcessor, pipeline
from typer.testing import CliRunner

from sam3i.cli import app
from sam3i.processing import predict as module
from sam3i.processing.frames import read_frames
from sam3i.processing.images import ImageError
from sam3i.processing.predict import PredictionSettings, predict_images
from sam3i.processing.predict_tasks import PredictionTask, find_images, read_tasks
from sam3i.processing.processing_sam3i import Sam3IProcessor
from sam3i.registration import TASK

ALL = PredictionSettings(threshold=0.0, max_overlap=None)  # random weights: keep every query


@pytest.fixture
def processor(tiny_tokenizer):
    return Sam3IProcessor(Sam3ImageProcessor(size={"height": 56, "width": 56}), tiny_tokenizer)


@pytest.fixture
def pipe(tiny_model, processor):
    return pipeline(TASK, model=tiny_model, processor=processor, device="cpu")


@pytest.fixture
def folder(tmp_path):
    """Two images, a broken one, and a file that is none."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "more/a.png"):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("hello")
    return folder


def test_images_are_found_in_folders_and_globs_and_the_rest_is_counted(folder):
    images, left_out = find_images([folder])
    assert images == [str(folder / name) for name in ("a.png", "broken.jpg", "more/a.png")]
    assert dict(left_out) == {".txt": 1}
    assert find_images([str(folder / "*.png"), "http://a/b.png"])[0] == [str(folder / "a.png"), "http://a/b.png"]
    assert find_images([str(folder / "**/*.png")])[0] == [str(folder / "a.png"), str(folder / "more/a.png")]
    with pytest.raises(ValueError, match="none of them an image"):
        find_images([str(folder / "*.txt")])


def test_results_are_no_images_of_the_next_run(folder):
    images, left_out = find_images([folder], folder / "more")
    assert images == [str(folder / name) for name in ("a.png", "broken.jpg")]
    assert left_out == {".txt": 1, f"in {folder / 'more'}, where results are written": 1}
    with pytest.raises(ValueError, match=r"0 files outside .*, where results are written, and none"):
        find_images([folder / "more"], folder / "more")
    assert find_images([folder / "more" / "a.png"], folder / "more")[0] == [str(folder / "more" / "a.png")]  # by name


def test_files_of_a_record_made_anew_do_not_stay(pipe, folder, tmp_path):
    tasks, out = read_tasks([str(folder / "a.png")], ["dog"]), tmp_path / "out"
    first = predict_images(pipe, tasks, out, ALL, ("png", "overlay", "yolo"))
    assert first.removed == 0 and len(list(out.glob("a.*_*.png"))) == 6
    (out / "a.10_own.png").write_bytes(b"somebody's")
    second = predict_images(pipe, tasks, out, PredictionSettings(threshold=0.99), ("png",))
    assert second.removed == 8 and {path.name for path in out.glob("a.*")} == {"a.10_own.png", "a.json"}


def test_instructions_come_from_files(tmp_path):
    (tmp_path / "all.txt").write_text("the dog\n\nthe cat\n")
    (task,) = read_tasks(["x/a.png"], ["cow"], "auto", tmp_path / "all.txt")
    assert task == PredictionTask("x/a.png", ("cow", "the dog", "the cat"), ("auto",) * 3)
    lines = [{"text": "dog"}, {"image": "a.png", "text": ["cat", "cow"], "level": "simple"}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_tasks(["x/a.png", "x/b.png"], [], "auto", tmp_path / "own.jsonl")
    assert first.texts == ("dog", "cat", "cow") and first.levels == ("auto", "simple", "simple")
    assert second.texts == ("dog",)
    (task,) = read_tasks([], [], "auto", tmp_path / "own.jsonl")
    assert task.image == str(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"images that are given, found a\.png"):
        read_tasks(["x/b.png"], [], "auto", tmp_path / "own.jsonl")
    (tmp_path / "own.jsonl").write_text('{"text": "dog"}\n{"text": 3}\n')
    with pytest.raises(ValueError, match=r"own\.jsonl, line 2: expected \"text\""):
        read_tasks(["a.png"], [], "auto", tmp_path / "own.jsonl")
    (tmp_path / "photo.txt").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"text in UTF-8 in .*photo\.txt, found other bytes"):
        read_tasks(["a.png"], [], "auto", tmp_path / "photo.txt")
    with pytest.raises(ValueError, match="Expected an instruction for a.png"):
        read_tasks(["a.png"], [])
    with pytest.raises(ValueError, match="at least one image"):
        read_tasks([], ["dog"])


def test_the_record_of_an_image(pipe, folder, tmp_path):
    texts = ["dog", "something that sits"]
    tasks = read_tasks([str(folder / "a.png")], texts)
    (done,) = predict_images(pipe, tasks, tmp_path / "out", ALL).predictions
    assert [(found.text, found.level, found.count) for found in done.found] == [
        ("dog", "concept", 6),
        ("something that sits", "complex", 6),
    ]
    assert done.files == [tmp_path / "out" / "a.overlay.png"] and Image.open(done.files[0]).width == 480
    document = json.loads(done.record.read_text())
    assert (document["width"], document["height"], document["threshold"]) == (60, 40, 0.0)
    expected = pipe(str(folder / "a.png"), text=texts, threshold=0.0, max_overlap=None)
    for entry, text, row in zip(document["results"], texts, expected, strict=True):
        assert entry["text"] == text and len(entry["instances"]) == 6
        for instance, reference in zip(entry["instances"], row, strict=True):
            assert np.array_equal(coco_mask.decode(instance["segmentation"]) * 255, np.array(reference["mask"]))


def test_what_scored_just_below_the_threshold_is_hinted_at(pipe, folder, tmp_path):
    tasks = read_tasks([str(folder / "a.png")], ["the red dog"])
    (done,) = predict_images(pipe, tasks, tmp_path / "out", PredictionSettings(threshold=0.99)).predictions
    (found,) = done.found
    assert found.count == 0 and 0.05 < found.best_score < 0.99 and found.level == "simple"
    assert f"the best candidate has {found.best_score:.2f}" in str(found)


def test_a_run_goes_on_with_what_is_missing_and_makes_anew_what_changed(pipe, folder, tmp_path, monkeypatch):
    tasks = read_tasks([str(folder / "a.png"), str(folder / "more" / "a.png")], ["dog", "the cat"])
    segmented = []
    segment = module._segment
    monkeypatch.setattr(module, "_segment", lambda *args: segmented.append(args[1].image) or segment(*args))
    first = predict_images(pipe, tasks, tmp_path / "out", ALL)
    records = [done.record for done in first.predictions]
    assert len(segmented) == 2 and len(set(records)) == 2  # both files are called a.png
    kept = records[0].read_bytes()
    records[1].write_text("cut o")
    second = predict_images(pipe, tasks, tmp_path / "out", ALL)
    assert segmented[2:] == [tasks[1].image] and second.replaced == 1
    assert [done.resumed for done in second.predictions] == [True, False]
    assert records[0].read_bytes() == kept and second.predictions[0].found == first.predictions[0].found
    Image.new("RGB", (60, 40)).save(folder / "a.png")
    third = predict_images(pipe, tasks, tmp_path / "out", ALL)
    assert segmented[3:] == [tasks[0].image] and third.replaced == 1
    predict_images(pipe, tasks, tmp_path / "out", PredictionSettings(threshold=0.1))
    assert len(segmented) == 6
    next(pipe.model.parameters()).data.add_(0.1)
    predict_images(pipe, tasks, tmp_path / "out", PredictionSettings(threshold=0.1))
    assert len(segmented) == 8


def test_faulty_images_are_named_and_the_run_goes_on(pipe, folder, tmp_path):
    images, _ = find_images([folder])
    run = predict_images(pipe, read_tasks(images, ["dog"]), tmp_path / "out", ALL)
    assert len(run.predictions) == 2
    ((name, reason),) = run.faults.items()
    assert name.endswith("broken.jpg") and "Cannot read image" in reason


def test_each_image_is_encoded_once(pipe, folder, tmp_path, monkeypatch):
    calls = []
    encoder = pipe.model.vision_encoder
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    predict_images(pipe, read_tasks([str(folder / "a.png")], ["a", "the b", "c"]), tmp_path / "out", ALL)
    assert len(calls) == 1


def test_all_formats_of_a_folder(pipe, folder, tmp_path):
    images = [str(folder / "a.png"), str(folder / "more" / "a.png")]
    out, formats = tmp_path / "out", ("json", "png", "yolo", "coco", "label-studio")
    run = predict_images(pipe, read_tasks(images, ["dog", "the cat"]), out, ALL, formats)
    found = sum(item.count for done in run.predictions for item in done.found)
    masks = [file for done in run.predictions for file in done.files]
    assert len(masks) == found == 24 and set(np.unique(np.asarray(Image.open(masks[0])))) <= {0, 255}
    coco = COCO(out / "coco_images.json").loadRes(str(out / "coco_results.json"))
    assert len(coco.getAnnIds()) == found and [c["name"] for c in coco.loadCats([1, 2])] == ["dog", "the cat"]
    assert (out / "classes.txt").read_text() == "dog\nthe cat\n"
    labels = [path.read_text().splitlines() for path in sorted(out.glob("a-*.txt"))]
    assert len(labels) == 2 and {line.split()[0] for line in labels[0]} == {"0", "1"}
    studio = json.loads((out / "label_studio.json").read_text())
    assert [task["data"]["image"] for task in studio] == images
    ids = [region["id"] for region in studio[0]["predictions"][0]["result"]]
    assert len(ids) == len(set(ids)) > 5 and '<Label value="the cat"/>' in (out / "label_studio.xml").read_text()
    assert not list(out.glob(".*partial*"))


@pytest.fixture
def video(tmp_path):
    """Five frames, each of a color."""
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for gray in range(0, 250, 50):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (gray, gray, gray)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_of_a_video_are_predicted_and_resumed(pipe, video, tmp_path):
    assert [int(np.asarray(image).mean().round(-1)) for _, image in read_frames(video)] == [0, 50, 100, 150, 200]
    run = predict_images(pipe, read_tasks([str(video)], ["the dog"]), tmp_path / "out", ALL, ["coco"], every=2)
    assert [done.record.name for done in run.predictions] == [f"clip.00000{n}.json" for n in (0, 2, 4)]
    assert run.predictions[1].image == f"{video}#2" and all(done.found[0].count for done in run.predictions)
    run = predict_images(pipe, read_tasks([str(video)], ["the dog"]), tmp_path / "out", ALL, ["coco"])
    assert [done.resumed for done in run.predictions] == [True, False, True, False, True]
    assert len(json.loads((tmp_path / "out" / "coco_images.json").read_text())["images"]) == 5


def test_a_broken_video_is_a_fault_of_its_own(pipe, video, folder, tmp_path):
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "cut.mp4").write_bytes(video.read_bytes()[:300])
    (folder / "broken.jpg").unlink()
    images, _ = find_images([folder])
    run = predict_images(pipe, read_tasks(images, ["dog"]), tmp_path / "out", ALL)
    assert len(run.predictions) == 2 and len(run.faults) == 2
    assert all("Cannot read video" in reason for reason in run.faults.values())


@pytest.mark.parametrize(
    ("image", "text", "options", "error"),
    [
        ("missing.png", "dog", {}, ImageError),
        ("a.png", "", {}, ValueError),
        ("a.png", "dog", {"settings": PredictionSettings(threshold=2)}, ValueError),
        ("a.png", "dog", {"settings": PredictionSettings(boxes=((0, 0, 999, 9),))}, ValueError),
        ("a.png", "dog", {"formats": ["jpeg"]}, ValueError),
    ],
)
def test_nothing_is_written_when_it_fails(pipe, folder, tmp_path, image, text, options, error):
    with pytest.raises(error):
        predict_images(pipe, [PredictionTask(str(folder / image), (text,), ("auto",))], tmp_path / "out", **options)
    assert not [path for path in tmp_path.glob("out/*") if not path.name.startswith(".")]


@pytest.mark.parametrize("name", ["typo", "org/typo", "./typo"])
def test_a_model_that_is_not_there_is_named(name, folder, tmp_path):
    call = ["predict", "--model", name, "--image", str(folder / "a.png"), "--text", "star"]
    done = CliRunner().invoke(app, [*call, "--output", str(tmp_path / "out")])
    assert done.exit_code == 1 and name in done.stderr.splitlines()[-1]


def test_a_device_that_is_not_there_is_named(folder):
    with pytest.raises(ValueError, match="Expected a `device` of this machine, found 'zpu'"):
        predict_images("anything", read_tasks([str(folder / "a.png")], ["dog"]), device="zpu")


def test_the_command_says_what_was_found_and_fails_for_faults(pipe, folder, tmp_path):
    pipe.save_pretrained(tmp_path / "repo")
    call = ["predict", "--model", str(tmp_path / "repo"), "--device", "cpu", "--text", "the red dog"]
    call += ["--output", str(tmp_path / "out"), "--threshold", "0.99"]
    done = CliRunner().invoke(app, [*call, "--image", str(folder / "a.png")])
    assert done.exit_code == 0 and "0 instances (simple): the red dog; the best candidate has" in done.output
    done = CliRunner().invoke(app, [*call, "--image", str(folder / "a.png")])
    assert "done before with these settings" in done.output
    done = CliRunner().invoke(app, [*call, "--image", str(folder), "--format", "json"])
    assert done.exit_code == 1 and "2 of 3 images (0 were done before" in done.output
    assert "broken.jpg" in done.output and "left out, no images: 1 .txt" in done.output
    done = CliRunner().invoke(app, [*call, "--image", str(folder / "gone.png")])
    assert done.exit_code == 1 and "gone.png" in done.output and len(done.output.strip().splitlines()) == 1
