# SPDX-License-Identifier: Apache-2.0
"""The review page on a small run of the shapes world, in which the shipped model contradicts the template writer.

    python examples/review_page.py                                               # opens the page
    python examples/review_page.py --picture examples/assets/review_page.png     # needs playwright and chromium

The same by hand: `sam3i data build runs/review --shapes 12 --grounder examples/shapes_tiny` and
`sam3i data review runs/review`. Instructions for which the model segments something else than the target wait there.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image

from sam3i.processing.data_engine import (
    DataEngine,
    EngineConfig,
    PipelineGrounder,
    ReviewDesk,
    ReviewPage,
    RunDirectory,
    ShapesSource,
    load_pipeline,
)

MODEL = str(Path(__file__).parent / "shapes_tiny")
WINDOW = {"width": 1360, "height": 800}


def build(folder: Path, scenes: int) -> RunDirectory:
    """A run of simple and complex instructions, grounded with the shipped model; an existing one is gone on with."""
    config = EngineConfig(source=f"shapes world, {scenes} scenes", levels=("simple", "complex"), grounder=MODEL)
    run = RunDirectory(folder, config)
    DataEngine(ShapesSource(scenes), run, grounder=PipelineGrounder(load_pipeline(MODEL), MODEL)).build()
    return run


def take_picture(address: str, path: Path, keys: str) -> None:
    """Let a reviewer press some keys and save what the page shows then."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW)
        page.goto(address)
        for key in keys:
            page.wait_for_selector("[data-pair]")
            before = page.evaluate("window.sam3iPair()")
            page.keyboard.press(key)
            page.wait_for_function("before => window.sam3iPair() !== before", arg=before)
        page.wait_for_timeout(500)
        path.parent.mkdir(parents=True, exist_ok=True)
        shot = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    shot.convert("RGB").save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/review"), help="folder of the run")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--picture", type=Path, help="take a picture of the page and end")
    parser.add_argument("--keys", default="aarasa", help="what the reviewer of the picture presses first")
    options = parser.parse_args()
    desk = ReviewDesk(build(options.run, options.scenes), second_looks=0.1)
    page = ReviewPage(desk, reviewer="ann" if options.picture else None)
    _, address, _ = page.launch(prevent_thread_lock=True, inbrowser=options.picture is None)
    print(f"{desk.progress()['left']} instructions wait at {address}")
    if options.picture is None:
        page.blocks.block_thread()
        return
    take_picture(address, options.picture, options.keys)
    page.blocks.close(verbose=False)


if __name__ == "__main__":
    main()
