"""A real browser for pages of ours. Tests that want one skip where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium is installed (apt-get install chromium-headless-shell)"
)
# the viewports that pages have to fit
SIZES = {"desktop": (1280, 900), "phone": (390, 844), "small phone": (320, 568)}


@contextmanager
def opened_browser() -> Iterator[Any]:
    """Playwright's browser; skips the test without Playwright."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()
