"""The course as a learner meets it: real JupyterLab in real Chromium, all cells run, every slider moved by keyboard.

Notebooks are copied and stripped of their outputs first, so whatever the page shows was computed in it.
"""

import json
import math
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOKEN = "browser-test"
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                      "--disable-background-networking", "--disable-component-update"]
STEPS = {"00_start_here": 24}  # 4 elsewhere
NUMBER = r"[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
PATIENCE = 300  # seconds until all cells of a notebook have run, on a machine that others use too
FAILED_OUTPUT = ", ".join(f'.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.{kind}"]'
                          for kind in ("stderr", "error"))

# resolves to the milliseconds from the key press to the moment a picture with another source is ready to be painted
TIME_NEXT_PICTURE = """handle => {
    const explorer = handle.closest(".ntk-explorer"), before = explorer.querySelector("img").src;
    window.nextPicture = new Promise(resolve => handle.addEventListener("keydown", () => {
        const start = performance.now();
        setTimeout(() => resolve(null), 30000);
        new MutationObserver(async (_, observer) => {
            const image = explorer.querySelector("img");
            if (image?.src === before) return;
            observer.disconnect();
            await image.decode();
            resolve(performance.now() - start);
        }).observe(explorer, {subtree: true, childList: true, attributes: true});
    }, {once: true, capture: true}));
}"""


class Lab:
    "A JupyterLab server over a copy of the notebooks in `folder`, with settings of its own."

    def __init__(self, folder):
        self.log = folder / "jupyterlab.log"
        root, config = folder / "root", folder / "config"
        (root / "notebooks").mkdir(parents=True)
        shutil.copy(ROOT / "ntk_helpers.py", root)
        for path in NOTEBOOKS:
            notebook = json.loads(path.read_text())
            for cell in notebook["cells"]:
                if cell["cell_type"] == "code":
                    cell.update(outputs=[], execution_count=None)
            (root / "notebooks" / path.name).write_text(json.dumps(notebook))

        settings = config / "lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # or a pop-up asks
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        folders = {"JUPYTER_CONFIG_DIR": config, "JUPYTER_DATA_DIR": folder / "data", "IPYTHONDIR": folder / "ipython"}
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
                 f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
                 f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True"],
                env={**os.environ, **{name: str(path) for name, path in folders.items()}},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def request(self, path, method="GET"):
        request = urllib.request.Request(self.url + path, method=method, headers={"Authorization": f"token {TOKEN}"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or "null")

    def wait(self):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.server.poll() is None:
            try:
                return self.request("/api/status")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        pytest.fail(f"JupyterLab did not start:\n{self.log.read_text()}")

    def shut_down_kernels(self):
        for session in self.request("/api/sessions"):
            self.request(f"/api/sessions/{session['id']}", method="DELETE")

    def stop(self):
        self.server.terminate()
        try:
            self.server.wait(30)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up("the browser tests need chromium, chromium-browser or google-chrome on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        lab.wait()
        yield lab
    finally:
        lab.stop()


@contextmanager
def screenshot(page, folder):
    "Save what the page shows if the block fails."
    try:
        yield
    except BaseException:
        path = folder / "screenshot.png"
        page.screenshot(path=path)
        print(f"screenshot: {path}")
        raise


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request, lab, browser, tmp_path_factory):
    "A page with one notebook after Run All."
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.name = request.param.stem
    try:
        with screenshot(page, tmp_path_factory.mktemp(page.name)):
            page.goto(f"{lab.url}/lab/tree/notebooks/{request.param.name}?reset&token={TOKEN}")
            run_all(page, request.param)
        yield page
    finally:
        page.close()
        lab.shut_down_kernels()


def run_all(page, path):
    cells = page.locator(".jp-Notebook .jp-Cell")
    expect(cells).to_have_count(len(json.loads(path.read_text())["cells"]), timeout=60_000)
    page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel", timeout=60_000)
    # until the kernel has answered, cells sent to it get lost
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.info")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = page.locator(".jp-CodeCell .jp-InputArea-prompt")
    expect(prompts.first).to_have_text(re.compile(r"\[(\*|1)\]:"), timeout=60_000)
    expect(prompts.filter(has_text="[*]:")).to_have_count(0, timeout=PATIENCE * 1000)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    expect(page.get_by_text("Loading widget")).to_have_count(0)


def assert_no_error(page):
    "No cell failed or warned, every widget is there, and no dialog asks anything."
    assert page.locator(FAILED_OUTPUT).all_text_contents() == []
    expect(page.locator(".ntk-explorer [role=alert]")).to_have_count(0)
    expect(page.get_by_text(re.compile("Error (displaying|creating) widget"))).to_have_count(0)
    expect(page.locator(".jp-Dialog")).to_have_count(0)


def press(page, handle, key):
    """Press a key on a slider's handle and wait for the picture it leads to: milliseconds, or None at the slider's end.

    The new picture must differ from the last one, and its alternative text must give the slider's new value.
    """
    readout = handle.locator("xpath=ancestor::*[contains(@class, 'widget-slider')]").locator(".widget-readout")
    picture = handle.locator("xpath=ancestor::*[contains(@class, 'ntk-explorer')]").locator("img")
    value, before = readout.text_content(), picture.get_attribute("alt")
    handle.focus()
    handle.evaluate(TIME_NEXT_PICTURE)
    page.keyboard.press(key)
    if readout.text_content() == value:
        return None
    milliseconds = page.evaluate("window.nextPicture")
    value, text = readout.text_content(), picture.get_attribute("alt")
    alerts = page.locator(".ntk-explorer [role=alert]").all_text_contents()
    assert milliseconds is not None, f"{key} to {value}: no new picture within 30 s; messages: {alerts}"
    assert text != before, f"{key} to {value}: another picture with the same text: {text}"
    assert mentions(text, value), f"{key} to {value}: the picture's text has another value: {text}"
    return milliseconds


def mentions(text, readout):
    "Whether what a slider shows stands in the text: its numbers, to the digits shown, or else its words."
    if not re.search(NUMBER, readout):
        return readout in text
    written = [[Decimal(n.replace("−", "-")) for n in re.findall(NUMBER, s)] for s in (text, readout)]
    return all(any(abs(n - shown) <= Decimal((0, (5,), shown.as_tuple().exponent - 1)) for n in written[0])
               for shown in written[1])


def sweep(page, handle, steps):
    "Milliseconds of so many steps from the slider's upper end, back and forth."
    times, key, back = [], "ArrowLeft", "ArrowRight"
    while len(times) < steps:
        milliseconds = press(page, handle, key)
        if milliseconds is None:
            key, back = back, key
            milliseconds = press(page, handle, key)
            assert milliseconds is not None, "the slider does not move"
        times.append(milliseconds)
    return times


def tab_to(page, handle):
    for _ in range(6):  # past the value beside the slider before, and other controls between
        page.keyboard.press("Tab")
        if handle.evaluate("handle => handle === document.activeElement"):
            return
    pytest.fail("a slider cannot be reached by Tab from the one before")


def test_all_cells_run_in_order_without_error(notebook, tmp_path):
    with screenshot(notebook, tmp_path):
        assert_no_error(notebook)
        prompts = notebook.locator(".jp-CodeCell .jp-InputArea-prompt")
        expect(prompts).to_have_text([f"[{i}]:" for i in range(1, prompts.count() + 1)])


def committed_explorers(name):
    cells = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text())["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return sum("".join(data.get("text/plain", "")).startswith("Explorer(") for data in outputs)


def test_sliders_move_the_picture(notebook, tmp_path, capsys):
    rows = []
    with screenshot(notebook, tmp_path):
        expect(notebook.locator(".ntk-explorer")).to_have_count(committed_explorers(notebook.name))
        for explorer in notebook.locator(".ntk-explorer").all():
            handles = explorer.get_by_role("slider").all()
            for handle in handles:  # large nets are the slow ones
                press(notebook, handle, "End")
            for handle in handles:
                label = handle.locator("xpath=ancestor::*[contains(@class, 'widget-slider')]").locator("label")
                rows.append((label.text_content(), sweep(notebook, handle, STEPS.get(notebook.name, 4))))
            for one, other in pairwise(handles):
                one.focus()
                tab_to(notebook, other)
        assert_no_error(notebook)
    with capsys.disabled():
        print(f"\n{notebook.name}: milliseconds from key press to new picture (load {os.getloadavg()[0]:.1f})")
        for label, times in rows:
            print(f"  {label:20} {len(times):3} steps   median {statistics.median(times):4.0f}   "
                  f"95th percentile {sorted(times)[math.ceil(0.95 * len(times)) - 1]:4.0f}   "
                  f"under 100 ms: {sum(ms < 100 for ms in times)}")
    # the machines that run this are shared: the figures are for reading, the bound is against a mistake
    assert all(statistics.median(times) < 1000 for _, times in rows)


def test_boxes_and_menus_change_the_picture(notebook, tmp_path):
    with screenshot(notebook, tmp_path):
        for explorer in notebook.locator(".ntk-explorer").all():
            picture = explorer.locator("img")
            for control in explorer.locator("select, input[type=checkbox]").all():
                before = {name: picture.get_attribute(name) for name in ("src", "alt")}
                if control.get_attribute("type") == "checkbox":
                    control.press("Space")
                else:  # by mouse: JupyterLab keeps the arrow keys for itself
                    control.select_option(index=control.evaluate("menu => menu.selectedIndex ? 0 : 1"))
                for name, value in before.items():
                    expect(picture).not_to_have_attribute(name, value, timeout=30_000)
        assert_no_error(notebook)


def test_questions_answer_back(notebook, tmp_path):
    "By keyboard alone: every option gives its reason, and one of them is right."
    with screenshot(notebook, tmp_path):
        cells = json.loads((ROOT / f"notebooks/{notebook.name}.ipynb").read_text())["cells"]
        questions = notebook.locator(".ntk-question")
        expect(questions).to_have_count(sum("".join(cell["source"]).startswith("ask(") for cell in cells))
        for question in questions.all():
            verdicts = []
            for button in question.get_by_role("button").all():
                button.focus()
                notebook.keyboard.press("Enter")
                reason = question.get_by_role("alert").filter(has_text=button.text_content().strip() + ": ")
                expect(reason).to_have_text(re.compile(r"(Right|Not so)\. .{20}"))
                verdicts.append("Right." in reason.text_content())
            assert sorted(verdicts) == [False] * (len(verdicts) - 1) + [True]
        assert_no_error(notebook)


@pytest.mark.parametrize("notebook", NOTEBOOKS[:1], ids=lambda path: path.stem, indirect=True)
def test_nonsense_typed_beside_a_slider_does_no_harm(notebook, tmp_path):
    with screenshot(notebook, tmp_path):
        explorer = notebook.locator(".ntk-explorer")
        seed = explorer.locator(".widget-slider").filter(has_text="seed")
        handle, readout, picture = seed.get_by_role("slider"), seed.locator(".widget-readout"), explorer.locator("img")
        press(notebook, handle, "Home")
        press(notebook, handle, "ArrowRight")
        for typed, value in {"abc": "1", "": "1", "99999": "20", "-99999": "0", "2.7": "2"}.items():
            readout.fill(typed)
            readout.press("Enter")
            expect(readout).to_have_text(value)
            expect(picture).to_have_attribute("alt", re.compile(rf"\bseed {value}\b"))
        press(notebook, handle, "ArrowRight")  # and goes on from there
        expect(readout).to_have_text("3")
        assert_no_error(notebook)
