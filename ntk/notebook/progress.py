"""What a learner has passed and answered, in a small file beside the notebooks.

So a restart of the kernel loses nothing, and the first notebook knows of all others. Whoever wants
to start afresh deletes the file. Where nobody says which notebook this is, as under nbval, nothing
is read or written.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from IPython import get_ipython

FILE = Path(".ntk_progress.json")
KINDS = "exercises", "questions"


def note(kind, name, right, attempted=True):
    "Keep whether an exercise or a question is right. Without an attempt it stays what it was."
    results = of_this_notebook()[kind]
    results[name] = right if attempted else results.get(name, False)
    save()


def of_this_notebook():
    "kind → name → whether it is right."
    if not kept:
        kept.update(read().get(notebook_name(), {kind: {} for kind in KINDS}))
    return kept


kept = {}  # what of_this_notebook returns, once it was read


def notebook_name():
    "As Jupyter's server or VS Code says; else empty."
    shell = get_ipython()
    path = shell.user_ns.get("__vsc_ipynb_file__") if shell else None
    return Path(path or os.environ.get("JPY_SESSION_NAME", "")).stem


def read():
    "notebook → what of_this_notebook returns there. A file that is none of ours counts as empty."
    with suppress(OSError, ValueError, AttributeError, TypeError):
        stored = json.loads(FILE.read_text(encoding="utf-8"))
        return {name: {kind: {**entry[kind]} for kind in KINDS}
                for name, entry in stored.items() if {*KINDS} <= {*entry}}
    return {}


def save():
    "Beside what other notebooks have written; a folder that cannot be written to is left alone."
    if notebook_name():
        text = json.dumps({**read(), notebook_name(): kept}, ensure_ascii=False, indent=1)
        own = FILE.with_suffix(f".{os.getpid()}")  # two kernels may write at once
        with suppress(OSError):
            own.write_text(text, encoding="utf-8")
            own.replace(FILE)


def count(entry):
    right = {kind: f"{sum(entry[kind].values())} of {len(entry[kind])}" for kind in KINDS}
    return (f"{right['exercises']} exercises passed, "
            f"{right['questions']} questions answered right")


def through_the_series():
    "A line for each notebook in this folder."
    stored = {**read(), notebook_name(): of_this_notebook()}
    names = sorted(path.stem for path in Path().glob("[0-9][0-9]_*.ipynb"))
    return [f"{name:22} {count(stored[name]) if name in stored else 'not begun'}"
            for name in names]
