"""Pictures."""

import base64
import html
import io

import matplotlib.pyplot as plt
import torch
from IPython.display import display

from ntk.checks import require
from ntk.reading import checked_matrix


def set_style():
    "One look for every figure of the course: sizes, fonts, colours told apart by everyone, and line styles besides."
    colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito 2008
    styles = ["-", "--", "-.", ":", "-", "--", "-."]
    plt.rcParams.update({
        "figure.figsize": (6, 4), "figure.dpi": 100, "figure.constrained_layout.use": True, "image.cmap": "viridis",
        "font.size": 11, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=colors, linestyle=styles), "lines.linewidth": 1.8, "legend.frameon": False,
    })


def plot_kernel(kernel, *, ax=None, order=None, title=""):
    """Heatmap of a kernel (N1, N2), with a colour bar. Returns the axes.

    Colours run from 0 or the lowest entry up (`viridis`); they are symmetric about 0 (`RdBu_r`) once a negative entry is
    more than a quarter as large as the largest. `order` is a permutation of the rows and columns of a square kernel, say
    `labels.argsort()`. Called again with an `ax` it has drawn on, it updates the picture there: faster than drawing anew.
    Raises ValueError if the kernel is not a finite matrix, or `order` not a permutation of its rows.
    """
    kernel = checked_matrix(kernel).double().cpu()
    if order is not None:
        order = torch.as_tensor(order).cpu()
        permutes = not order.is_floating_point() and torch.equal(order.sort()[0], torch.arange(len(kernel)))
        require(permutes and kernel.shape[0] == kernel.shape[1], f"order must be a permutation of 0 … {len(kernel) - 1} for "
                 f"a square kernel, got a kernel of shape {tuple(kernel.shape)} and order of shape {tuple(order.shape)}")
        kernel = kernel[order][:, order]
    ax = plt.subplots(figsize=(5, 4.2))[1] if ax is None else ax
    image = next((image for image in ax.images if image.get_label() == "kernel"), None)
    if image is None:
        image = ax.imshow(kernel.numpy(), label="kernel", interpolation="nearest")
        bar = ax.figure.colorbar(image, ax=ax)
        bar.ax.set_xlabel("kernel", labelpad=7)  # below: above it, a long title would run into it
        bar.ax.locator_params(nbins=3)
        ax.set(xticks=[], yticks=[])  # they would take a third of the time of a redraw
        ax.spines[:].set_visible(False)
    rows, columns = kernel.shape
    ax.set(xlabel=f"example x′, 0 to {columns - 1}", ylabel=f"example x, 0 to {rows - 1}")
    low, top = min(0.0, float(kernel.min())), float(kernel.abs().max()) or 1.0
    signed = low < -top / 4
    image.set(data=kernel.numpy(), extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), clim=(-top if signed else low, top))
    if image.get_cmap().name != ("RdBu_r" if signed else "viridis"):  # setting it draws the colour bar anew
        image.set_cmap("RdBu_r" if signed else "viridis")
    ax.set_title(title, y=1)  # finding the best height takes as long as the picture
    return ax


def show(figure, alt):
    """Show a figure (or the figure of some axes) once, with a text for those who do not see it, and close it.

    The text is stored with the picture and is what a reader without images, and the comparison in CI, gets. As neither
    JupyterLab nor nbconvert hands it on, it also stands folded below the picture.
    """
    figure, buffer = figure_of(figure), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * figure.dpi)  # sharp on any screen
    width, height = (figure.get_size_inches() * figure.dpi).round().astype(int).tolist()
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": alt}
    display(data, raw=True, metadata={"image/png": {"alt": alt, "width": width, "height": height}})
    show_words(alt)
    plt.close(figure)


def show_words(alt):
    words = f'<details class="ntk-words"><summary>The picture in words</summary>{html.escape(alt)}</details>'
    display({"text/html": words, "text/plain": alt}, raw=True)


def figure_of(figure):
    figure = getattr(figure, "figure", figure)
    require(isinstance(figure, plt.Figure), f"expected a Matplotlib figure or axes, got {type(figure).__name__}", TypeError)
    return figure
