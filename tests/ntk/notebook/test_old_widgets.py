"""What a learner clicks, with the ipywidgets that Colab had for years: 7.7."""

import os

import pytest
from processes import ROOT, python

pytestmark = pytest.mark.slow

CLICK_THROUGH = """
import matplotlib
matplotlib.use("agg")
import ipywidgets
import matplotlib.pyplot as plt
import torch
from ntk_helpers import Canvas, Explorer, KernelView, Points, ask, plot_kernel

assert ipywidgets.__version__ == "7.7.1"
ax = plt.subplots()[1]
draw = lambda n=2, s=0, b=False: plot_kernel((n + s) * torch.eye(3), ax=ax)
explorer = Explorer(draw, "{n} {s}", play="s", stills=[{"n": 1}, {"n": 4}], n=[1, 2, 4], s=(0, 3),
                    b=True)
explorer.controls["n"].value = 4
assert explorer.alt == "4 0" and explorer.message.value == ""
row = next(child for child in explorer.children if isinstance(child, ipywidgets.HBox))
row.children[0]._playing = True
explorer.controls["s"].value = 3
assert explorer.alt == "4 3" and explorer.message.value == ""
assert explorer._repr_mimebundle_()[1]["image/png"]["alt"] == "1 0 4 0"
question = ask("Which?", ["this", "that"], "this")
question.buttons[0].click()
view = KernelView(torch.eye(3), labels=[1, 2, 3])
view.kernel = 2 * torch.eye(3)
assert view._repr_mimebundle_()[0]["text/plain"] == "KernelView(3 × 3)"
ax = plt.subplots()[1]
points = Points(lambda points: ax, "{points[0][1]}", [[0, 1]], limits=((0, 1), (0, 1)))
points.controls["points"].set_state({"value": [[0.5, 0.25]]})
assert points.alt == "0.25" and points.message.value == ""
canvas = Canvas(lambda image: ax, "{image[0][1]:.0f}", size=2)
canvas.controls["image"].set_state({"value": [[0, 16], [0, 0]]})
assert canvas.alt == "16" and canvas.message.value == ""
print("served")
"""


def test_explorers_question_and_view_are_served(tmp_path):
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path),
           "ipywidgets==7.7.1", "ipython_genutils==0.2.0")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert "served" in python("-c", CLICK_THROUGH, env={**os.environ, "PYTHONPATH": path})
