"""Run notebooks in fresh kernels and write them back in one normal form.

`python tests/refresh_notebooks.py [NAME…]`, where NAME is the start of a file name (`03`, say);
without one, all notebooks are run. A second run changes nothing but pictures that really changed.
Badges and addresses, here, in README.md and in CITATION.cff, are written from README's
`[repository]:` line.
"""

import base64
import io
import os
import re
import sys

import nbformat
from course import DECIDE, FOLDED, PATHS, ROOT, code, read, settling
from kernels import AsyncSocketKernelManager
from nbclient import NotebookClient
from PIL import Image
from processes import HANG

PICTURES = ROOT / ".github" / "pictures"
ADDRESS = re.compile(r"^\[repository\]: https://github\.com/(\S+)$", re.M)
KERNEL = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python",
                         "name": "python3"},
          "language_info": {"name": "python"}}


def repository():
    "OWNER/REPO, as README has it."
    return ADDRESS.search((ROOT / "README.md").read_text(encoding="utf-8"))[1]


def badges(repo, name):
    binder = f"https://mybinder.org/v2/gh/{repo}/HEAD?urlpath=lab/tree/notebooks/{name}"
    colab = f"https://colab.research.google.com/github/{repo}/blob/HEAD/notebooks/{name}"
    return (f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder}) "
            "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"({colab})")


def with_addresses(text, repo, name):
    "`text` with its line of badges and its clone address as they should be."
    line = r"^(BADGES|\[!\[Open in Binder\].*)$"
    text = re.sub(line, lambda _: badges(repo, name), text, flags=re.M)
    return re.sub(r"(?<=--depth 1 )https://github\.com/\S+", f"https://github.com/{repo}", text)


def moved(text, old, new):
    "`text` with addresses below GitHub repository `old`, and of its pages, as they are at `new`."
    for address in "https://github.com/{}/{}", "https://{}.github.io/{}":
        text = text.replace(address.format(*old.split("/")), address.format(*new.split("/")))
    return text


def write_addresses(root, repo):
    "In README and CITATION.cff; where the repository was, README's badges still say."
    readme = root / "README.md"
    was = re.search(r"mybinder\.org/v2/gh/(.+?)/HEAD", readme.read_text(encoding="utf-8"))[1]
    for file in readme, root / "CITATION.cff":
        text = moved(file.read_text(encoding="utf-8"), was, repo)
        file.write_text(with_addresses(text, repo, PATHS[0].name), encoding="utf-8")


def client(notebook):
    "Runs every cell in a fresh kernel, in the notebooks' folder; the first error stops."
    return NotebookClient(notebook, kernel_name="python3", timeout=HANG, startup_timeout=HANG,
                          kernel_manager_class=AsyncSocketKernelManager,
                          resources={"metadata": {"path": ROOT / "notebooks"}})


def normalise(notebook):
    notebook.metadata = KERNEL
    for count, cell in enumerate(code(notebook), start=1):
        cell.execution_count = count
        cell.metadata.pop("execution", None)  # timings
        plumbing = cell.metadata.pop("jupyter", {}).get("source_hidden", False)  # stays folded
        if plumbing or cell.source.startswith(FOLDED):
            cell.metadata["jupyter"] = {"source_hidden": True}
        cell.outputs = joined(output for output in cell.outputs if output.get("data") != DECIDE)
        for output in cell.outputs:
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            if output.output_type == "execute_result":
                output.execution_count = count
    for cell in settling(notebook):
        if cell.outputs:
            hide_outputs(cell)


def hide_outputs(cell):
    """JupyterLab shows them once the cell has run, and until then the first line of the first.

    That would be the answer, as text, so another output stands before it. No run gives it.
    """
    cell.metadata.setdefault("jupyter", {})["outputs_hidden"] = True
    cell.outputs.insert(0, nbformat.v4.new_output("display_data", DECIDE))


def joined(outputs):
    "Pieces of one stream arrive as they were flushed, differently each time: join them."
    result = []
    for output in outputs:
        name = output.get("name")  # stdout or stderr: only a stream has one
        if name and result and result[-1].get("name") == name:
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def refresh(path, repo):
    notebook = read(path)
    for cell in notebook.cells:
        cell.source = with_addresses(cell.source, repo, path.name)
    timings = {cell.id: cell.outputs for cell in code(notebook)
               if "NBVAL_IGNORE_OUTPUT" in cell.source and cell.outputs}
    client(notebook).execute()
    for cell in code(notebook):
        if cell.id in timings:  # a new number would say nothing new
            cell.outputs = timings[cell.id]
    normalise(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    (PICTURES / f"{path.stem}.png").write_bytes(explorer_picture(notebook))


def explorer_picture(notebook):
    "The first explorer's picture, for the table in README."
    shown = (output.get("data", {}) for cell in code(notebook) for output in cell.outputs)
    explorer = next(data for data in shown if data.get("text/plain", "").startswith("Explorer("))
    picture = Image.open(io.BytesIO(base64.b64decode(explorer["image/png"]))).convert("RGB")
    picture.thumbnail((480, 480))
    png = io.BytesIO()
    picture.save(png, "png", optimize=True)
    return png.getvalue()


def main(names):
    chosen = [path for path in PATHS if not names or path.name.startswith(tuple(names))]
    if not chosen:
        sys.exit(f"no notebook starts with {' or '.join(names)}: "
                 f"there are {', '.join(path.name for path in PATHS)}")
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else the kernel warns of frozen modules
    repo = repository()
    write_addresses(ROOT, repo)
    for path in chosen:
        print(path.name, flush=True)
        refresh(path, repo)


if __name__ == "__main__":
    main(sys.argv[1:])
