# SPDX-License-Identifier: Apache-2.0
"""The review page in a real browser."""

import shutil
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from engine_disputed import HOSTILE, disputed_run

from sam3i.processing.data_engine.review.desk import ReviewDesk
from sam3i.processing.data_engine.run import RunDirectory
from sam3i.processing.data_engine.status import run_status

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
PATIENCE = 30_000  # milliseconds, for machines that do other things too


def decisions_of(run):
    """What people decided, in the order in which they did."""
    return [made for _, made in run.store.decisions()]


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if path is None:
        pytest.skip("no chromium or chrome on PATH")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def disputed(tmp_path_factory):
    return disputed_run(tmp_path_factory.mktemp("disputed"))


@pytest.fixture
def run(disputed, tmp_path):
    return RunDirectory(shutil.copytree(disputed.path, tmp_path / "run"))


@contextmanager
def served(run, **options):
    from sam3i.processing.data_engine.review.page import ReviewPage

    page = ReviewPage(ReviewDesk(run, options.pop("second_looks", 0.0)), **options)
    _, address, _ = page.launch(prevent_thread_lock=True)
    try:
        yield address
    finally:
        page.blocks.close(verbose=False)


class Visitor:
    """A reviewer's browser: a context of its own, so nothing is shared with others."""

    def __init__(self, browser, address, name=None):
        self.context = browser.new_context(viewport={"width": 1440, "height": 860})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.hosts, self.errors = set(), []
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        if name is not None:
            self.page.fill("#name input, #name textarea", name)
            self.page.keyboard.press("Enter")
        self.page.wait_for_selector("[data-pair]")

    @property
    def shown(self):
        return self.page.evaluate("window.sam3iPair()")

    @property
    def words(self):
        return self.page.input_value("#words textarea")

    def press(self, key):
        """Press a key that decides, and wait for the next pair (or the end)."""
        before = self.shown
        self.page.keyboard.press(key)
        self.page.wait_for_function("before => window.sam3iPair() !== before", arg=before)

    def close(self):
        assert self.errors == []
        assert self.hosts <= {"127.0.0.1", None, ""}, self.hosts  # data: addresses have no host
        self.context.close()


def test_keys_decide_and_a_reload_keeps_the_place(browser, run):
    queue = [item.pair for item in ReviewDesk(run).queue("ann")]
    started = time.time()
    with served(run) as address:
        ann = Visitor(browser, address, "ann")
        page = ann.page
        assert ann.words == queue[0]["text"]
        assert page.inner_text("#fact-left") == f"{len(queue)} left"
        ann.press("a")
        ann.press("r")
        ann.press("s")

        # Letters typed into the text decide nothing; Escape leaves it, Enter adds no line.
        text = ann.words
        page.keyboard.press("e")
        page.keyboard.press("End")
        page.keyboard.type(" rams")
        page.keyboard.press("Enter")
        assert ann.words == text + " rams"
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.tagName") != "TEXTAREA"
        assert [line["decision"] for line in decisions_of(run)] == ["accept", "reject", "skip"]

        # The checks that need no model object to what cannot be read as this level, and nothing is saved.
        page.fill("#words textarea", "the thing of old")
        page.focus("#words textarea")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#notice .error")
        assert "must name the target" in page.inner_text("#notice") and ann.words == "the thing of old"
        shown = ann.shown
        page.fill("#words textarea", text.replace("the ", "the very ", 1))
        page.focus("#words textarea")
        ann.press("Control+Enter")
        page.wait_for_function("document.activeElement.tagName !== 'TEXTAREA'")
        page.keyboard.press("m")
        page.wait_for_function("getComputedStyle(document.querySelector('.picture .layer')).opacity === '0'")
        page.keyboard.press("m")

        before = ann.shown
        page.reload()
        page.wait_for_selector("[data-pair]")
        assert ann.shown == before and page.inner_text("#fact-left") == f"{len(queue) - 4} left"
        assert page.inner_text(".head .who") == "ann"

        page.keyboard.press("b")  # back to the edit, which becomes a rejection
        page.wait_for_function("before => window.sam3iPair() !== before", arg=before)
        assert ann.shown == shown and "You said: edit" in page.inner_text("#notice")
        ann.press("r")
        while page.query_selector("#finished") is None:
            page.keyboard.press("a")
            page.wait_for_timeout(100)
        assert f"You decided on {len(queue) - 1}. 1 skipped." in page.inner_text("#finished")
        ann.close()
    lines = list(decisions_of(run))
    ids = [pair["pair_id"] for pair in queue]
    assert [line["decision"] for line in lines[:5]] == ["accept", "reject", "skip", "edit", "reject"]
    assert lines[3]["pair_id"] == lines[4]["pair_id"] and lines[3]["text"].startswith(
        ("the very", "find", "show", "s", "p")
    )
    assert {line["author"] for line in lines} == {"ann"} and all(line["time"] >= started for line in lines)
    assert sorted({line["pair_id"] for line in lines}) == sorted(ids)  # a second press decided nothing unseen
    assert len(lines) == len(queue) + 1


def test_two_reviewers_at_once(browser, tmp_path):
    run = disputed_run(tmp_path / "run", 3, 4)
    with served(run, second_looks=1.0) as address:
        visitors = ann, bob = [Visitor(browser, address, name) for name in ("ann", "bob")]
        first = ann.shown
        assert bob.shown == first
        for visitor in visitors:
            visitor.page.keyboard.press("a")  # both before either is answered
        for visitor in visitors:
            visitor.page.wait_for_function("before => window.sam3iPair() !== before", arg=first)
        for keys, visitor in (("aaa", ann), ("raa", bob)):
            for key in keys:
                visitor.press(key)
            visitor.page.wait_for_selector("#finished")
        assert "75% of 4" in bob.page.inner_text("#fact-agreement")
        for visitor in visitors:
            visitor.close()
    status = run_status(run)
    assert status["agreement"]["pairs"] == 4 and status["agreement"]["observed"] == 0.75
    assert status["reviewers"] == {"ann": 4, "bob": 4} and status["waiting"] == 1  # the tie


def test_hostile_text_is_text(browser, tmp_path):
    run = disputed_run(tmp_path, 3, 3, text=HOSTILE + " long" * 2000, reason=HOSTILE)
    name = "<img src=x onerror=window.hacked=1>"
    with served(run) as address:
        page = (visitor := Visitor(browser, address, name)).page
        assert page.inner_text(".head .who") == name
        for part in ("#question", "#evidence"):
            shown = page.inner_text(part)
            assert "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>" in shown
            assert "**bold** [a](javascript:hacked) ${window.hacked=1} {{constructor" in shown
            assert "⟨U+202E⟩right to left⟨U+202C⟩ &amp; &lt;b&gt;" in shown
            assert page.query_selector(f"{part} img, {part} script, {part} a, {part} strong") is None
        assert "characters)" in page.inner_text("#evidence")  # cut, and said so
        assert "\u202e" not in visitor.words and "<script>" in visitor.words
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        visitor.press("a")
        assert page.evaluate("window.hacked") is None
        visitor.close()
    assert [(line["author"], line["decision"]) for line in decisions_of(run)] == [(name, "accept")]
