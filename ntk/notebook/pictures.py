"""Pictures: one look for all of them, a kernel as a heatmap, and each with its words.

A kernel's colours start at zero: black means "unrelated" in every kernel, whatever its size. What
moves together glows like a fire, what moves apart in green. Whoever does not see a picture gets the
text that `show` asks for.
"""

import base64
import html
import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.colors import LinearSegmentedColormap, ListedColormap

from ntk.checks import require
from ntk.reading import checked_matrix, real_numbers

HAPPENED, PREDICTED, START = "#D55E00", "#000000", "#0072B2"  # in every picture of the course

NEGATIVE = LinearSegmentedColormap.from_list("", ["#d8fff0", "#4fd0b0", "#12806e", "#063c38",
                                                  "#000004"])
GLOW = ListedColormap(np.concatenate([NEGATIVE(np.linspace(0, 1, 256))[:-1],
                                      matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))]),
                      name="glow")  # black in the middle, at zero


def set_style():
    """One look for every figure of the course: sizes, fonts, and lines.

    Lines differ in style and in colours that everyone can tell apart (Okabe & Ito 2008, "Color
    Universal Design").
    """
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    styles = ["-", "--", "-.", ":", "-", "--", "-."]
    plt.rcParams.update({
        "figure.figsize": (6, 4),
        "figure.dpi": 100,
        "figure.constrained_layout.use": True,
        "image.cmap": "inferno",
        "image.interpolation": "nearest",
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.labelcolor": "0.25",
        "xtick.color": "0.25",
        "ytick.color": "0.25",
        "axes.edgecolor": "0.25",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=colours, linestyle=styles),
        "lines.linewidth": 1.8,
        "legend.frameon": False,
    })


def plot_kernel(kernel, *, ax=None, order=None, title=""):
    """Heatmap of a kernel (N1, N2), a tensor or array, with a colour bar. Returns the axes.

    Black is 0, the largest entry in size is bright; negative entries have colours of their own.

    ax: where to draw. A heatmap that is there already is updated, which is faster than a new one.
        Once `ax` is cleared, a new one is drawn beside the colour bar of the old.
    order: a permutation (N,) of the rows and columns of a square kernel, say `labels.argsort()`.

    Raises ValueError if the kernel is not a real and finite matrix, or `order` no permutation of
    its rows.
    """
    kernel = checked_matrix(kernel).double().cpu()
    if order is not None:
        kernel = reordered(kernel, real_numbers(order, "order").cpu())
    if ax is None:
        ax = plt.subplots(figsize=(5, 4.2))[1]
    drawn = [image for image in ax.images if image.get_label() == "kernel"]
    image = drawn[0] if drawn else first_heatmap(kernel, ax)
    rows, columns = kernel.shape
    ax.set(xlabel=f"example x′, 0 to {columns - 1}", ylabel=f"example x, 0 to {rows - 1}")
    image.set(data=kernel.numpy(), extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    set_colours(image, kernel)
    ax.set_title(title, y=1)  # finding the best height takes as long as the picture
    return ax


def reordered(kernel, order):
    rows, columns = kernel.shape
    integers = not order.is_floating_point() and order.dtype != torch.bool
    permutes = integers and torch.equal(order.sort()[0], torch.arange(rows))
    require(permutes and rows == columns,
            f"order must be a permutation of 0 … {rows - 1} for a square kernel, got a kernel of "
            f"shape {tuple(kernel.shape)} and order of shape {tuple(order.shape)}")
    order = order.long()  # uint8 would be a mask
    return kernel[order][:, order]


def first_heatmap(kernel, ax):
    "An image with all that stays when it is updated. Its label is how a later call finds it."
    image = ax.imshow(kernel.numpy(), GLOW, label="kernel", interpolation="nearest")
    bar = colour_bar(image, ax)
    if not bar.ax.texts:  # no title, for whose width a layout leaves no room
        bar.ax.text(0, 1.035, "", transform=bar.ax.transAxes, va="bottom")  # above the top tick's
    bar.ax.locator_params(nbins=5)
    ax.set(xticks=[], yticks=[])  # they would take a third of the time of a redraw
    ax.spines[:].set_visible(False)
    return image


def colour_bar(image, ax):
    "A new one, or what `ax.clear()` left of the last: it would stay beside the new one for ever."
    bar = getattr(ax, "ntk_bar", None)
    place = bar.ax if bar is not None and bar.ax in ax.figure.axes else None
    if place is None or bar.solids not in place.collections:  # or that was cleared, too
        bar = ax.ntk_bar = ax.figure.colorbar(image, cax=place, ax=ax, aspect=30)
        bar.outline.set_visible(False)
    else:
        image.colorbar, bar.mappable = bar, image
        image.colorbar_cid = image.callbacks.connect("changed", bar.update_normal)
        bar.update_normal(image)
    return bar


def set_colours(image, kernel):
    lowest, largest = min(0.0, float(kernel.min())), float(kernel.abs().max()) or 1.0
    image.set_clim(-largest, largest)
    highest = max(0.0, float(kernel.max()))
    bar = image.colorbar.ax
    bar.set_ylim(lowest, highest if highest > lowest else largest)
    bar.texts[0].set_text("cosine" if has_unit_diagonal(kernel) else "kernel")


def has_unit_diagonal(kernel):
    diagonal = kernel.diagonal()
    return kernel.shape[0] == kernel.shape[1] and bool((diagonal - 1).abs().max() < 1e-5)


def show(figure, alt):
    """Show a figure, or the figure of some axes, once and with a text, and close it.

    The text `alt` is for those who do not see the picture, and what is compared in CI. It is stored
    with it. As neither JupyterLab nor nbconvert hands that on, it also stands folded below.

    Raises TypeError if `figure` is neither a figure nor axes of Matplotlib.
    """
    figure = figure_of(figure)
    width, height = (figure.get_size_inches() * figure.dpi).round().astype(int).tolist()
    display({"image/png": base64_of(sharp_png(figure)), "text/plain": alt}, raw=True,
            metadata={"image/png": {"alt": alt, "width": width, "height": height}})
    show_words(alt)
    plt.close(figure)


# Also for explorers and views


def figure_of(drawn):
    figure = getattr(drawn, "figure", drawn)
    require(isinstance(figure, plt.Figure),
            f"expected a Matplotlib figure or axes, got {type(figure).__name__}", TypeError)
    return figure


def title_of(ax):
    "Wherever it stands."
    return next(filter(None, map(ax.get_title, ("left", "center", "right"))), "")


def show_words(alt):
    summary = "<summary>The picture in words</summary>"
    folded = f'<details class="ntk-words">{summary}{html.escape(alt)}</details>'
    display({"text/html": folded, "text/plain": alt}, raw=True)


def sharp_png(figure):
    "Two pixels for one, sharp on any screen."
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=2 * figure.dpi)
    return png.getvalue()


def base64_of(png):
    return base64.b64encode(png).decode()
