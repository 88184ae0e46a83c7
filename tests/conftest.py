"What every test starts from, and one Chromium for all tests that look at pages."

import os
import shutil

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from playwright.sync_api import sync_playwright
from processes import HANG

matplotlib.use("agg")
pytest.register_assert_rewrite("definitions")  # so that its asserts show what they compared

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(autouse=True)
def same_start():
    "Seed 0, no figures, and one thread: on a busy machine more only wait for each other."
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    plt.close("all")


@pytest.fixture(scope="session")
def browser():
    names = "chromium", "chromium-browser", "google-chrome"
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(f"the browser tests need one of {names} on the PATH")
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
