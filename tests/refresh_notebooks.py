"""Run notebooks in fresh kernels and write them back in one normal form: `python tests/refresh_notebooks.py [NAME…]`.

NAME is the start of a file name (`03`, say); without one, all notebooks are run. A second run changes nothing but pictures
that really changed. Badges and clone addresses, here and in README.md, are written from README's `[repository]:` line.
"""

import base64
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / ".github" / "pictures"
ADDRESS = re.compile(r"^\[repository\]: https://github\.com/(\S+)$", re.M)


def repository():
    "OWNER/REPO, as README has it."
    return ADDRESS.search((ROOT / "README.md").read_text(encoding="utf-8"))[1]


def badges(repo, name):
    binder = f"https://mybinder.org/v2/gh/{repo}/HEAD?urlpath=lab/tree/notebooks/{name}"
    colab = f"https://colab.research.google.com/github/{repo}/blob/HEAD/notebooks/{name}"
    return (f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder}) "
            f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})")


def with_addresses(text, repo, name):
    "`text` with its line of badges and its clone address as they should be."
    text = re.sub(r"^(BADGES|\[!\[Open in Binder\].*)$", lambda _: badges(repo, name), text, flags=re.M)
    return re.sub(r"(?<=--depth 1 )https://github\.com/\S+", f"https://github.com/{repo}", text)


def execute(notebook):
    "Every cell in a fresh kernel, in the notebooks' folder; the first error stops."
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    where = {"metadata": {"path": ROOT / "notebooks"}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=where).execute()


def normalise(notebook):
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        cell.metadata.pop("execution", None)  # timings
        if cell.source.startswith("ask("):  # it tells the answer: JupyterLab folds it
            cell.metadata["jupyter"] = {"source_hidden": True}
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            if output.output_type == "execute_result":
                output.execution_count = count


def joined(outputs):
    "Pieces of one stream arrive as they were flushed, differently each time: join them."
    result = []
    for output in outputs:
        if result and output.output_type == "stream" == result[-1].output_type and output.name == result[-1].name:
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def refresh(path, repo):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = with_addresses(cell.source, repo, path.name)
    timings = {cell.id: cell.outputs for cell in notebook.cells if "NBVAL_IGNORE_OUTPUT" in cell.source and cell.outputs}
    execute(notebook)
    for cell in notebook.cells:
        if cell.id in timings:  # a new number would say nothing new
            cell.outputs = timings[cell.id]
    normalise(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    (PICTURES / f"{path.stem}.png").write_bytes(explorer_picture(notebook))


def explorer_picture(notebook):
    "The first explorer's picture, for the table in README."
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return base64.b64decode(next(d["image/png"] for d in outputs if d.get("text/plain", "").startswith("Explorer(")))


def main(names):
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    chosen = [path for path in paths if not names or path.name.startswith(tuple(names))]
    if not chosen:
        sys.exit(f"no notebook starts with {' or '.join(names)}: there are {', '.join(p.name for p in paths)}")
    repo = repository()
    readme = ROOT / "README.md"
    readme.write_text(with_addresses(readme.read_text(encoding="utf-8"), repo, "00_start_here.ipynb"), encoding="utf-8")
    for path in chosen:
        print(path.name, flush=True)
        refresh(path, repo)


if __name__ == "__main__":
    main(sys.argv[1:])
