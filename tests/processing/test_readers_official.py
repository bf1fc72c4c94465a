# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sam3i.processing.datasets import json_stream
from sam3i.processing.datasets.coco_index import CocoIndex
from sam3i.processing.datasets.conversion import convert_dataset
from sam3i.processing.datasets.faults import DatasetFormatError, RecordFault
from sam3i.processing.datasets.image_roots import ReadOptions
from sam3i.processing.datasets.json_stream import JsonSyntaxError, iterate_elements, read_elements
from sam3i.processing.datasets.loading import READERS, detect_format, load_instruction_dataset, read_items
from sam3i.processing.masks import box_of_rle, decode_mask, encode_mask


def rows_of(path, format="official", **kwargs):
    items = list(read_items(path, format, ReadOptions(**kwargs)))
    assert not [item for item in items if isinstance(item, RecordFault)], items
    return items


@pytest.fixture
def example(reference_dir, tmp_path):
    path = tmp_path / "sam3i_val.json"
    path.write_text((reference_dir / "dataset_example.json").read_text())
    return path


def test_example_of_the_format_description(example):
    first, second = rows_of(example)
    assert first["concept"] == ["dog"] and len(first["simple"]) == 3 and len(first["complex"]) == 2
    assert (first["width"], first["height"], first["annotation_ids"]) == (64, 48, [10])
    # The authors' loader turns these into the normalised cxcywh boxes that the description quotes.
    for row, expected in (
        (first, [[0.28125, 0.4375, 0.3125, 0.625]]),
        (second, [[0.25] * 4, [0.625, 0.25, 0.25, 0.25]]),
    ):
        size = [row["width"], row["height"]] * 2
        boxes = [[(x + w / 2), (y + h / 2), w, h] for x, y, w, h in row["boxes"]]
        assert np.allclose(np.array(boxes) / size, expected)
    left, right = (decode_mask(mask) for mask in second["masks"])
    assert left.sum() == right.sum() == 100 and left[5:15, 5:15].all() and right[5:15, 20:30].all()


def test_pictures_are_found_beside_the_file_or_in_shared_roots(example, tmp_path):
    assert rows_of(example)[0]["image"] is None
    folder = tmp_path / "coco" / "2017"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 48), "blue").save(folder / "000000000001.jpg")
    dataset = load_instruction_dataset(example, image_root={"val2017": str(folder)})
    assert dataset[0]["image"].size == (64, 48)
    faults = read_items(example, "official", ReadOptions({"train2014": "x"}))
    assert "no image root for 'val2017" in next(faults).found
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "val2017" / "000000000001.jpg")
    assert rows_of(example)[0]["image"] == str(tmp_path / "val2017/000000000001.jpg")


@pytest.mark.parametrize("streaming", [False, True])
def test_round_trips(example, tmp_path, streaming):
    dataset = load_instruction_dataset(example, streaming=streaming)
    before = list(dataset)
    for format, name in (("official", "o.json"), ("jsonl", "j.jsonl"), ("parquet", "p.parquet")):
        assert convert_dataset(dataset, tmp_path / "out" / name, format) == 2
        assert list(load_instruction_dataset(tmp_path / "out" / name)) == before


def test_auto_detection_does_not_depend_on_the_order_of_keys(example):
    data = json.loads(example.read_text())
    assert detect_format(example) == "official"
    data["padding"] = ["x" * 1000] * 3000
    example.write_text(json.dumps({key: data[key] for key in ("padding", "annotations", "categories", "images")}))
    assert detect_format(example) == "official"
    assert len(rows_of(example)) == 2


def test_an_edited_file_is_read_again(example):
    assert len(load_instruction_dataset(example)) == 2
    data = json.loads(example.read_text())
    data["images"].append({**data["images"][0], "id": 3})
    example.write_text(json.dumps(data))
    dataset = load_instruction_dataset(example)
    assert len(dataset) == 3 and dataset[2]["target_kind"] == "none" and dataset[2]["masks"] == []


def test_a_fault_stops_the_loading_unless_skipped(example):
    data = json.loads(example.read_text())
    data["annotations"][1]["segmentation"]["counts"] = "]6:"
    example.write_text(json.dumps(data))
    with pytest.raises(DatasetFormatError, match=r"annotations\[1\] \(id 11\): segmentation: found the runs cover"):
        load_instruction_dataset(example)
    dataset = load_instruction_dataset(example, skip_faulty=True)
    assert dataset["row_id"][:] == ["1"]


def test_unknown_formats_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    for path in (tmp_path, tmp_path / "a.json"):
        with pytest.raises(DatasetFormatError, match="no known format"):
            load_instruction_dataset(path)
    with pytest.raises(DatasetFormatError, match="does not exist"):
        load_instruction_dataset(tmp_path / "absent.json")
    with pytest.raises(DatasetFormatError, match="must be one of auto, official"):
        load_instruction_dataset(tmp_path / "a.json", format="cocoa")
    assert not any(reader.matches(tmp_path / "a.json") for reader in READERS.values())


DOCUMENTS = [
    [],
    {},
    [1, 2.5, -3e5, True, None, "a"],
    {"images": [{"id": 1, "text": 'é "quoted" \\ [{]} 水'}], "n": {"k": [1]}, "annotations": [], "s": "x"},
    [{"nested": [[[1]], {"a": {}}]}] * 50,
]


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 16])
@pytest.mark.parametrize("style", [{}, {"indent": 1}, {"ensure_ascii": False, "separators": (",", ":")}])
def test_streaming_reads_what_json_reads(tmp_path, monkeypatch, document, chunk, style):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    monkeypatch.setattr(json_stream._Scanner.more, "__defaults__", (chunk,))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document, **style), encoding="utf-8")
    found = {} if isinstance(document, dict) else []
    with open(path, "rb") as file:
        for element in iterate_elements(path):
            (value,) = read_elements(file, [(element.start, element.end)])
            if isinstance(found, list):
                assert element.position == len(found)
                found.append(value)
            elif element.position < 0:
                found[element.key] = value
            else:
                found.setdefault(element.key, []).append(value)
    expected = {k: v for k, v in document.items() if v != []} if isinstance(document, dict) else document
    assert found == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"images": [\n{"id": 1},\n{"id": }\n]}', 3),
        ("[\n1,\n2,\n]", 4),
        ("[1\n2]", 2),
        ('{"a": 1\n"b": 2}', 2),
        ('{"a": [1, 2', 1),
        ('{"a": "no end\n', 1),
        ("hello", 1),
        ("", 1),
        ("[1]\n[2]", 2),
        ("{1: 2}", 1),
    ],
)
def test_syntax_faults_name_the_line(tmp_path, text, line):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(JsonSyntaxError, match=f"line {line}, byte"):
        list(iterate_elements(path))


def test_index_finds_records_by_id(example):
    index = CocoIndex(example)
    assert index.annotation(12)["bbox"] == [20, 5, 10, 10] and index.annotation(13) is None
    assert index.image(2)["width"] == 40 and index.image(0) is None
    assert [label for label, _ in index.annotations_of(2)] == ["annotations[1] (id 11)", "annotations[2] (id 12)"]
    assert len(index) == 2 and not index.faults and not list(index.orphans())


READ_ALL = """
import json, sys, time
from sam3i.processing.datasets.image_roots import ReadOptions
from sam3i.processing.datasets.loading import iterate_rows

def peak():
    # The high-water mark of this process alone: getrusage hands on that of the process it was forked from.
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

before, start = peak(), time.perf_counter()
rows = sum(1 for _ in iterate_rows(sys.argv[1], "official", ReadOptions()))
print(json.dumps({"rows": rows, "seconds": time.perf_counter() - start, "megabytes": peak() - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_a_file_of_200_000_records_is_read_in_little_memory(tmp_path):
    """226 MB of JSON, which `json.load` turns into a gigabyte of objects."""
    path = tmp_path / "large.json"
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(2000):
        mask = np.zeros((480, 640), dtype=bool)
        runs = rng.integers((50, 20), (200, 200), (150, 2))
        for column, (top, height) in enumerate(runs, start=int(rng.integers(400))):
            mask[top : top + height, column] = True
        rle = encode_mask(mask)
        masks.append(f'"bbox": {box_of_rle(rle)}, "segmentation": {json.dumps(rle)}')
    texts = {"concept": ["cup"], "simple_query": ["the cup " * 3] * 3, "complex_query": ["to drink from " * 4] * 3}
    image = json.dumps({"file_name": "x.jpg", "width": 640, "height": 480, "text_inst_input": texts})[1:]
    with open(path, "w") as file:
        file.write('{"images": [' + ",\n".join(f'{{"id": {n}, {image}' for n in range(200_000)))
        file.write('],\n"annotations": [')
        for n in range(200_000):
            comma = ",\n" if n else ""
            file.write(f'{comma}{{"id": {n}, "image_id": {n}, "category_id": 1, "iscrowd": 0, ')
            file.write(f"{masks[n % 2000]}}}")
        file.write('],\n"categories": [{"id": 1, "name": "object"}]}')
    command = [sys.executable, "-c", READ_ALL, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(result.stdout)
    assert measured["rows"] == 200_000
    assert 0 < measured["megabytes"] < 200, measured
