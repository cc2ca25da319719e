"""Renders the pictures of the README: `python docs/gallery.py RUN`, with a run that has a report.

Screenshots need Chromium, Playwright from the extra `peers`, and the extra `demo`.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from flaxresnet.data.hand_signs.render import hand_signs

GALLERY = Path(__file__).parent / "gallery"
MAX_WIDTH = 900  # pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def run_command(*words: object) -> None:
    """Runs a `flaxresnet` command."""
    subprocess.run([sys.executable, "-m", "flaxresnet", *map(str, words)], check=True)


def save_picture(source: Path, name: str, full_color: bool = False) -> None:
    """Saves a picture to the gallery, at most `MAX_WIDTH` wide, with 256 colors unless `full_color`."""
    with Image.open(source) as picture:
        picture = picture.convert("RGB")
        if picture.width > MAX_WIDTH:
            picture = picture.resize(
                (MAX_WIDTH, round(picture.height * MAX_WIDTH / picture.width)), Image.Resampling.LANCZOS
            )
        picture = picture if full_color else picture.quantize(256)
        picture.save(GALLERY / name, optimize=True)


def save_screenshots(run: str, photo: Path) -> None:
    """Saves screenshots of the report, light and dark, and of the demo with a photo."""
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
            save_picture(shot, f"report-{scheme}.png")
        page = browser.new_page(viewport={"width": 1000, "height": 800}, color_scheme="light")
        page.goto(address)
        page.set_input_files("input[type=file]", photo)
        page.wait_for_selector("#heat img")
        page.wait_for_timeout(1500)
        page.screenshot(path=shot)
        save_picture(shot, "demo.png", full_color=True)
        browser.close()


def main(run: str) -> None:
    """Renders all pictures."""
    GALLERY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run_command("diagram", "resnet50", "--to-file", folder / "resnet.png")
        save_picture(folder / "resnet-overview.png", "overview.png")
        photo = folder / "sign.png"
        Image.fromarray(hand_signs().test.images[3]).resize((256, 256), Image.Resampling.BICUBIC).save(photo)
        run_command("explain", run, photo, "--to-folder", folder)
        save_picture(folder / "sign.explained.png", "explain.png", full_color=True)
        save_screenshots(run, photo)


if __name__ == "__main__":
    main(sys.argv[1])
