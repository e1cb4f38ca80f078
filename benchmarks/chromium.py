"""Chromium, without a window.

with new_page(viewport={"width": 1000, "height": 770}) as page:    # a page of Playwright
    page.goto(path.as_uri())
"""

import contextlib
import shutil

from playwright.sync_api import sync_playwright

from vit_cifar10.utils.errors import UserError

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu")


@contextlib.contextmanager
def new_page(**options):
    """Open an empty page, with options of Playwright's `new_page`. Raises `UserError` if Chromium is not installed."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise UserError("Chromium is not installed; install it with the package manager of your system")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=FLAGS) as chromium:
        yield chromium.new_page(**options)
