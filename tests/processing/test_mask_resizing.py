# SPDX-License-Identifier: Apache-2.0
"""Masks at the size of the image are those of plain interpolation, to the pixel."""

import pytest
import torch
import torch.nn.functional as F

from sam3i.modeling_sam3i.outputs import Sam3IInstancesOutput
from sam3i.processing import mask_resizing
from sam3i.processing.mask_resizing import Axis, resize_and_binarize
from sam3i.processing.post_processing import segment_rows

SIZES = [(50, 70), (288, 288), (1, 1), (5, 20000), (9001, 8), (1008, 756), (640, 479)]


def plain(logits: torch.Tensor, size: tuple[int, int], threshold: float) -> torch.Tensor:
    probabilities = logits.float().sigmoid()
    resized = F.interpolate(probabilities[None], size=size, mode="bilinear", align_corners=False)[0]
    return resized > threshold


def blobs(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Logits of soft discs of many places and sizes."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.arange(side) / side
    x, y, radius = torch.rand(3, count, 1, 1, generator=generator)
    distance = ((grid[None, None] - x) ** 2 + (grid[None, :, None] - y) ** 2).sqrt()
    return 20 * (radius / 2 - distance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["noise", "blobs"])
def test_equals_plain_interpolation(size, threshold, kind):
    logits = blobs(6, 24) if kind == "blobs" else torch.randn(6, 24, 24, generator=torch.Generator().manual_seed(1))
    assert torch.equal(resize_and_binarize(logits, size, threshold), plain(logits, size, threshold))


def test_equals_plain_interpolation_where_probabilities_lie_on_the_threshold():
    logits = torch.randint(-1, 2, (5, 12, 12), generator=torch.Generator().manual_seed(2)).float()
    assert torch.equal(resize_and_binarize(logits, (480, 310), 0.5), plain(logits, (480, 310), 0.5))


@pytest.mark.parametrize("alike", [True, False])
def test_equals_plain_interpolation_whatever_the_rounding(monkeypatch, alike):
    """Where kernels round differently, masks with pixels on the threshold are resized whole."""
    if not alike:
        monkeypatch.setattr(mask_resizing, "_rounds_alike", lambda: False)
    logits = blobs(4, 48) / 10  # soft edges: many pixels near the threshold
    assert torch.equal(resize_and_binarize(logits, (1500, 1100), 0.5), plain(logits, (1500, 1100), 0.5))


def test_probabilities_that_are_no_numbers_are_outside():
    logits = blobs(3, 12)
    logits[0, 4:6] = float("nan")
    logits[1] = float("nan")
    logits[2, 0, 0] = float("inf")
    assert torch.equal(resize_and_binarize(logits, (300, 400), 0.5), plain(logits, (300, 400), 0.5))


def test_pixels_that_cannot_pass_are_not_computed(monkeypatch):
    logits = torch.full((1, 100, 100), -9.0)
    logits[0, 40:44, 70:75] = 9.0
    places = []
    touching = Axis.touching
    monkeypatch.setattr(Axis, "touching", lambda *args: places.append(touching(*args)) or places[-1])
    monkeypatch.setattr(mask_resizing, "_resize_whole", lambda *args: pytest.fail("the whole mask was resized"))
    assert resize_and_binarize(logits, (1000, 1000), 0.5).any()
    rows, columns = places
    assert 40 <= rows.stop - rows.start <= 60
    assert 50 <= columns.stop - columns.start <= 70


@pytest.mark.parametrize("source", [1, 2, 3, 7, 288])
@pytest.mark.parametrize("target", [1, 2, 5, 97, 288, 504, 1008, 3000, 4032])
def test_axis_has_the_places_and_weights_of_interpolation(source, target):
    values = torch.rand(source, generator=torch.Generator().manual_seed(source))
    axis = Axis(source, target)
    found = values[axis.lower] * axis.lower_weight + values[axis.upper] * axis.upper_weight
    expected = F.interpolate(values[None, None, None], size=(1, target), mode="bilinear", align_corners=False)[0, 0, 0]
    torch.testing.assert_close(found, expected, atol=5e-7, rtol=0)
    assert int(axis.lower.min()) >= 0 and int(axis.upper.max()) < source


def test_pieces_equal_one_piece_and_bound_memory(monkeypatch):
    logits = torch.randn(7, 12, 12)
    whole = mask_resizing._resize_whole(logits, (50, 70), 0.5)
    resized = []
    interpolate = F.interpolate
    monkeypatch.setattr(mask_resizing, "_CHUNK_VALUES", 50 * 70 * 2)
    monkeypatch.setattr(
        mask_resizing.F,
        "interpolate",
        lambda *args, **kwargs: resized.append(interpolate(*args, **kwargs)) or resized[-1],
    )
    assert torch.equal(mask_resizing._resize_whole(logits, (50, 70), 0.5), whole)
    assert [len(piece[0]) for piece in resized] == [2, 2, 2, 1]


def test_rows_with_instances_of_their_own():
    """What `segment` returns has another number of queries in every row."""
    outputs = Sam3IInstancesOutput(
        pred_masks=[torch.randn(2, 6, 6), torch.randn(0, 6, 6)],
        pred_boxes=[torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]), torch.zeros(0, 4)],
        pred_logits=[torch.tensor([1.0, 3.0]), torch.zeros(0)],
        presence_logits=torch.tensor([[10.0], [10.0]]),
        instruction_levels=torch.tensor([1, 2]),
        threshold=0.4,
    )
    first, second = segment_rows(outputs, threshold=0.5, mask_threshold=0.5, sizes=[(10, 20)] * 2)
    assert first["scores"].tolist() == sorted(first["scores"].tolist(), reverse=True)
    assert first["boxes"].tolist() == [[10, 5, 20, 10], [0, 0, 10, 5]]
    assert first["masks"].shape == (2, 10, 20) and first["level"] == "simple"
    assert second["masks"].shape == (0, 10, 20) and second["level"] == "complex"
    with pytest.raises(ValueError, match="at least 0.4"):
        segment_rows(outputs, threshold=0.3, mask_threshold=0.5, sizes=None)
