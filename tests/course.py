"""The notebooks as files: where they are, and what is in them."""

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.name for path in PATHS]
FOLDED = "ask(", "# checked\n", "# expected\n"  # cells whose source is looked up, not read
# stored above a hidden output; pages that run nothing show the empty formula in its place
DECIDE = {"text/latex": "", "text/plain": "Decide first, then run this cell."}


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def plain(source):
    "A cell's source without its shell commands."
    return re.sub(r"^(\s*)[!%].*", r"\1pass", source, flags=re.M)


def is_folded(cell):
    "Whether JupyterLab shows one grey line of a code cell, or a text is one that folds open."
    text = cell.cell_type == "markdown" and cell.source.startswith("<details>")
    return text or cell.metadata.get("jupyter", {}).get("source_hidden", False)


def settling(notebook):
    "The code cells that show what a text asked to predict: as far as the next text, no questions."
    asked = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            asked = "**Predict.**" in cell.source
        elif asked and not cell.source.startswith("ask("):
            yield cell


def count_explorers(notebook):
    "How many explorers its committed outputs show."
    texts = [output.get("data", {}).get("text/plain", "") for output in outputs(notebook)]
    return sum(text.startswith(("Explorer(", "Points(", "Canvas(")) for text in texts)
