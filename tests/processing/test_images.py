# SPDX-License-Identifier: Apache-2.0
"""The one reader of images: the same pixels whatever they come in, and errors that name the file."""

import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam3i.processing.images import ImageError, image_size, read_image

CASES = Path(__file__).resolve().parents[2] / ".." / "shared" / "cases"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
HALF = np.tile(np.array([[0, 128, 255]], dtype=np.uint8), (2, 1))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_every_form_of_an_image_gives_the_same_pixels(tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(encoded(Image.fromarray(PIXELS)))
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    forms = [path, str(path), content, bytearray(content), io.BytesIO(content), path.open("rb"), Image.open(path)]
    forms += [{"path": str(path), "bytes": None}, {"bytes": content, "path": None}, {"path": str(path)}]
    forms += [PIXELS, PIXELS.transpose(2, 0, 1), torch.as_tensor(PIXELS).permute(2, 0, 1), text]
    forms += [f"data:image/png;base64,{text}", PIXELS.astype(np.int64), PIXELS / np.float32(255)]
    for form in forms:
        image = read_image(form)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), PIXELS), type(form)
    assert image_size(path) == image_size(content) == image_size(PIXELS) == (6, 9)


def test_a_turned_photo_is_turned_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to show it, turn it right
    content = encoded(Image.fromarray(PIXELS), exif=exif)
    upright = np.rot90(PIXELS, k=-1)
    once = read_image(content)
    assert np.array_equal(np.asarray(once), upright)
    assert np.array_equal(np.asarray(read_image(once)), upright)
    assert np.array_equal(np.asarray(read_image(Image.open(io.BytesIO(content)))), upright)
    assert image_size(content) == image_size(once) == (9, 6)


@pytest.mark.parametrize(
    ("pixels", "shown"),
    [
        (np.array([[0, 32768, 65535]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[0, 2048, 4095]], dtype=np.uint16), [0, 128, 255]),  # 12 bits of a camera
        (np.array([[0, 128, 255]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 128, 255]], dtype=np.float64), [0, 128, 255]),
        (np.array([[False, True]]), [0, 255]),
    ],
)
def test_more_than_8_bits_are_scaled(pixels, shown):
    assert np.asarray(read_image(pixels))[0, :, 0].tolist() == shown


@pytest.mark.parametrize(
    ("kind", "pixels"), [("PNG", np.uint16([[0, 32768, 65535]])), ("TIFF", np.float32([[0, 0.5, 1]]))]
)
def test_files_of_more_than_8_bits_are_scaled(kind, pixels):
    image = read_image(encoded(Image.fromarray(pixels), kind))
    assert np.array_equal(np.asarray(image)[0], np.uint8([[0] * 3, [128] * 3, [255] * 3]))


@pytest.mark.parametrize("pixels", [[[-1.0, 0.5]], [[0.0, 256.0]], [[0, 70000]], [[-3, 4]], [[0.0, np.nan]]])
def test_other_ranges_are_refused_and_never_cut_off(pixels):
    with pytest.raises(ImageError, match="scale them to 0|NaN or infinite"):
        read_image(np.array(pixels))


def test_transparent_pixels_are_laid_over_white():
    pixels = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    assert np.array_equal(np.asarray(read_image(pixels)), PIXELS)
    pixels[0, 0, 3] = 0
    shown = np.asarray(read_image(encoded(Image.fromarray(pixels))))
    assert shown[0, 0].tolist() == [255, 255, 255] and np.array_equal(shown[1:], PIXELS[1:])
    palette = Image.fromarray(HALF).convert("P")
    content = encoded(palette, "PNG", transparency=0)
    assert np.asarray(read_image(content))[0, 0].tolist() == [255, 255, 255]


def test_gray_cmyk_and_the_first_frame_of_a_gif_become_rgb():
    assert np.array_equal(np.asarray(read_image(HALF))[..., 1], HALF)
    assert np.array_equal(np.asarray(read_image(encoded(Image.fromarray(HALF)))), np.dstack([HALF] * 3))
    red = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert np.asarray(read_image(encoded(red, "TIFF")))[0, 0].tolist() == [255, 0, 0]
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(content))[0, 0].tolist() == [255, 0, 0]


def test_a_broken_file_is_an_error_that_names_it(tmp_path):
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    for name, content in {"cut.png": whole[:-300], "no image.txt": b"hello", "empty.jpg": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)
        with pytest.raises(ImageError, match=name):
            read_image({"path": str(tmp_path / name), "bytes": content or None})
    with pytest.raises(ImageError, match=r"gone\.png.*no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r"gone\.png.*no such file"):
        image_size(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="neither its bytes nor its path"):
        read_image({"bytes": None, "path": None})
    with pytest.raises(TypeError, match="found list"):
        read_image([1, 2])
    with pytest.raises(TypeError, match="binary mode"):
        read_image(io.StringIO("text"))


def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(tmp_path):
    content = encoded(Image.new("L", (300, 200)))
    with pytest.raises(ImageError, match="300 x 200 pixels, more than 10,000"):
        read_image(content, max_pixels=10_000)
    bomb = bytearray(encoded(Image.new("1", (8, 8))))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # a header that promises 3.6 thousand million pixels
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ImageError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


def test_remote_addresses_are_read_only_when_allowed_and_not_waited_for_without_end():
    content, silent = encoded(Image.fromarray(PIXELS)), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802  the name is the base class's
            if self.path == "/silent.png":
                silent.wait(10)
                return
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with pytest.raises(ImageError, match="remote addresses are not read here"):
            read_image(f"{url}/a.png")
        assert np.array_equal(np.asarray(read_image(f"{url}/a.png", allow_remote=True)), PIXELS)
        with pytest.raises(ImageError, match="404"):
            read_image(f"{url}/b.png", allow_remote=True)
        with pytest.raises(ImageError, match=r"silent\.png"):
            read_image(f"{url}/silent.png", allow_remote=True, timeout=0.2)
    finally:
        silent.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("61_exif_6_sizes_as_stored/a.jpg", (64, 48)),
        ("62_exif_6_sizes_as_shown/a.jpg", (48, 64)),
        ("63_grey/a.jpg", (48, 64)),
        ("65_rgba_png/a.png", (48, 64)),
        ("66_cmyk/a.jpg", (48, 64)),
        ("67_palette_transparent/a.png", (48, 64)),
        ("68_truncated_jpeg/a.jpg", None),
        ("70_gif_animated/a.gif", (48, 64)),
        ("81_uppercase_ext/a.jpg", (48, 64)),
        ("82_name_without_ext/a.jpg", (48, 64)),
    ],
)
def test_images_of_real_exports(name, size):
    path = CASES / name
    if not path.exists():
        pytest.skip("the small cases (../shared/cases) are not present beside this checkout")
    if size is None:
        with pytest.raises(ImageError, match="truncated"):
            read_image(path)
        return
    image = read_image(path)
    assert image.mode == "RGB" and (image.height, image.width) == image_size(path) == size
