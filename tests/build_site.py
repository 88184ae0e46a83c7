"""The series as a static site, which needs neither a server nor a network nor Python.

`python tests/build_site.py OUT [NAME…]`, where NAME is the start of a notebook's file name. Texts
and outputs are the committed ones. The code is run once more for the sliders: each explorer draws
its pictures on a small grid, and in the page its sliders choose among these. nbconvert makes the
pages, from the templates in tests/site.
"""

import base64
import html
import os
import re
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import process_time

import matplotlib
from course import DECIDE, PATHS, ROOT, code, read
from frames import Frames, compact
from IPython.core.interactiveshell import InteractiveShell
from jinja2 import Environment, FileSystemLoader
from latex2mathml.converter import convert
from matplotlib import pyplot as plt
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat.v4 import new_output
from refresh_notebooks import repository
from traitlets.config import Config

SITE, FURNITURE = Path(__file__).with_name("site"), ROOT / "ntk" / "notebook"
PAGE = 3_000_000  # bytes of a page with all its pictures, at most
ROW = re.compile(r'^\| <img src="(?P<picture>\S+)" [^|]*> '
                 r"\| \[(?P<title>.*?)\]\(notebooks/(?P<name>\w+)\.ipynb\) "
                 r"\| (?P<minutes>\d+) \| (?P<able>.*) \|$", re.M)  # of the table in README
BY_POINTER = ("<p>In JupyterLab you change this picture with the pointer. Here, where no Python "
              "runs, are some of its states.</p>")
OURS = "Explorer(", "KernelView("  # how the texts of outputs begin that move in a page
RUN_TO_ANSWER = "▶ Run this cell to answer, or open"  # of questions
TEMPLATES = Environment(loader=FileSystemLoader(SITE), autoescape=True, trim_blocks=True,
                        lstrip_blocks=True)


def fill(template, **values):
    return TEMPLATES.get_template(f"{template}.html.j2").render(values)


# What a notebook displays of ours


def kind_of(output):
    "Explorer, KernelView, …, by what its stored text begins with."
    return output.get("data", {}).get("text/plain", "").partition("(")[0]


def moves(output):
    return output.get("data", {}).get("text/plain", "").startswith(OURS)


def displayed(cells):
    "Run cells, as far as there is one with explorers or views; yield (cell, those it displays)."
    sys.path.insert(0, str(ROOT))
    import ntk_helpers

    seen = []
    for kind in (ntk_helpers.Explorer, ntk_helpers.KernelView):
        kind._ipython_display_ = lambda self: seen.append(self)  # its stored picture exists already
    ntk_helpers.show = lambda figure, alt: plt.close("all")
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    last = max((k for k, cell in enumerate(cells) if any(map(moves, cell.outputs))), default=-1)
    for k, cell in enumerate(cells):
        seen.clear()
        if k <= last:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                shell.run_cell(cell.source).raise_error()
        yield cell, [widget for widget in seen if repr(widget).startswith(OURS)]


def traits_of(view):
    "What a view sends to its JavaScript: values, and bytes as text."
    from ntk_helpers import KernelView

    values = {name: getattr(view, name) for name in KernelView.class_own_traits(sync=True)}
    return {name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes)
            else value for name, value in values.items()}


# Markdown


class Renderer(IPythonRenderer):
    "Formulas as MathML; headings with JupyterLab's anchors; badges, which lie elsewhere, as words."

    def block_math(self, body):
        return convert(body.strip(), display="block")

    def inline_math(self, body):
        return convert(body.strip())

    def latex_environment(self, name, body):
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def heading(self, text, level, **attributes):
        anchor = html.unescape(re.sub("<.*?>", "", text)).replace(" ", "-")
        return f'<h{level} id="{html.escape(anchor)}">{text}</h{level}>\n'

    def image(self, text, url, title=None):
        return f'<span class="badge">{html.escape(text)}</span>'


def markdown(source):
    return MarkdownWithMath(renderer=Renderer(escape=False)).render(source)


def with_links(page, names):
    "Links to notebooks lead to the pages with these names, all other relative ones to GitHub."
    def target(link):
        name, anchor = link[1], link[2] or ""
        if name in names:
            return f'href="{name}.html{anchor}"'
        return f'href="https://github.com/{repository()}/blob/HEAD/notebooks/{name}.ipynb{anchor}"'

    page = re.sub(r'href="(?:notebooks/)?(\w+)\.ipynb(#.*?)?"', target, page)
    return page.replace('href="../README.md"', 'href="index.html"')


# Pages


class Page:
    "A notebook as a page in `out`, and its pictures in a folder there of the same name."

    def __init__(self, path, out):
        self.notebook, self.explorers, self.pictures = read(path), [], 0
        self.name, self.out, self.folder = path.stem, out, out / path.stem
        self.folder.mkdir()

    def write(self, names):
        "names: of all pages, in their order. Returns a sentence about this one."
        for cell, found in displayed(code(self.notebook)):
            cell.outputs = [*self.outputs(cell.outputs, found)]
        body = body_of(self.notebook)
        self.thin(PAGE - len(body.encode()) - sum(map(size_of, self.folder.iterdir())))
        for number, frames in enumerate(self.explorers):
            stem = f"{self.name}/{number}-"
            filled = fill("explorer", **frames.written(self.out / stem), stem=stem,
                          id=f"explorer-{number}")
            body = body.replace(placeholder(number), filled)
        at = names.index(self.name)
        page = fill("page", title=re.search("<h1.*?>(.*?)</h1>", body)[1], body=body,
                    contents=re.findall('<h2 id="(.*?)">(.*?)</h2>', body),
                    before=names[at - 1] if at else None,
                    after=names[at + 1] if names[at + 1:] else None)
        (self.out / f"{self.name}.html").write_text(with_links(page, names), encoding="utf-8")
        size = size_of(self.out / f"{self.name}.html") + sum(map(size_of, self.folder.iterdir()))
        return f"{self.name}: {size / 1e6:.2f} MB, {process_time():.0f} s"

    def outputs(self, stored, found):
        "Pictures in files; explorers and views in place of theirs, and of an explorer's words."
        inside = False
        for output in stored:
            data = output.get("data", {})
            if data == DECIDE or inside and "ntk-words" in data.get("text/html", ""):
                continue
            inside = kind_of(output) == "Explorer"
            if inside:
                yield html_output(placeholder(len(self.explorers)))
                self.explorers.append(Frames(found.pop(0)))
                continue
            if "image/png" in data:
                self.pictures += 1
                self.save(output, f"{self.name}/picture-{self.pictures}.webp")
            if kind_of(output) == "KernelView":
                output = html_output(fill("view", traits=traits_of(found.pop(0)),
                                          png=output.metadata["image/png"],
                                          source=output.metadata["filenames"]["image/png"]))
            yield output
            if kind_of(output) in ("Points", "Canvas"):
                yield html_output(BY_POINTER)

    def save(self, output, source):
        (self.out / source).write_bytes(compact(base64.b64decode(output.data["image/png"])))
        output.metadata["filenames"] = {"image/png": source}

    def thin(self, room):
        "Fewer frames, until they and their words have room."
        while sum(frames.size for frames in self.explorers) > room:
            largest = max(self.explorers, key=lambda frames: frames.size)
            if not largest.thin():
                raise RuntimeError(f"{self.name} has more than {PAGE} bytes of needed pictures")


def placeholder(number):
    return f"<!-- explorer {number} -->"


def html_output(text):
    return new_output("display_data", {"text/html": text})


def size_of(file):
    return file.stat().st_size


def body_of(notebook):
    "The cells as HTML, folded where JupyterLab folds them."
    exporter = HTMLExporter(template_name="basic", template_file="cells.html.j2",
                            extra_template_paths=[str(SITE)], exclude_input_prompt=True,
                            exclude_output_prompt=True, filters={"markdown2html": markdown})
    body, _ = exporter.from_notebook_node(notebook)
    return body.replace(RUN_TO_ANSWER, "Open")


def build(path, out, names):
    "Write a page, in a process that does nothing else."
    os.chdir(ROOT / "notebooks")
    matplotlib.use("agg")
    return Page(path, out).write(names)


def write_map(out, names):
    "index.html: the table of README, for the pages there are."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [row.groupdict() for row in ROW.finditer(readme) if row["name"] in names]
    (out / "thumbnails").mkdir()
    for row in rows:
        shutil.copy(ROOT / row["picture"], out / "thumbnails")
        row["able"] = markdown(row["able"]).strip().removeprefix("<p>").removesuffix("</p>")
    title, about = re.match(r"# (.*)\n+((?:.|\n)*?)\n\n\[!\[", readme).groups()
    page = fill("page", title=title, body=markdown(about), rows=rows)
    (out / "index.html").write_text(with_links(page, names), encoding="utf-8")


def write_shared(out):
    "One style sheet and one script, with those of the kernel view, which becomes no module."
    style = (SITE / "page.css").read_text() + (FURNITURE / "kernel_view.css").read_text()
    view = (FURNITURE / "kernel_view.js").read_text().replace("export default {render};",
                                                              "window.renderView = render;")
    (out / "page.css").write_text(style, encoding="utf-8")
    (out / "page.js").write_text(view + (SITE / "page.js").read_text(), encoding="utf-8")


def main(out, *starts):
    paths = [path for path in PATHS if not starts or path.name.startswith(starts)]
    if not paths:
        sys.exit(f"no notebook starts with {' or '.join(starts)}")
    out, names = Path(out).resolve(), [path.stem for path in paths]
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} is not empty")
    out.mkdir(parents=True, exist_ok=True)
    write_shared(out)
    write_map(out, names)
    with ProcessPoolExecutor(mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for line in pool.map(partial(build, out=out, names=names), paths):
            print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
