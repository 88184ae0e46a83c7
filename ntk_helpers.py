"""The helper module of the neural tangent kernel course."""

from ntk import (
    MLP, alignment, compute_ntk, cosine, get_grads, gradient_flow, infinite_width_ntk, linearize, spectrum, train)
from ntk.notebook.exercises import ask, check, score
from ntk.notebook.explorer import Explorer
from ntk.notebook.pictures import plot_kernel, set_style, show

__all__ = ["MLP", "Explorer", "alignment", "ask", "check", "compute_ntk", "cosine", "get_grads", "gradient_flow",
           "infinite_width_ntk", "linearize", "plot_kernel", "score", "set_style", "show", "spectrum", "train"]
