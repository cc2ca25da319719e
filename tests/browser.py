"""A Chromium that is installed, for tests that look at pages."""

import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium():
    """A browser of Playwright's; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="install playwright (the `test` extra)")
    path = next((path for name in NAMES if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium here; install one to look at pages with it")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def listen(page) -> list[str]:
    """What a page says on its console, and what it asks of other machines, as it happens."""
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))

    def asked(request):
        if request.url.startswith("http") and "//127.0.0.1:" not in request.url:
            said.append(request.url)

    page.on("request", asked)
    return said
