"""The static site in Chromium: opened from files, without a network, without Python.

One build of five notebooks serves all tests, also in several processes.
"""

import fcntl
import html
import os
import re
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from build_site import PAGE, markdown
from course import PATHS, ROOT, count_explorers, is_folded, read
from playwright.sync_api import expect
from processes import HANG, python

pytestmark = pytest.mark.slow

BUILT = [path for path in PATHS if path.name[:2] in ("00", "01", "04", "10", "16")]
PHONE, DESK = {"width": 400, "height": 800}, {"width": 1280, "height": 1000}
FORMULA = re.compile(r"\$\$.+?\$\$|(?<![\\$])\$.+?\$|\\begin\{aligned\}", re.S)


def build(out, *names):
    python("tests/build_site.py", str(out), *names, cwd=ROOT)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the same for all processes, of which the first one builds
    with open(folder / "site.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "site").exists():
            build(folder / "site", *(path.name[:2] for path in BUILT))
    return folder / "site"


@pytest.fixture(scope="module", params=BUILT, ids=lambda path: path.stem)
def page(request, site, new_page):
    "Requests that leave the folder and errors are collected."
    page = new_page(viewport=DESK)
    page.path, page.notebook, page.wrong = request.param, read(request.param), []
    page.on("request", lambda sent: page.wrong.append(sent.url)
            if not sent.url.startswith((site.as_uri(), "data:")) else None)
    page.on("requestfailed", lambda sent: page.wrong.append(sent.url))
    page.on("console", lambda said: page.wrong.append(said.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.route(re.compile("^https?:"), lambda route: route.abort())
    page.goto((site / f"{request.param.stem}.html").as_uri())
    unfold(page)
    yield page
    page.close()


def unfold(page):
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")


# The files


def pages(site):
    return {path.name: path.read_text(encoding="utf-8") for path in site.glob("*.html")}


def test_there_is_a_page_for_each_notebook_and_a_map(site):
    assert pages(site).keys() == {"index.html", *(f"{path.stem}.html" for path in BUILT)}


def test_a_page_with_all_its_pictures_is_small(site):
    for path in BUILT:
        files = [site / f"{path.stem}.html", *(site / path.stem).iterdir()]
        assert sum(file.stat().st_size for file in files) <= PAGE


def test_links_between_pages_resolve(site):
    found = pages(site)
    anchors = {name: {html.unescape(anchor) for anchor in re.findall(r'\bid="(.*?)"', text)}
               for name, text in found.items()}
    for name, text in found.items():
        for link in map(html.unescape, re.findall(r'(?:href|src)="(.*?)"', text)):
            file, _, anchor = link.partition("#")
            if not link.startswith(("https://", "data:")):
                assert (site / file).exists(), (name, link)
                assert not anchor or unquote(anchor) in anchors[file or name], (name, link)


def test_every_formula_is_mathml(site):
    for path in BUILT:
        text = (site / f"{path.stem}.html").read_text(encoding="utf-8")
        prose = re.sub(r"<(pre|code|script)\b.*?</\1>", "", text, flags=re.S)
        assert "$" not in prose and "\\frac" not in prose
        sources = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
        written = re.sub(r"```.*?```|`[^`]*`", "", "\n\n".join(sources), flags=re.S)
        assert prose.count("<math ") == len(FORMULA.findall(written))


def test_markdown_keeps_anchors_and_turns_badges_into_words():
    assert '<h2 id="A-&quot;b&quot;">' in markdown('## A "b"')
    assert markdown("[![Open](https://x/y.svg)](https://x)").count('class="badge">Open') == 1


def test_two_builds_are_the_same(site, tmp_path):
    name = BUILT[-1].stem
    build(tmp_path / "again", name)
    for file in (tmp_path / "again" / name).iterdir():
        assert file.read_bytes() == (site / name / file.name).read_bytes()
    body = [re.search("<main>.*</main>", (folder / f"{name}.html").read_text(), re.S)[0]
            for folder in (site, tmp_path / "again")]
    here = re.compile(r'href="(\w+\.html|https://github\.com/[\w./]+?)(#.*?)?"')  # other pages
    assert here.sub("", body[0]) == here.sub("", body[1])


# In a browser


def states(explorer):
    picture = explorer.locator("img")
    return picture.get_attribute("src"), picture.get_attribute("alt")


def test_every_slider_moves_its_picture_by_keyboard_and_the_words_follow(page):
    explorers = page.locator(".explorer")
    assert explorers.count() == count_explorers(page.notebook) > 0
    for explorer in explorers.all():
        for slider in explorer.get_by_role("slider").all():
            before, said = states(explorer), slider.get_attribute("aria-valuetext")
            slider.press("Home" if int(slider.input_value()) else "End")
            source, alt = states(explorer)
            assert source != before[0] and alt != before[1]
            assert slider.get_attribute("aria-valuetext") != said
            expect(explorer.locator("[aria-live]")).to_have_text(alt)
            expect(explorer.locator(".ntk-words p")).to_have_text(alt)
            expect(explorer.locator(f"output[for={slider.get_attribute('id')}]")).to_have_text(
                slider.get_attribute("aria-valuetext"))
            explorer.locator("img").evaluate("image => image.decode()")


def test_a_slider_moves_by_pointer_through_all_its_pictures(page):
    explorer = page.locator(".explorer").first
    slider = explorer.get_by_role("slider").first
    slider.scroll_into_view_if_needed()
    box, seen = slider.bounding_box(), set()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for part in range(21):
        page.mouse.move(box["x"] + 2 + (box["width"] - 4) * part / 20, box["y"] + 8)
        seen.add(states(explorer))
    page.mouse.up()
    assert len(seen) == int(slider.get_attribute("max")) + 1
    assert slider.input_value() == slider.get_attribute("max")


def test_boxes_and_buttons_change_the_picture(page):
    for explorer in page.locator(".explorer").all():
        for button in explorer.locator("input[type=checkbox], input[type=radio]").all():
            if button.get_attribute("type") == "checkbox" or not button.is_checked():
                before = states(explorer)
                button.press(" ")
                assert states(explorer) != before


def test_a_film_runs_to_its_end(page):
    for button in page.locator(".play").all():
        slider = button.locator("xpath=preceding-sibling::input")
        slider.press("Home")
        button.click()
        expect(button).to_have_text("Stop")
        expect(slider).to_have_value(slider.get_attribute("max"), timeout=1000 * HANG)
        expect(button).to_have_text("Play")


def test_a_kernel_answers_to_the_pointer_and_to_keys(page):
    for view in page.locator(".view").all():
        board, says = view.locator(".ntk-map"), view.locator(".ntk-says")
        board.locator("canvas").first.hover(position={"x": 1, "y": 1})
        expect(says).to_have_text(re.compile("^Row example 0.*kernel"))
        board.press("ArrowDown")
        expect(says).to_have_text(re.compile("^Row example [^0]"))


def test_questions_answer(page):
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    options = page.locator(".question details")
    for option in options.all():
        verdict = option.get_by_text(re.compile("^[✓✗]"))
        expect(verdict).to_be_hidden()
        option.evaluate("""e => { for (let d = e.parentElement.closest("details"); d;
            d = d.parentElement.closest("details")) d.open = true; }""")
        option.locator("summary").press("Enter")
        expect(option).to_have_attribute("open", "")
        expect(option).to_have_text(re.compile("[✓✗]"))
    assert options.count() >= 2 * sum(cell.source.startswith("ask(")
                                      for cell in page.notebook.cells)
    unfold(page)


def test_folded_cells_are_folded(page):
    folded = [cell for cell in page.notebook.cells if cell.cell_type == "code" and is_folded(cell)]
    assert page.locator("details.folded").count() == len(folded)
    for fold, cell in zip(page.locator("details.folded > summary").all(), folded):
        assert fold.text_content() == cell.source.split("\n")[0]
    hidden = [cell for cell in page.notebook.cells
              if cell.metadata.get("jupyter", {}).get("outputs_hidden")]
    assert page.get_by_text("Decide first, then look.", exact=True).count() == len(hidden)


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")],
                         ids=["desk in the light", "phone in the dark"])
def test_axe_finds_nothing_and_nothing_is_cut_off(page, size, scheme):
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    found = Axe().run(page, options={"preload": False}).response["violations"]
    assert [(rule["help"], [node["html"] for node in rule["nodes"]]) for rule in found] == []


def test_formulas_and_pictures_are_drawn(page):
    for formula in page.locator("math").all()[:20]:
        assert formula.bounding_box()["height"] > 8
    for picture in page.locator("main img").all():
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("async e => { await e.decode(); return e.naturalWidth; }") > 100
        assert len(picture.get_attribute("alt")) > 30


def test_no_error_and_nothing_from_elsewhere(page):
    page.reload()
    unfold(page)
    assert page.wrong == []


def test_the_map_leads_to_every_page(site, new_page):
    page = new_page(viewport=PHONE)
    page.goto((site / "index.html").as_uri())
    links = page.locator(".map a")
    assert links.count() == len(BUILT)
    assert Axe().run(page, options={"preload": False}).response["violations"] == []
    links.first.click()
    expect(page).to_have_title(re.compile("^00"))
    page.get_by_role("link", name="→").first.click()
    expect(page).to_have_title(re.compile("^01"))
    page.get_by_role("link", name="All notebooks").first.click()
    expect(links).to_have_count(len(BUILT))
    page.close()
