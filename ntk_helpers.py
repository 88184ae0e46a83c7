"""The helper module of the course: every name a notebook may use, beside the one that teaches it.

They stand in the order in which the course teaches them. To read one, open its file: `ntk.kernel`
is ntk/kernel.py. What is computed is in ntk/, what you see and click in ntk/notebook/. A script of
your own that needs no pictures imports the package: `from ntk import compute_ntk`.
"""

from ntk.notebook.pictures import set_style      # 00_start_here
from ntk.notebook.pictures import show           # 00_start_here
from ntk.notebook.pictures import plot_kernel    # 00_start_here, and how to read it: 04_heatmap
from ntk.notebook.explorer import Explorer       # 00_start_here
from ntk.notebook.views import KernelView        # 00_start_here, and how to read it: 04_heatmap
from ntk.notebook.claim import claim             # 00_start_here
from ntk.notebook.questions import ask           # 00_start_here
from ntk.notebook.exercises import check         # 00_start_here
from ntk.notebook.exercises import score         # 00_start_here
from ntk.model import MLP                        # 01_model
from ntk.gradients import get_grads              # 02_gradients
from ntk.kernel import compute_ntk               # 03_ntk, and what it costs: 16_fast_ntk
from ntk.reading import spectrum                 # 03_ntk
from ntk.reading import cosine                   # 04_heatmap
from ntk.reading import alignment                # 04_heatmap
from ntk.infinite import infinite_width_ntk      # 06_infinite_width
from ntk.training import train                   # 09_training
from ntk.tangent import gradient_flow            # 09_training
from ntk.tangent import linearize                # 09_training
from ntk.notebook.pointer import Points          # 15_ensembles
from ntk.products import ntk_operator            # 16_fast_ntk
from ntk.notebook.pointer import Canvas          # 17_real_data

__all__ = [
    "set_style", "show", "plot_kernel", "Explorer", "KernelView", "claim", "ask",
    "check", "score",
    "MLP", "get_grads", "compute_ntk", "spectrum", "cosine", "alignment",
    "infinite_width_ntk", "train", "gradient_flow", "linearize", "Points", "ntk_operator",
    "Canvas",
]
