"""The notebooks as somebody reads them who runs nothing: exported to HTML, wide and on a phone, by eye and by axe-core.

nbconvert's page gets its scripts from the network, which is shut off here; what must be readable is there without them.
"""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from nbconvert import HTMLExporter
from test_browser import NOTEBOOKS, committed_explorers

# what nbconvert's theme decides, whatever the notebook says: colours of code and prompts, links without a line below
THEME = {"context": {"exclude": [[".highlight"], [".jp-InputPrompt"], [".jp-OutputPrompt"]]},
         "options": {"rules": {"link-in-text-block": {"enabled": False}}}}
PHONE, DESK = {"width": 400, "height": 800}, {"width": 1280, "height": 1000}


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def page(request, browser, tmp_path_factory):
    html, _ = HTMLExporter().from_filename(request.param)
    path = tmp_path_factory.mktemp("pages") / f"{request.param.stem}.html"
    path.write_text(html)
    page = browser.new_page(viewport=DESK)
    page.route(re.compile("^https?:"), lambda route: route.abort())
    page.goto(path.as_uri())
    yield page
    page.close()


def test_every_picture_is_there_with_its_words(page):
    explorers = committed_explorers(page.url.split("/")[-1].removesuffix(".html"))
    outputs = page.locator(".jp-OutputArea-child").filter(has=page.locator("img"))
    assert outputs.count() > explorers > 0
    assert page.locator(".ntk-explorer img, .jp-RenderedImage img").count() >= outputs.count()
    assert page.get_by_text(re.compile("displaying widget")).count() == 0
    for picture in page.locator(".jp-OutputArea img").all():
        assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth; }") > 100
    for output in outputs.all():
        words = output.locator("xpath=following-sibling::*[1]").locator("details.ntk-words")
        assert len(words.inner_text()) and len(words.text_content()) > 60


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(page, size):
    page.set_viewport_size(size)
    violations = Axe().run(page, **THEME).response["violations"]
    assert [(violation["help"], [node["html"] for node in violation["nodes"]]) for violation in violations] == []


def test_nothing_is_cut_off_on_a_phone(page):
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for picture in page.locator(".jp-OutputArea img").all():
        box = picture.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
