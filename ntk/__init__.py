"""The neural tangent kernel (NTK) of any PyTorch model, and what it is for.

Notation: inputs N, outputs O, parameters P, width n, the Jacobian J (N·O × P), and the kernel
Θ(x, x′) = ⟨∇θ f(x; θ), ∇θ f(x′; θ)⟩ (Jacot et al. 2018, arXiv:1806.07572).
"""

from ntk.gradients import get_grads
from ntk.infinite import infinite_width_ntk
from ntk.kernel import compute_ntk
from ntk.model import MLP
from ntk.products import ntk_operator
from ntk.reading import alignment, cosine, spectrum
from ntk.tangent import gradient_flow, linearize
from ntk.training import train

__all__ = ["MLP", "alignment", "compute_ntk", "cosine", "get_grads", "gradient_flow",
           "infinite_width_ntk", "linearize", "ntk_operator", "spectrum", "train"]
