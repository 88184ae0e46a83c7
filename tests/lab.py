"""JupyterLab on a copy of the course, without outputs: a server with settings of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import nbformat
from course import DECIDE, PATHS, ROOT, code, read
from processes import HANG

TOKEN = "browser-test"

# at 400 the picture takes as long as there is a file called hold
TWO_EXPLORERS = """
import sys
import time
from pathlib import Path
sys.path.insert(0, "..")
import matplotlib.pyplot as plt
from IPython.display import display
from ntk_helpers import Explorer

for name in ("one", "other"):
    figure, axes = plt.subplots(figsize=(3, 2))
    plt.close(figure)

    def draw(value=0, axes=axes):
        axes.set_title(f"drawn with {value}")
        while value == 400 and Path("hold").exists():
            time.sleep(0.02)
        return axes

    display(Explorer(draw, name + " at {value}: {title}", value=(0, 400)))
"""

# a sheet of twelve images, above a slider that makes the kernel larger
A_VIEW = """
import sys
sys.path.insert(0, "..")
import numpy as np
from ntk_helpers import Explorer, KernelView

images = np.random.default_rng(0).random((12, 8, 8))
pixels = images.reshape(12, 64)
view = KernelView(pixels @ pixels.T, inputs=images, labels=np.arange(12) % 3, sheet=True, title="t")

def draw(scale=1):
    view.kernel = scale * pixels @ pixels.T
    return view

explorer = Explorer(draw, "a kernel of size {scale}", scale=(1, 400))
explorer
"""

# three points, of which the last is drawn at, and an image of 4 × 4 cells whose sum is drawn
POINTS_AND_CANVAS = """
import sys
sys.path.insert(0, "..")
import matplotlib.pyplot as plt
from IPython.display import display
from ntk_helpers import Canvas, Points

def figure(**limits):
    figure, ax = plt.subplots(figsize=(4, 3))
    ax.set(**limits)
    plt.close(figure)
    return ax

plane, sheet = figure(xlim=(-2, 2), ylim=(-1, 1)), figure()
[dots] = plane.plot([], [], "o")
[column] = sheet.bar([0], [1])
sheet.set_ylim(0, 256)

def follow(points):
    dots.set_data(*points.T)
    plane.set_title(f"{points.round(2).tolist()}")
    return plane

def weigh(image):
    column.set_height(image.sum())
    sheet.set_title(f"{image.sum():.0f}")
    return sheet

start = [[-1, 0], [0, 0.5], [1, 0]]
points = Points(follow, "points at {title}", start, limits=((-1.5, 1.5), (-1, 1)))
canvas = Canvas(weigh, "grey values in all: {title}", size=4, image=[[0, 0, 0, 8]] * 4)
display(points, canvas)
"""

ONE_QUESTION = """
import sys
sys.path.insert(0, "..")
from ntk_helpers import ask
ask("00.brightest")
"""


class Lab:
    "A server and all it writes, in `folder`; its kernels talk over sockets, not over ports."

    def __init__(self, folder):
        self.root, self.log = folder / "root", folder / "jupyterlab.log"
        copy_course(self.root)
        settings = folder / "config/lab/user-settings/@jupyterlab/apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text(
            '{"fetchNews": "false", "checkForUpdates": false}')  # or a pop-up asks
        self.runtime = tempfile.TemporaryDirectory(prefix="lab-")  # a socket's path must be short
        folders = {"JUPYTER_CONFIG_DIR": folder / "config", "JUPYTER_DATA_DIR": folder / "data",
                   "IPYTHONDIR": folder / "ipython", "JUPYTER_RUNTIME_DIR": self.runtime.name}
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
            "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--IdentityProvider.token={TOKEN}",
            f"--ServerApp.root_dir={self.root}", "--LabApp.expose_app_in_browser=True",
            "--KernelManager.transport=ipc"]
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                command, env={**os.environ, **{name: str(path) for name, path in folders.items()}},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def request(self, path, method="GET"):
        token = {"Authorization": f"token {TOKEN}"}
        request = urllib.request.Request(self.url + path, method=method, headers=token)
        with urllib.request.urlopen(request, timeout=HANG) as response:
            return json.loads(response.read() or "null")

    def wait(self):
        "Until the server has written down its address, and answers."
        about = Path(self.runtime.name) / f"jpserver-{self.server.pid}.json"
        deadline = time.monotonic() + HANG
        while time.monotonic() < deadline and self.server.poll() is None:
            with suppress(OSError, ValueError):  # no file, half a file, no answer
                self.url = json.loads(about.read_text())["url"].rstrip("/")
                return self.request("/api/status")
            time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()}")

    def transports(self):
        "By what its kernels talk, as it told each of them."
        files = Path(self.runtime.name).glob("kernel-*.json")
        return [json.loads(file.read_text())["transport"] for file in files]

    def shut_down_kernels(self):
        for session in self.request("/api/sessions"):
            self.request(f"/api/sessions/{session['id']}", method="DELETE")

    def peak_memory(self):
        "The most memory the server and its kernels ever held, in GiB: two numbers."
        processes, server = list(statuses()), self.server.pid
        return [sum(int(process["VmHWM"].split()[0]) for process in processes
                    if int(process[whose]) == server) / 2**20 for whose in ("Pid", "PPid")]

    def stop(self):
        self.server.terminate()
        try:
            self.server.wait(30)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()
        self.runtime.cleanup()


def statuses():
    "What Linux says of every process that has memory."
    for path in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            status = dict(line.split(":", 1) for line in path.read_text().splitlines())
            if "VmHWM" in status:
                yield status


def copy_course(root):
    "The helper, the package, the notebooks without outputs, and four small ones for tests."
    (root / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "ntk_helpers.py", root)
    shutil.copytree(ROOT / "ntk", root / "ntk")
    for path in PATHS:
        notebook = read(path)
        for cell in code(notebook):
            cell.update(outputs=[], execution_count=None)
        nbformat.write(notebook, root / "notebooks" / path.name)
    small = {"two": TWO_EXPLORERS, "view": A_VIEW, "pointer": POINTS_AND_CANVAS}
    for name, source in small.items():
        cells = [nbformat.v4.new_code_cell(source)]
        other = nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)
        nbformat.write(other, root / f"notebooks/{name}.ipynb")
    nbformat.write(question_and_experiment(notebook.metadata), root / "notebooks/question.ipynb")


def question_and_experiment(metadata):
    "A notebook of two cells; the second is stored as the refresh command stores what settles one."
    outputs = [nbformat.v4.new_output("display_data", data)
               for data in (DECIDE, {"text/plain": "the outcome"})]
    experiment = nbformat.v4.new_code_cell("print('the ' + 'outcome')", outputs=outputs)
    experiment.metadata["jupyter"] = {"outputs_hidden": True}
    cells = [nbformat.v4.new_code_cell(ONE_QUESTION), experiment]
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)
