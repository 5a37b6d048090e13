"""Take the picture of the report that README.md shows: docs/screenshot.py RUN/report.html.

It needs playwright (`pip install '.[test]'`) and Debian's chromium.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("report.png")
SIZE = {"width": 1100, "height": 1250}

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
    page = browser.new_page(viewport=SIZE)
    page.goto(Path(sys.argv[1]).resolve().as_uri())
    page.wait_for_timeout(2000)  # until the plots have found their size
    page.screenshot(path=PICTURE)
