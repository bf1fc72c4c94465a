# SPDX-License-Identifier: Apache-2.0
"""Take the picture of the demo that the README shows: `python examples/demo_screenshot.py`.

Needs chromium (or google-chrome) and playwright besides `sam3i[demo]`. Everything happens on this machine.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from sam3i.hub.demo import DemoModel, DemoPage

EXAMPLES = Path(__file__).parent
MOST_BYTES = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(EXAMPLES / "shapes_tiny"))
    parser.add_argument("--example", type=int, default=0, help="which of the demo's own pictures")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--width", type=int, default=1360, help="of the window; 390 is a phone")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--output", type=Path, default=EXAMPLES / "assets" / "demo.png")
    arguments = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    model = DemoModel.load(arguments.model)
    model.name = Path(arguments.model).name
    page = DemoPage(model, arguments.threshold)
    _, address, _ = page.launch("127.0.0.1", prevent_thread_lock=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        scheme = "dark" if arguments.dark else "light"
        view = browser.new_page(viewport={"width": arguments.width, "height": 1100}, color_scheme=scheme)
        view.set_default_timeout(120_000)
        view.goto(address)
        view.locator("#examples .thumbnail-item").nth(arguments.example).click()
        view.locator("#overlay img").wait_for()
        view.locator("#instances [data-testid=cell-0-1]").wait_for()
        view.mouse.move(0, 0)
        view.wait_for_timeout(2000)
        picture = Image.open(io.BytesIO(view.screenshot(full_page=True))).convert("RGB")
        browser.close()
    page.blocks.close(verbose=False)
    picture.save(arguments.output, optimize=True)
    if arguments.output.stat().st_size > MOST_BYTES:
        picture.quantize(256, dither=Image.Dither.NONE).save(arguments.output, optimize=True)
    print(f"Written to {arguments.output}, {arguments.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
