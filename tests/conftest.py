"One Chromium for all tests that look at pages."

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright
from processes import HANG

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up("the browser tests need chromium, chromium-browser or google-chrome on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def new_page(browser):
    "Opens a page that waits, for whatever it is told to do, as long as that takes."
    def new_page(**options):
        page = browser.new_page(**options)
        page.set_default_timeout(1000 * HANG)
        return page

    return new_page
