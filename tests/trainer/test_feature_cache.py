# SPDX-License-Identifier: Apache-2.0
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from training_fixtures import tiny_dataset, tiny_model, tiny_processor, tiny_rows, tiny_trainer

from sam3i.processing.fingerprint import fingerprint_image
from sam3i.trainer.collator import image_key
from sam3i.trainer.feature_cache import FeatureCacheFullError, VisionFeatureCache, vision_fingerprint
from sam3i.trainer.stage.module import encode_vision

IMAGES = 6


def make_cache(folder, model=None, limit_bytes=10**9) -> VisionFeatureCache:
    return VisionFeatureCache(folder, model or tiny_model(), tiny_processor(), limit_bytes)


def keys(dataset) -> list[str]:
    return list(dict.fromkeys(image_key(row) for row in dataset))


def losses(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_features_are_those_of_the_vision_encoder(tmp_path):
    model, dataset = tiny_model(), tiny_dataset(IMAGES)
    cache = make_cache(tmp_path, model)
    assert cache.fill(dataset) == IMAGES
    images = [dataset[2 * index]["image"] for index in range(IMAGES)]
    pixels = tiny_processor()(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.get_vision_features(pixels)
        found = encode_vision(model, None, cache.load(keys(dataset)))
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=1e-6, atol=1e-6)
    for name in ("fpn_hidden_states", "fpn_position_encoding"):
        for kept, computed in zip(getattr(found, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(kept, computed, rtol=1e-5, atol=1e-5)


def test_training_with_the_cache_has_the_same_losses_and_never_runs_the_vision_tower_again(tmp_path):
    plain = losses(tiny_trainer(tmp_path / "plain", max_steps=1))
    cached = losses(tiny_trainer(tmp_path / "cached", max_steps=1, feature_cache=str(tmp_path / "cache")))
    assert len(plain) == 3
    assert cached == pytest.approx(plain, rel=1e-5)
    model, encoded = tiny_model(), []
    trainer = tiny_trainer(tmp_path / "again", model, max_steps=1, feature_cache=str(tmp_path / "cache"))
    model.vision_encoder.backbone.register_forward_hook(lambda module, args, output: encoded.append(args[0].shape[0]))
    assert losses(trainer) == cached  # to the last bit: the features are the same files
    assert encoded == [2]  # the concept check looks at two images


def test_a_image_is_encoded_once_whatever_it_is_called(tmp_path):
    rows = tiny_rows(3)
    for number, row in enumerate(rows):  # every row a image of its own, by name
        row["image_id"] = str(number)
    dataset = tiny_dataset(3).from_list(rows, features=tiny_dataset(3).features)
    cache = make_cache(tmp_path)
    assert len(keys(dataset)) == 6 and cache.fill(dataset) == 3
    assert cache.fill(dataset) == 0 and make_cache(tmp_path).fill(dataset) == 0


def test_another_image_under_the_same_name_is_another_entry(tmp_path):
    dataset = tiny_dataset(2)
    make_cache(tmp_path).fill(dataset)
    rows = [row | {"image": Image.fromarray(255 - np.asarray(row["image"]))} for row in tiny_rows(2)]
    changed = dataset.from_list(rows, features=dataset.features)
    cache = make_cache(tmp_path)
    assert cache.fill(changed) == 2
    fresh = make_cache(tmp_path / "fresh")
    fresh.fill(changed)
    assert torch.equal(cache.load(keys(changed)), fresh.load(keys(changed)))


def test_a_mirrored_view_with_a_name_of_its_own_has_its_own_features(tmp_path):
    rows = tiny_rows(1)[:1]
    mirrored = rows[0] | {"image": rows[0]["image"].transpose(Image.Transpose.FLIP_LEFT_RIGHT), "image_id": "0-mirror"}
    dataset = tiny_dataset(1).from_list([rows[0], mirrored], features=tiny_dataset(1).features)
    cache = make_cache(tmp_path)
    assert cache.fill(dataset) == 2
    one, other = cache.load(keys(dataset))
    assert not torch.allclose(one, other, atol=1e-3)


def test_weights_and_preprocessing_are_in_the_key():
    model, processor = tiny_model(), tiny_processor()
    first = vision_fingerprint(model, processor)
    assert vision_fingerprint(tiny_model(), tiny_processor()) == first
    with torch.no_grad():
        next(iter(model.adapter_parameters().values())).add_(1.0)
        assert vision_fingerprint(model, processor) == first
        model.vision_encoder.backbone.layers[-1].mlp.fc2.bias[0] += 1e-6
    changed = vision_fingerprint(model, processor)
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    again, half = vision_fingerprint(model, processor), vision_fingerprint(tiny_model().half(), processor)
    assert len({first, changed, again, half}) == 4


def test_images_are_known_by_pixels_or_by_files(tmp_path):
    image = tiny_rows(1)[0]["image"]
    assert fingerprint_image(image) == fingerprint_image(image.copy()) != fingerprint_image(image.convert("L"))
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    path = {"bytes": None, "path": str(tmp_path / "a.png")}
    assert fingerprint_image(path) == fingerprint_image({"bytes": data, "path": "b.png"})
    with pytest.raises(ValueError, match="Expected an image, found NoneType"):
        fingerprint_image(None)


def test_the_limit_stops_it_before_anything_is_written(tmp_path):
    cache = make_cache(tmp_path, limit_bytes=3 * make_cache(tmp_path).bytes_per_image())
    with pytest.raises(FeatureCacheFullError, match=r"6 more images need .* GB .*`feature_cache_limit_gb`"):
        cache.fill(tiny_dataset(IMAGES))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert cache.fill(tiny_dataset(3)) == 3
    with pytest.raises(FeatureCacheFullError, match="3 more images"):
        cache.fill(tiny_dataset(IMAGES))


def test_the_estimate_of_disk_space_covers_the_files(tmp_path):
    cache = make_cache(tmp_path)
    cache.fill(tiny_dataset(2))
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
    assert len(sizes) == 2 and max(sizes) <= cache.bytes_per_image()


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**9, 10**9))
    with pytest.raises(FeatureCacheFullError, match="has 1.00 GB left, of which 1 GB stays free"):
        make_cache(tmp_path).fill(tiny_dataset(1))


def test_what_cannot_be_read_is_named(tmp_path):
    cache, dataset = make_cache(tmp_path), tiny_dataset(1)
    with pytest.raises(KeyError, match="fill it with the dataset first"):
        cache.load(keys(dataset))
    cache.fill(dataset)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(OSError, match="delete it and start again"):
        cache.load(keys(dataset))
