"""A headless Chromium (Debian's, or the one that BENCH_CHROMIUM names) driven by Playwright; skipped where it is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

MISSING = "needs Playwright (`pip install -e .[browser]`) and Chromium (Debian's package chromium, or BENCH_CHROMIUM)"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    executable = os.environ.get("BENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        if os.environ.get("BENCH_REQUIRE_BROWSER"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()
