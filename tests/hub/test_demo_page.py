# SPDX-License-Identifier: Apache-2.0
"""The page of the demo in a real browser, against the pipeline."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

SHAPES_TINY = Path(__file__).resolve().parents[2] / "examples" / "shapes_tiny"
PATIENCE = 120_000  # milliseconds: a busy machine takes long to answer
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

BEYOND_THE_EDGE = """edge => [...document.querySelectorAll("main *")].filter(
    part => part.getBoundingClientRect().right > edge && !part.closest("#instances, .scroll")
).map(part => part.outerHTML)"""

gradio = pytest.importorskip("gradio", reason='the page needs gradio: pip install "sam3i[demo]"')
playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
expect = playwright.expect
expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")


@pytest.fixture(scope="module")
def served():
    """The model and the address of a page that shows it."""
    from sam3i.hub.demo.model import DemoModel
    from sam3i.hub.demo.page import DemoPage

    model = DemoModel.load(str(SHAPES_TINY), "cpu")
    model.pipe.model.float()  # saved in half precision, where last bits show
    page = DemoPage(model, threshold=0.3)
    _, address, public = page.launch("127.0.0.1", prevent_thread_lock=True)
    assert urlsplit(address).hostname == "127.0.0.1" and public is None
    yield model, address
    page.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(served, browser):
    """A function that opens the page as another visitor; no request may leave this machine, no error be logged."""
    contexts, strange = [], []

    def open_page(**options):
        contexts.append(browser.new_context(viewport={"width": 1360, "height": 1500}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: strange.append(request.url) if _leaves(request.url) else None)
        page.on("pageerror", lambda error: strange.append(str(error)))
        page.goto(served[1])
        page.locator("#run").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert strange == []


def _leaves(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1"


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    from sam3i.hub.demo.session import demo_examples

    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    demo_examples()[0].image.save(path)
    return path


def upload(page, path: Path) -> None:
    page.locator("#picture input[type=file]").set_input_files(path)
    page.locator("#picture img").wait_for()


def ask(page, text: str) -> None:
    page.locator("#instructions textarea").fill(text)
    page.locator("#run").click()


def expect_text(page, selector: str, text: str) -> None:
    expect(page.locator(selector)).to_contain_text(text, timeout=PATIENCE)


def set_threshold(page, value: float) -> None:
    field = page.locator("#threshold input[type=number]")
    field.fill(str(value))
    field.press("Enter")


def download(page) -> zipfile.ZipFile:
    with page.expect_download() as waiting:
        page.locator("#download").click()
    assert waiting.value.suggested_filename == "sam3i_masks.zip"
    return zipfile.ZipFile(io.BytesIO(Path(waiting.value.path()).read_bytes()))


def assert_masks_of_the_pipeline(archive: zipfile.ZipFile, rows: list) -> None:
    document = json.loads(archive.read("results.json"))
    assert [len(entry["instances"]) for entry in document["results"]] == [len(row) for row in rows]
    for entry, row in zip(document["results"], rows, strict=True):
        for found, instance in zip(entry["instances"], row, strict=True):
            mask = np.asarray(Image.open(archive.open(found["file"])))
            assert (mask == np.asarray(instance["mask"])).mean() > 0.999  # up to last bits


def test_upload_instruct_switch_level_threshold_highlight_download(served, visit, scene, monkeypatch):
    model, _ = served
    page = visit()
    upload(page, scene)
    texts = ["the objects that could move the tide", "moon"]
    ask(page, "\n".join(texts))
    expect_text(page, "#summary", "concept")
    expect_text(page, "#summary", "by the r")  # rules or router
    page.get_by_label("complex", exact=True).check()
    expect(page.locator("#summary .level-complex")).to_have_count(2)
    expect(page.locator("#summary")).not_to_contain_text("by the r")

    def no_call(**inputs):
        raise AssertionError("a threshold ran the model")

    image = Image.open(scene)
    expected = model.pipe(image, text=texts, level="complex", threshold=0.05)
    monkeypatch.setattr(model.pipe.model, "segment", no_call)
    scores = [instance["score"] for instance in expected[0]]
    between = round((min(scores) + max(scores)) / 2, 2)
    few, first = sum(score > between for score in scores), len(scores)
    assert first > few > 0
    set_threshold(page, between)
    expect_text(page, "#summary .card >> nth=0", f"{few} found")
    set_threshold(page, 0.05)
    expect_text(page, "#summary .card >> nth=0", f"{first} found")
    assert_masks_of_the_pipeline(download(page), expected)

    before = page.locator("#overlay img").get_attribute("src")
    page.locator("#instances [data-testid=cell-0-1]").click()
    page.wait_for_function("src => document.querySelector('#overlay img').src != src", arg=before)
    page.locator("#show-all").click()
    page.wait_for_function("src => document.querySelector('#overlay img').src == src", arg=before)
    set_threshold(page, 1)
    expect_text(page, "#summary", "nothing above 1, best")
    page.get_by_role("tab", name="Python").click()
    expect_text(page, "#code", "threshold=1")


def test_one_click_shows_what_scored_just_below(served, visit, scene):
    model, _ = served
    best = model.pipe(Image.open(scene), text=["moon"], level="concept", threshold=0.1)[0][0]["score"]
    page = visit()
    upload(page, scene)
    page.get_by_label("concept", exact=True).check()
    ask(page, "moon")
    expect_text(page, "#summary", "found")
    expect_text(page, "#notice", "Each outline is one instance")
    expect(page.locator("#lower")).not_to_be_visible()
    set_threshold(page, 1)
    expect_text(page, "#summary", f"nothing above 1, best {best:.2f}")
    page.locator("#lower").click()
    expect_text(page, "#summary", "1 found")
    ask(page, "moon")
    expect(page.locator("#notice")).not_to_contain_text("Each outline")  # explained once
    page.locator("#unique input").uncheck()
    page.get_by_role("tab", name="Python").click()
    expect_text(page, "#code", "max_overlap=None")


@pytest.mark.slow
def test_several_pictures_at_once(served, visit, scene, tmp_path):
    model, _ = served
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    second = tmp_path / "second.png"
    Image.open(scene).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(second)
    page = visit()
    page.locator("#instructions textarea").fill("moon")
    page.get_by_role("tab", name="Batch").click()
    page.locator("#batch-run").click()
    expect_text(page, "#batch-notice", "Choose pictures")
    page.locator("#batch input[type=file]").set_input_files([scene, second, broken])
    expect_text(page, "#batch", "10.0 B")
    page.locator("#batch-run").click()
    expect_text(page, "#batch-notice", "broken.png: ")
    expect(page.locator("#batch-gallery .thumbnail-item")).to_have_count(2)
    with page.expect_download() as waiting:
        page.locator("#batch-archive").click()
    archive = zipfile.ZipFile(waiting.value.path())
    assert archive.namelist() == ["01_scene.png.zip", "02_second.png.zip"]
    for name, path in zip(archive.namelist(), (scene, second), strict=True):
        rows = model.pipe(Image.open(path), text=["moon"], threshold=0.3)
        assert_masks_of_the_pipeline(zipfile.ZipFile(io.BytesIO(archive.read(name))), rows)


def test_the_page_works_by_keyboard_alone(visit):
    page = visit()
    page.locator("#examples .thumbnail-item").nth(1).focus()
    page.keyboard.press("Enter")
    expect_text(page, "#summary", "hearts")
    page.locator("#instructions textarea").focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("yellow heart")
    page.keyboard.press("Shift+Enter")
    expect_text(page, "#summary", "yellow heart")
    page.locator("#level input").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#summary .level-concept")).to_have_count(1)


@pytest.mark.slow
def test_compare_and_boxes(served, visit):
    model, _ = served
    page = visit()
    page.locator("#examples .thumbnail-item").nth(2).click()
    page.locator("#overlay img").wait_for()
    page.locator("#compare").click()
    for level in ("concept", "simple", "complex"):
        page.locator(f"#panel-{level} img").wait_for()
    expect_text(page, "#comparison", "three levels")
    page.get_by_text("Boxes: segment").click()
    canvas = page.locator("#canvas img")
    canvas.wait_for()
    page.locator("#add-box").scroll_into_view_if_needed()
    box = canvas.bounding_box()
    side = min(box["width"], box["height"])
    corner = (box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2)
    for share, state in ((0.25, "click the opposite one"), (0.5, "like 28, 28, 56, 56")):
        shown = canvas.get_attribute("src")
        page.mouse.click(corner[0] + share * side, corner[1] + share * side)
        expect_text(page, "#box-list", state)
        expect(canvas).not_to_have_attribute("src", shown, timeout=PATIENCE)  # a click before it is drawn anew is lost
    page.get_by_label("not like this").check()
    page.locator("#corners input, #corners textarea").fill("60, 60, 90, 100")
    page.keyboard.press("Enter")
    expect_text(page, "#box-list", "not like 60, 60, 90, 100")
    ask(page, "square")
    expect_text(page, "#summary", "square")
    page.get_by_role("tab", name="Python").click()
    expect_text(page, "#code", "boxes=[[28, 28, 56, 56], [60, 60, 90, 100]]")
    page.get_by_role("tab", name="Result").click()
    from sam3i.hub.demo.session import demo_examples

    boxes = {"boxes": [[28, 28, 56, 56], [60, 60, 90, 100]], "box_labels": [1, 0]}
    rows = model.pipe(demo_examples()[2].image, text=["square"], threshold=0.3, **boxes)
    assert_masks_of_the_pipeline(download(page), rows)
    page.locator("#undo-box").click()
    expect(page.locator("#box-list")).not_to_contain_text("not like")
    page.locator("#clear-boxes").click()
    expect_text(page, "#box-list", "no boxes yet")


@pytest.mark.slow
def test_hostile_text_is_text_and_bad_input_is_told(visit, scene):
    page = visit()
    ask(page, "moon")
    expect_text(page, "#notice", "no picture yet")
    upload(page, scene)
    ask(page, "")
    expect_text(page, "#notice", "Write an instruction")
    ask(page, HOSTILE)
    expect_text(page, "#summary", HOSTILE)
    set_threshold(page, 0.05)
    page.locator("#compare").click()
    expect_text(page, "#comparison", HOSTILE)
    ask(page, HOSTILE + " moon" * 40 + " zebra")
    expect_text(page, "#notice", "zebra")
    page.wait_for_timeout(300)
    assert page.title() == "SAM3-I"
    for area in ("#summary", "#comparison", "#notice", "#instances", "#code"):
        assert page.locator(f"{area} img, {area} script").count() == 0


@pytest.mark.slow
def test_two_visitors_do_not_meet(visit, scene):
    one, other = visit(), visit()
    upload(one, scene)
    ask(one, "moon")
    expect_text(one, "#summary", "moon")
    ask(other, "star")
    expect_text(other, "#notice", "no picture yet")
    other.locator("#examples .thumbnail-item").nth(1).click()
    expect_text(other, "#summary", "hearts")
    set_threshold(one, 0.05)
    expect_text(one, "#summary", "moon")
    expect(one.locator("#summary")).not_to_contain_text("hearts")
    expect(other.locator("#summary")).not_to_contain_text("moon")


@pytest.mark.slow
def test_a_file_that_is_no_picture_is_told(visit, tmp_path):
    page = visit()
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    page.locator("#picture input[type=file]").set_input_files(path)
    expect_text(page, "body", "cannot identify image file")


@pytest.mark.slow
def test_narrow_and_dark_pages_fit(visit):
    for options in ({"color_scheme": "dark"}, {"color_scheme": "light"}):
        page = visit(**options)
        page.set_viewport_size({"width": 390, "height": 844})
        page.locator("#examples .thumbnail-item").nth(3).click()
        page.locator("#overlay img").wait_for()
        set_threshold(page, 1)
        expect_text(page, "#summary", "nothing above 1, best")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.evaluate(BEYOND_THE_EDGE, 392) == []  # the tables scroll by themselves
        page.locator("#compare").click()
        page.locator("#panel-complex img").wait_for()
        expect_text(page, "#comparison", "three levels")
        assert page.evaluate(BEYOND_THE_EDGE, 392) == []


def test_programs_may_call(served, scene):
    from gradio_client import Client, handle_file

    from sam3i.processing.masks import decode_mask

    model, address = served
    client = Client(address, verbose=False)
    rows = client.predict(handle_file(scene), "moon\nthe star", "auto", 0.3, 0.5, api_name="/segment")
    expected = model.pipe(Image.open(scene), text=["moon", "the star"], threshold=0.3)
    assert [len(row) for row in rows] == [len(row) for row in expected] and rows[0]
    for found, instance in zip(rows[0], expected[0], strict=True):
        assert (decode_mask(found["segmentation"]) == (np.asarray(instance["mask"]) > 127)).mean() > 0.999
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/segment"}
