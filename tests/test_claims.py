"""Sentences with numbers: each number stands in the cells beside it, and a `claim` does, too.

A number stands there in the code or in the output; one that the code sets needs no claim, and where
a notebook has none yet, an `assert` is as good. Beside
a text are the code cells before and after it, as far as the next text; beside the recap, all cells
of the notebook. Not read: what claims nothing (code, formulas, tables, citations, links and
questions), exercises, which check themselves, and numbers up to 3 that neither a point nor a rate
makes a measurement.
"""

import re
from fractions import Fraction

import pytest
from course import NAMES, PATHS, code, read

NUMBERED = r"[Tt]heorem|[Pp]roposition|[Ll]emma|[Cc]laim|[Ff]igure|[Ss]ection|[Ee]q\.|[Nn]otebook"
NOT_READ = [
    r"(?s)\*\*Reference.*",
    r"(?s)<details>.*?</details>",
    r"(?s)```.*?```",
    r"(?s)\$\$.*?\$\$",
    r"`[^`]*`",
    r"\$[^$]*\$",
    r"(?m)^\|.*$",
    r"(?m)^\s*\d+\. ",
    r"\*\*\d+ · ",
    r"arXiv:[\d.]+",
    r"\b(?:19|20)\d\d\b",
    rf"\b(?:{NUMBERED})s? [\dA-Z][\d.]*",
    r"\[\d\d [^]]*\]\([^)]*\)",
    r"\]\([^)]*\)",
]
UNREAD_SECTIONS = ["## Exercises", "## The course", "## Glossary"]
NUMBER = r"(?<![\w.^/₀-₉])\d[\d,]*(?<!,)(?:\.\d+)?(?: %)?(?![\w/])"
RATE = r"\b1/(?:√|\w)|n⁻|\b(?:half|halves|third|quarter|twice|tenfold|always|never)\b"

# the deliberate exceptions: notebook → {how the sentence begins: why it needs no cell beside it}
SETTLED_OTHERWISE = {
    "18": {
        "*Measured elsewhere*: on CIFAR-10": "figures of the papers cited with them",
        "*Measured elsewhere*: on 14 language tasks": "the number of tasks in the paper cited",
    },
}


def sentences(text):
    for pattern in NOT_READ:
        text = re.sub(pattern, " … ", text)
    for block in re.split(r"\n\s*\n|\n(?=[-*>#])", text):
        yield from re.split(r"(?<=[.?!:])[)*]*\s+(?=[A-ZΘ(*])", " ".join(block.split()))


def numbers(text):
    found = re.findall(r"\d[\d_,]*(?:\.\d+)?(?:e[-+]?\d+)?|\.\d+", text)
    return {Fraction(number.replace(",", "").replace("_", "")) for number in found}


def is_among(written, values):
    """Whether one of the values is what is written: if whole exactly, else rounded to its digits.

    A value may also be the share, or what it leaves, of which the text gives the per cent.
    """
    digits = written.removesuffix(" %").replace(",", "")
    number, unit = Fraction(digits), Fraction(1, 10 ** len(digits.partition(".")[2]))
    if written.endswith("%"):
        values = values | {100 * v for v in values} | {100 - 100 * v for v in values}
    return any(abs(v - number) <= (unit / 2 if v.denominator > 1 else 0) for v in values)


def beside(cells, i):
    "The code cells before and after text i, as far as the next text."
    found = []
    for step in (-1, 1):
        j = i + step
        while 0 <= j < len(cells) and cells[j].cell_type == "code":
            found.append(cells[j])
            j += step
    return found


def texts(notebook):
    "Yield (sentence, the code cells beside it) of what claims something: not titles and questions."
    section = ""
    for i, cell in enumerate(notebook.cells[1:], start=1):
        if cell.cell_type == "markdown":
            recap = cell.source.startswith("## Recap")
            neighbours = code(notebook) if recap else beside(notebook.cells, i)
            for part in re.split(r"(?m)^(?=## )", cell.source):
                section = part.splitlines()[0] if part.startswith("## ") else section
                if section not in UNREAD_SECTIONS:
                    yield from ((sentence, neighbours) for sentence in sentences(part)
                                if not sentence.endswith("?"))


def missing_beside(sentence, neighbours):
    "What a sentence says and the code cells beside it do not show."
    source = "\n".join(cell.source for cell in neighbours)
    printed = "\n".join(output.get("text", "") + output.get("data", {}).get("text/plain", "")
                        for cell in neighbours for output in cell.outputs)
    is_set, is_shown = numbers(source), numbers(f"{source}\n{printed}")
    found = [n for n in re.findall(NUMBER, sentence) if not re.fullmatch("[0-3]", n)]
    missing = [n for n in found if not is_among(n, is_shown)]
    claims = re.search(RATE, sentence) or any(not is_among(n, is_set) for n in found)
    if claims and not re.search(r"\bclaim\(|\bassert ", source):
        missing.append("a claim")
    return ", ".join(missing)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_number_of_the_text_stands_in_a_cell_beside_it(path):
    exceptions = dict(SETTLED_OTHERWISE.get(path.name[:2], {}))
    rest = []
    for sentence, neighbours in texts(read(path)):
        missing = missing_beside(sentence, neighbours)
        known = [start for start in exceptions if sentence.startswith(start)]
        if missing and known:
            exceptions.pop(known[0])
        elif missing:
            rest.append(f"{sentence}\n    missing beside it: {missing}")
    assert not rest, "\n".join(rest)
    assert not exceptions, "these are settled now"
