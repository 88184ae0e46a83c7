"""The course for a class: `python tests/without_solutions.py OUT` copies it without solutions.

OUT, a new folder, gets the notebooks with their exercises and no solution, and what they import.
"""

import argparse
import re
import shutil
from pathlib import Path

import nbformat
from course import PATHS, ROOT, read

SOLUTION = re.compile(r"<details><summary>Solution.*?</details>\n*", re.S)
ALSO = ["ntk_helpers.py", "ntk", "requirements.txt", "constraints.txt", "LICENSE"]


def without_solutions(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", cell.source).rstrip()
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    return notebook


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    folder = parser.parse_args().out
    (folder / "notebooks").mkdir(parents=True)
    for path in PATHS:
        nbformat.write(without_solutions(read(path)), folder / "notebooks" / path.name)
    for name in ALSO:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)


if __name__ == "__main__":
    main()
