"""Makes the README's pictures: `python docs/gallery.py RUN`, with a run that has its report.

The page's and the demo's pictures are taken with Chromium, by Playwright, from the extra `test`; the demo needs `demo`.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from flaxresnet.data.hand_signs.render import hand_signs

GALLERY = Path(__file__).parent / "gallery"
WIDEST = 900  # pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def command(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "flaxresnet", *map(str, words)], check=True)


def keep(source: Path, name: str, shaded: bool = False) -> None:
    """A picture in a width that a README shows; in 256 colours, unless it shades into many more."""
    with Image.open(source) as picture:
        picture = picture.convert("RGB")
        if picture.width > WIDEST:
            picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS)
        picture = picture if shaded else picture.quantize(256)
        picture.save(GALLERY / name, optimize=True)


def pages(run: str, photo: Path) -> None:
    """The report, light and dark, and the demo with a photo dropped on it."""
    from playwright.sync_api import sync_playwright

    from flaxresnet.classifier import Classifier
    from flaxresnet.demo.page import make_page, serve

    address = serve(make_page(Classifier.load(run), "Hand signs", hand_signs().test), "127.0.0.1", 0)
    browser_path = next(path for name in BROWSERS if (path := shutil.which(name)))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        shot = Path(scratch) / "shot.png"
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 900, "height": 700}, color_scheme=scheme)
            page.goto((Path(run) / "report" / "index.html").absolute().as_uri())
            page.screenshot(path=shot)
            keep(shot, f"report-{scheme}.png")
        page = browser.new_page(viewport={"width": 1000, "height": 800}, color_scheme="light")
        page.goto(address)
        page.set_input_files("input[type=file]", photo)
        page.wait_for_selector("#heat img")
        page.wait_for_timeout(1500)
        page.screenshot(path=shot)
        keep(shot, "demo.png", shaded=True)
        browser.close()


def main(run: str) -> None:
    GALLERY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command("diagram", "resnet50", "--to-file", folder / "resnet.png")
        keep(folder / "resnet-overview.png", "overview.png")
        photo = folder / "sign.png"
        Image.fromarray(hand_signs().test.images[3]).resize((256, 256), Image.Resampling.BICUBIC).save(photo)
        command("explain", run, photo, "--to-folder", folder)
        keep(folder / "sign.explained.png", "explain.png", shaded=True)
        pages(run, photo)


if __name__ == "__main__":
    main(sys.argv[1])
