# SPDX-License-Identifier: Apache-2.0
"""Small files of the shapes that real exports have: what each must get is stated here, case by case."""

from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from sam3i.cli import app
from sam3i.processing.cli import read_rows
from sam3i.processing.datasets.faults import DatasetFormatError, RowAccount
from sam3i.processing.images import ImageError, read_image
from sam3i.trainer.collator import usable_rows

CASES = Path(__file__).resolve().parents[2] / ".." / "shared" / "cases"
OK, FAULT = 0, 1
# (a folder with instructions, its instances alone): 0 reads it, 1 names a fault. "Read" says what is noted.
COCO = {
    "00_plain": (OK, OK),
    "01_rle_uncompressed": (OK, OK),
    "05_polygon_2_numbers": (FAULT, FAULT),
    "06_segmentation_list_of_empty": (FAULT, FAULT),
    "07_empty_part_among_polygons": (OK, OK),
    "08_flat_polygon": (FAULT, FAULT),
    "09_polygon_of_pairs": (FAULT, FAULT),
    "10_no_segmentation_key": (OK, OK),
    "11_segmentation_null": (OK, OK),
    "12_list_of_rle": (FAULT, FAULT),
    "14_boxes_only": (OK, OK),
    "15_no_iscrowd": (OK, OK),
    "16_iscrowd_string": (OK, OK),
    "17_iscrowd_bool": (OK, OK),
    "18_unknown_category": (FAULT, FAULT),
    "19_no_category_id": (FAULT, FAULT),
    "20_supercategory_missing": (OK, OK),
    "21_categories_empty": (OK, FAULT),  # without names and without instructions there is nothing to say
    "22_categories_missing": (OK, FAULT),
    "23_string_ids": (OK, OK),
    "24_numeric_string_ids": (OK, OK),
    "26_float_category_id": (OK, OK),
    "28_string_sizes": (OK, OK),
    "29_no_sizes": (OK, OK),
    "30_no_file_name": (FAULT, FAULT),
    "31_lvis_v1_coco_url": (OK, OK),
    "32_duplicate_annotation_ids": (FAULT, FAULT),
    "33_duplicate_image_ids": (FAULT, FAULT),
    "34_orphan_annotation": (FAULT, FAULT),
    "35_bom": (OK, OK),
    "36_utf16": (FAULT, FAULT),
    "37_crlf": (OK, OK),
    "38_nan_area": (FAULT, FAULT),
    "39_nan_bbox": (FAULT, FAULT),
    "40_nan_polygon": (FAULT, FAULT),
    "42_id_2_63": (FAULT, OK),  # the instructions name another id
    "44_parent_path": (FAULT, FAULT),
    "45_absolute_elsewhere": (OK, OK),
    "46_url_as_file_name": (OK, OK),
    "47_drive_letter": (OK, OK),
    "48_box_2px_outside": (OK, OK),
    "50_box_missing": (OK, OK),
    "51_box_empty_list": (OK, OK),
    "52_polygon_outside": (FAULT, FAULT),
    "54_self_crossing": (OK, OK),
    "55_hole_as_second_polygon": (OK, OK),
    "56_image_without_annotations": (OK, OK),
    "57_same_file_two_ids": (OK, OK),
    "58_info_null_licenses_empty": (OK, OK),
    "60_labelme_background": (OK, OK),
    "61_exif_6_sizes_as_stored": (FAULT, FAULT),
    "62_exif_6_sizes_as_shown": (OK, OK),
    "63_grey": (OK, OK),
    "65_rgba_png": (OK, OK),
    "66_cmyk": (OK, OK),
    "67_palette_transparent": (OK, OK),
    "68_truncated_jpeg": (FAULT, FAULT),
    "69_picture_missing": (FAULT, FAULT),
    "70_gif_animated": (OK, OK),
    "72_trailing_comma": (FAULT, FAULT),
    "73_cut_off": (FAULT, FAULT),
    "74_latin1_name": (FAULT, FAULT),
    "75_unicode_name": (OK, OK),
    "76_list_of_one": (FAULT, FAULT),
    "77_category_name_upper": (OK, OK),
    "78_category_name_empty": (FAULT, FAULT),
    "79_category_name_number": (FAULT, FAULT),
    "80_area_string": (OK, OK),
    "81_uppercase_ext": (FAULT, FAULT),
    "82_name_without_ext": (FAULT, FAULT),
    "83_iscrowd_2": (OK, OK),
    "84_bbox_strings": (FAULT, FAULT),
    "85_one_polygon_nested_twice": (FAULT, FAULT),
    "86_zero_id": (OK, OK),
    "87_negative_ids": (OK, OK),
    "91_bbox_corners": (FAULT, FAULT),
    "94_rle_all_background": (FAULT, FAULT),
}
OFFICIAL = {
    "official_0_plain": OK,
    "official_1_query_is_string": FAULT,
    "official_2_no_concept": OK,
    "official_3_empty_complex": OK,
    "official_4_query_null": OK,
    "official_5_no_iscrowd": FAULT,
    "official_7_no_images": FAULT,
    "official_8_text_missing": FAULT,
    "official_9_box_only": OK,
    "official_a_nested_list_text": FAULT,
    "official_b_empty_string_text": FAULT,
    "official_c_bbox_missing": FAULT,
    "official_d_category_unknown": FAULT,
    "official_e_number_text": FAULT,
}
# What the command has to say, beyond the verdict.
SAYS = {
    "10_no_segmentation_key": "box without a mask",
    "12_list_of_rle": "a list of RLEs",
    "14_boxes_only": "4 x box without a mask",
    "29_no_sizes": "size read from the image",
    "36_utf16": "UTF-16",
    "44_parent_path": "leads out of the folders",
    "45_absolute_elsewhere": "path of another machine",
    "47_drive_letter": "path of another machine",
    "48_box_2px_outside": "box cut to its image",
    "61_exif_6_sizes_as_stored": "48 x 64 pixels as shown (64 x 48 as stored",
    "68_truncated_jpeg": "truncated",
    "76_list_of_one": "take the object out of the list",
    "83_iscrowd_2": "marked crowd, taken as an instance",
    "91_bbox_corners": "looks like corners",
    "94_rle_all_background": "covers no pixel",
}
RUNS = [(name, "", verdict[0]) for name, verdict in COCO.items()]
RUNS += [(name, "instances.json", verdict[1]) for name, verdict in COCO.items()]
RUNS += [(name, "", verdict) for name, verdict in OFFICIAL.items()]

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not present beside this checkout")


def validate(path):
    result = CliRunner().invoke(app, ["data", "validate", str(path)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.mark.parametrize(("name", "file", "verdict"), RUNS)
def test_each_case_gets_its_verdict(name, file, verdict):
    result = validate(CASES / name / file)
    assert result.exit_code == verdict, result.output
    assert SAYS.get(name, "") in result.output or file
    faults = [line for line in result.stdout.splitlines() if ": found " in line]
    assert bool(faults) == bool(verdict)
    assert all("expected" in line and "; " in line for line in faults)


@pytest.mark.parametrize("name", sorted(path.name for path in (CASES / "label_studio").glob("*.json")))
def test_label_studio_tasks_are_refused_by_name(name):
    result = validate(CASES / "label_studio" / name)
    assert result.exit_code == 1 and "Label Studio" in result.output


def rows_as_read(folder, skip_faulty=False):
    """The rows as `sam3i train` and `sam3i evaluate` read them from `--data FOLDER`."""
    return read_rows(str(folder), None, None, None, skip_faulty)


@pytest.mark.parametrize(("name", "verdict"), [(name, v[0]) for name, v in COCO.items()] + list(OFFICIAL.items()))
def test_training_and_evaluation_read_each_case_as_it_is_validated(name, verdict, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    if verdict == OK:
        rows = rows_as_read(CASES / name)
        assert len(rows) > 0 and len(RowAccount.of(rows).faults) == 0
        trained = usable_rows(rows, "simple")
        assert len(trained.indices) + trained.left_out.total() == len(rows)
        if "box" in SAYS.get(name, "") and "mask" in SAYS[name]:
            assert trained.left_out["an instance has a box and no mask"] > 0
        return
    if name == "68_truncated_jpeg":  # training and evaluation read headers; `data validate` decodes every image
        pictures = rows_as_read(CASES / name).cast_column("image", datasets.Image(decode=False))["image"]
        with pytest.raises(ImageError, match="truncated"):
            [read_image(picture) for picture in pictures]
        return
    with pytest.raises(DatasetFormatError) as fault:
        rows_as_read(CASES / name)
    assert "\n" not in str(fault.value) and name in str(fault.value)
    try:
        rows = rows_as_read(CASES / name, skip_faulty=True)
    except DatasetFormatError as error:
        assert "no usable row" in str(error) or name in str(error)
    else:
        account = RowAccount.of(rows)
        assert account.kept == len(rows) > 0 and account.left_out.total() > 0 and account.num_faults > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", COCO)
def test_a_build_goes_on_after_faults_counts_them_and_never_ends_with_nothing_in_silence(name, tmp_path):
    folder, run = CASES / name, tmp_path / "run"
    call = ["data", "build", str(run), "--coco", str(folder / "instances.json"), "--image-root", str(folder)]
    result = CliRunner().invoke(app, [*call, "--targets", "2"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in result.output and len(errors) == result.exit_code
    if COCO[name][1] == FAULT:
        assert errors or "left out: " in result.output, result.output


def test_every_case_has_a_verdict():
    folders = {path.name for path in CASES.iterdir() if path.is_dir()}
    assert folders == {*COCO, *OFFICIAL, "label_studio"}
