"""Chromium for tests of web pages."""

import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium():
    """Yields a Playwright browser, or skips the test if Chromium or Playwright is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="install playwright (the `test` extra)")
    paths = list(filter(None, map(shutil.which, NAMES)))
    if not paths:
        pytest.skip("Chromium is not installed; install it to test web pages")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=paths[0], args=["--no-sandbox"])
        yield browser
        browser.close()


def listen(page) -> list[str]:
    """Returns a list that collects the errors of a page, and its requests to other machines."""
    events = []
    page.on("console", lambda message: events.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: events.append(str(error)))

    def collect_request(request):
        if request.url.startswith("http") and "//127.0.0.1:" not in request.url:
            events.append(request.url)

    page.on("request", collect_request)
    return events
