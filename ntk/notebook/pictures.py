"""Pictures: one look for all of them, a kernel as a heatmap, and each with its words.

A heatmap's colours start at zero: dark means "unrelated" in every kernel, whatever its size. A map
that is white at zero is for kernels with entries of both signs. Whoever does not see a picture gets
the text that `show` asks for.
"""

import base64
import html
import io

import matplotlib.pyplot as plt
import torch
from IPython.display import display

from ntk.checks import require
from ntk.reading import checked_matrix, real_numbers


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
        "image.cmap": "viridis",
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=colours, linestyle=styles),
        "lines.linewidth": 1.8,
        "legend.frameon": False,
    })


def plot_kernel(kernel, *, ax=None, order=None, title=""):
    """Heatmap of a kernel (N1, N2), a tensor or array, with a colour bar. Returns the axes.

    Colours run from 0 or the lowest entry up (`viridis`). They are symmetric about 0 (`RdBu_r`)
    once a negative entry is more than a quarter as large as the largest.

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
    image = ax.imshow(kernel.numpy(), label="kernel", interpolation="nearest")
    bar = colour_bar(image, ax)
    bar.ax.set_xlabel("kernel", labelpad=7)  # below: above it, a long title would run into it
    bar.ax.locator_params(nbins=3)
    ax.set(xticks=[], yticks=[])  # they would take a third of the time of a redraw
    ax.spines[:].set_visible(False)
    return image


def colour_bar(image, ax):
    "A new one, or what `ax.clear()` left of the last: it would stay beside the new one for ever."
    bar = getattr(ax, "ntk_bar", None)
    place = bar.ax if bar is not None and bar.ax in ax.figure.axes else None
    if place is None or bar.solids not in place.collections:  # or that was cleared, too
        bar = ax.ntk_bar = ax.figure.colorbar(image, cax=place, ax=ax)
    else:
        image.colorbar, bar.mappable = bar, image
        image.colorbar_cid = image.callbacks.connect("changed", bar.update_normal)
        bar.update_normal(image)
    return bar


def set_colours(image, kernel):
    lowest, largest = min(0.0, float(kernel.min())), float(kernel.abs().max()) or 1.0
    if lowest < -largest / 4:
        limits, colours = (-largest, largest), "RdBu_r"
    else:
        limits, colours = (lowest, largest), "viridis"
    image.set_clim(limits)
    if image.get_cmap().name != colours:  # setting it draws the colour bar anew
        image.set_cmap(colours)


def show(figure, alt):
    """Show a figure, or the figure of some axes, once and with a text, and close it.

    The text `alt` is for those who do not see the picture, and what is compared in CI. It is stored
    with it. As neither JupyterLab nor nbconvert hands that on, it also stands folded below.

    Raises TypeError if `figure` is neither a figure nor axes of Matplotlib.
    """
    figure = figure_of(figure)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=2 * figure.dpi)  # sharp on any screen
    width, height = (figure.get_size_inches() * figure.dpi).round().astype(int).tolist()
    display({"image/png": base64_of(png.getvalue()), "text/plain": alt}, raw=True,
            metadata={"image/png": {"alt": alt, "width": width, "height": height}})
    show_words(alt)
    plt.close(figure)


# Also for the explorer


def figure_of(drawn):
    figure = getattr(drawn, "figure", drawn)
    require(isinstance(figure, plt.Figure),
            f"expected a Matplotlib figure or axes, got {type(figure).__name__}", TypeError)
    return figure


def show_words(alt):
    summary = "<summary>The picture in words</summary>"
    folded = f'<details class="ntk-words">{summary}{html.escape(alt)}</details>'
    display({"text/html": folded, "text/plain": alt}, raw=True)


def base64_of(png):
    return base64.b64encode(png).decode()
