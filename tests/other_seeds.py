"""Run notebooks with other seeds and say which of their claims and assertions fail.

`python tests/other_seeds.py [--seeds 20] [NAME…]`, where NAME is the start of a file name (`03`,
say); without one, all notebooks are run. Every seed that a notebook sets is moved, by 1000, 2000,
and so on, and nothing else is changed. A claim that fails for one of them is true of a seed, not of
the kernel.
"""

import argparse
import ast
import contextlib
import io
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from course import PATHS, code, plain, read


class Record(ast.NodeTransformer):
    "Wraps each assert, so that its failure is noted and the next line runs; moves random_state."

    def __init__(self, shift):
        self.shift = shift

    def visit_Assert(self, node):
        note = f"FAILED.append({ast.unparse(node)!r})"
        [guarded] = ast.parse(f"try: pass\nexcept AssertionError: {note}").body
        guarded.body = [node]
        return guarded

    def visit_keyword(self, node):
        if node.arg == "random_state":
            node.value = ast.BinOp(node.value, ast.Add(), ast.Constant(self.shift))
        return self.generic_visit(node)


def failures(path, shift):
    """The claims (✗) and assertions that fail, as text, with all seeds moved by `shift`.

    An error comes last.
    """
    import matplotlib
    import numpy as np
    import torch

    matplotlib.use("agg")
    manual_seed, default_rng = torch.manual_seed, np.random.default_rng
    torch.manual_seed = lambda seed: manual_seed(seed + shift)

    def moved_rng(seed=None):
        return default_rng(seed + shift if isinstance(seed, int) else seed)  # None, from a library

    np.random.default_rng = moved_rng
    os.chdir(path.parent)
    names = {"FAILED": []}
    for cell in code(read(path)):
        tree = ast.fix_missing_locations(Record(shift).visit(ast.parse(plain(cell.source))))
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
                exec(compile(tree, path.name, "exec"), names)
            names["FAILED"] += re.findall("^✗ Here .*", said.getvalue(), re.M)
        except Exception as error:
            return [*names["FAILED"], f"{type(error).__name__}: {error} in\n{cell.source}"]
    return names["FAILED"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[""], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--shift", type=int, help=argparse.SUPPRESS)  # one run, in its own process
    arguments = parser.parse_args()
    paths = [path for path in PATHS if path.name.startswith(tuple(arguments.names))]
    if arguments.shift is not None:
        print(*failures(paths[0], arguments.shift), sep="\0", end="")
        return

    def run(path, shift):
        command = [sys.executable, __file__, path.name, "--shift", str(shift)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.split("\0") if done.returncode == 0 else [done.stderr]

    shifts = [1000 * k for k in range(1, arguments.seeds + 1)]
    with ThreadPoolExecutor(2) as pool:
        for path in paths:
            runs = pool.map(partial(run, path), shifts)
            failed = Counter(text for texts in runs for text in texts if text)
            print(f"{path.name}: {sum(failed.values())} failures in {len(shifts)} runs", flush=True)
            for text, count in failed.most_common():
                print(f"  {count:3} × {text}", flush=True)


if __name__ == "__main__":
    main()
