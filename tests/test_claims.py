"""Sentences with numbers: each number stands in the code or the output of the cells beside it, and an `assert` does, too.

Beside a text are the code cells before and after it, as far as the next text; beside the recap, all cells of the notebook.
A number that the code beside it sets needs no `assert`. Not read: what claims nothing (code, formulas, tables, citations,
links, questions), exercises, which check themselves, and numbers up to 3 that neither a point nor a rate makes a measurement.
"""

import re
import sys
from fractions import Fraction
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_notebooks import NAMES, PATHS

NOT_READ = [
    r"(?s)\*\*Reference.*", r"(?s)<details>.*?</details>", r"(?s)```.*?```", r"(?s)\$\$.*?\$\$", r"`[^`]*`", r"\$[^$]*\$",
    r"(?m)^\|.*$", r"(?m)^\s*\d+\. ", r"\*\*\d+ · ", r"arXiv:[\d.]+", r"\b(?:19|20)\d\d\b",
    r"\b(?:[Tt]heorem|[Pp]roposition|[Ll]emma|[Cc]laim|[Ff]igure|[Ss]ection|[Ee]q\.|[Nn]otebook)s? [\dA-Z][\d.]*",
    r"\[\d\d [^]]*\]\([^)]*\)", r"\]\([^)]*\)"]
UNREAD_SECTIONS = ["## Exercises", "## The course", "## Glossary"]
NUMBER = r"(?<![\w.^/₀-₉])\d[\d,]*(?<!,)(?:\.\d+)?(?: %)?(?![\w/])"
RATE = r"\b1/(?:√|\w)|n⁻|\b(?:half|halves|third|quarter|twice|tenfold|always|never)\b"

SETTLED_OTHERWISE = {  # the deliberate exceptions, few: notebook → {how the sentence begins: why it needs no cell beside it}
}


def sentences(text):
    for pattern in NOT_READ:
        text = re.sub(pattern, " … ", text)
    for block in re.split(r"\n\s*\n|\n(?=[-*>#])", text):
        yield from re.split(r"(?<=[.?!:])[)*]*\s+(?=[A-ZΘ(*])", " ".join(block.split()))


def numbers(text):
    return {Fraction(n.replace(",", "").replace("_", ""))
            for n in re.findall(r"\d[\d_,]*(?:\.\d+)?(?:e[-+]?\d+)?|\.\d+", text)}


def is_among(written, values):
    "Whether one of the values is what is written: exactly if whole, else rounded to its digits; for a share, in per cent."
    number = Fraction(written.removesuffix(" %").replace(",", ""))
    unit = Fraction(1, 10 ** len(written.removesuffix(" %").partition(".")[2]))
    shares = {100 * v for v in values} | {100 - 100 * v for v in values} if written.endswith("%") else set()
    return any(abs(v - number) <= (unit / 2 if v.denominator > 1 else 0) for v in values | shares)


def beside(cells, i):
    "The code cells before and after text i, as far as the next text."
    found = []
    for step in (-1, 1):
        j = i + step
        while 0 <= j < len(cells) and cells[j].cell_type == "code":
            found.append(cells[j])
            j += step
    return found


def unsettled(notebook):
    "Yield (sentence, what is missing beside it)."
    section, every_cell = "", [cell for cell in notebook.cells if cell.cell_type == "code"]
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown" or i == 0:
            continue
        neighbours = every_cell if cell.source.startswith("## Recap") else beside(notebook.cells, i)
        source = "\n".join(code.source for code in neighbours)
        printed = "\n".join(output.get("text", "") + output.get("data", {}).get("text/plain", "")
                            for code in neighbours for output in code.outputs)
        is_set, is_shown = numbers(source), numbers(source + "\n" + printed)
        for part in re.split(r"(?m)^(?=## )", cell.source):
            section = part.splitlines()[0] if part.startswith("## ") else section
            for sentence in sentences(part) if section not in UNREAD_SECTIONS else ():
                if sentence.endswith("?"):
                    continue
                found = [n for n in re.findall(NUMBER, sentence) if not re.fullmatch("[0-3]", n)]
                missing = [n for n in found if not is_among(n, is_shown)]
                claims = re.search(RATE, sentence) or any(not is_among(n, is_set) for n in found)
                if claims and "assert " not in source:
                    missing.append("an assertion")
                if missing:
                    yield sentence, ", ".join(missing)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_number_of_the_text_stands_in_a_cell_beside_it(path):
    exceptions = dict(SETTLED_OTHERWISE.get(path.name[:2], {}))
    rest = []
    for sentence, missing in unsettled(nbformat.read(path, as_version=4)):
        known = [start for start in exceptions if sentence.startswith(start)]
        if known:
            exceptions.pop(known[0])
        else:
            rest.append(f"{sentence}\n    missing beside it: {missing}")
    assert not rest, "\n".join(rest)
    assert not exceptions, "these are settled now"
