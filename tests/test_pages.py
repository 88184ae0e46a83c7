"""The notebooks as somebody reads them who runs nothing: as HTML, wide and on a phone.

By eye, and by axe-core. nbconvert's page gets its scripts from the network, which is shut off here;
what must be readable is there without them.
"""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from course import PATHS, count_explorers, read
from nbconvert import HTMLExporter

pytestmark = pytest.mark.slow

# what nbconvert's theme decides, not the notebook: colours of code, prompts and links
THEME = {"context": {"exclude": [[".highlight"], [".jp-InputPrompt"], [".jp-OutputPrompt"]]},
         "options": {"rules": {"link-in-text-block": {"enabled": False}}}}
PHONE, DESK = {"width": 400, "height": 800}, {"width": 1280, "height": 1000}


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.stem)
def page(request, new_page, tmp_path_factory):
    html, _ = HTMLExporter().from_filename(request.param)
    path = tmp_path_factory.mktemp("pages") / f"{request.param.stem}.html"
    path.write_text(html)
    page = new_page(viewport=DESK)
    page.route(re.compile("^https?:"), lambda route: route.abort())
    page.goto(path.as_uri())
    page.explorers = count_explorers(read(request.param))
    yield page
    page.close()


def test_every_picture_is_there_with_its_words(page):
    width = "async image => { await image.decode(); return image.naturalWidth; }"
    outputs = page.locator(".jp-OutputArea-child").filter(has=page.locator("img"))
    assert outputs.count() > page.explorers > 0
    assert page.locator(".ntk-explorer img, .jp-RenderedImage img").count() >= outputs.count()
    assert page.get_by_text(re.compile("displaying widget")).count() == 0
    for picture in page.locator(".jp-OutputArea img").all():
        assert picture.evaluate(width) > 100
    for output in outputs.all():
        words = output.locator("xpath=following-sibling::*[1]").locator("details.ntk-words")
        assert len(words.inner_text()) and len(words.text_content()) > 60


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(page, size):
    page.set_viewport_size(size)
    violations = Axe().run(page, **THEME).response["violations"]
    assert [(rule["help"], [node["html"] for node in rule["nodes"]]) for rule in violations] == []


def test_nothing_is_cut_off_on_a_phone(page):
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for picture in page.locator(".jp-OutputArea img").all():
        box = picture.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
