"Pictures, held against the arrays they show, NumPy's indexing, and the pixels that are displayed."

import base64
import io
import math
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from ntk.notebook.pictures import plot_kernel, set_style, show
from ntk.reading import cosine


def psd(n=6):
    "A positive semi-definite kernel with entries of both signs."
    factor = np.random.default_rng(0).normal(size=(n, 9))
    return torch.from_numpy(factor @ factor.T)


def pixels(ax):
    return np.asarray(ax.images[0].get_array())


# plot_kernel


def test_the_kernel_is_drawn_with_title_labels_and_colour_bar():
    ax = plot_kernel(psd(), title="six inputs")
    assert np.allclose(pixels(ax), psd())
    assert ax.get_title() == "six inputs"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("example x′, 0 to 5", "example x, 0 to 5")
    assert len(ax.figure.axes) == 2 and ax.images[0].colorbar.ax is ax.figure.axes[1]
    assert bar_title(ax) == "kernel"


def bar_title(ax):
    [text] = ax.images[0].colorbar.ax.texts
    return text.get_text()


def test_the_colour_bar_says_what_is_shown():
    ax = plot_kernel(cosine(psd()))
    assert bar_title(ax) == "cosine"
    plot_kernel(psd(), ax=ax)
    assert bar_title(ax) == "kernel"
    plot_kernel(cosine(psd()), ax=ax)
    assert bar_title(ax) == "cosine"
    assert bar_title(plot_kernel(psd()[:2])) == "kernel"  # no square


def test_an_array_is_drawn_and_left_alone():
    kernel = psd().numpy()
    before = kernel.copy()
    ax = plot_kernel(kernel, order=[5, 4, 3, 2, 1, 0])
    assert np.allclose(pixels(ax), before[::-1, ::-1])
    assert np.array_equal(kernel, before)


def as_int32(order):
    return np.array(order, dtype=np.int32)


def as_uint8(order):
    return torch.tensor(order, dtype=torch.uint8)


def backwards(order):
    return np.array(order[::-1])[::-1]


def of_tensors(order):
    return [torch.tensor(i) for i in order]


@pytest.mark.parametrize("given_as", [list, tuple, np.array, torch.tensor, as_int32, as_uint8,
                                      backwards, of_tensors])
def test_rows_and_columns_are_put_in_order(given_as):
    order = [3, 1, 5, 0, 2, 4]
    expected = psd().numpy()[np.ix_(order, order)]
    assert np.allclose(pixels(plot_kernel(psd(), order=given_as(order))), expected)


def test_an_order_may_be_a_range():
    expected = psd().numpy()[::-1, ::-1]
    for order in (range(5, -1, -1), np.arange(6)[::-1]):
        assert np.allclose(pixels(plot_kernel(psd(), order=order)), expected)
    assert np.allclose(pixels(plot_kernel(psd().numpy()[::-1, ::-1])), expected)


CLEARINGS = {
    "axes": lambda ax: ax.clear(),
    "image": lambda ax: [image.remove() for image in ax.images],
    "all axes": lambda ax: [axes.clear() for axes in ax.figure.axes],
}


@pytest.mark.parametrize("clear", CLEARINGS.values(), ids=CLEARINGS)
def test_a_cleared_picture_is_drawn_beside_the_colour_bar_that_is_there(clear):
    figure, (ax, other) = plt.subplots(1, 2)
    plot_kernel(torch.eye(3), ax=other)
    places = set()
    for factor in (1, 2, -3, 4, 5):
        clear(ax)
        plot_kernel(factor * torch.eye(3), ax=ax)
        plot_kernel(torch.eye(3), ax=other)
        bar = ax.images[0].colorbar
        assert len(figure.axes) == 4 and bar.ax in figure.axes and bar.mappable is ax.images[0]
        assert bar.vmax == ax.images[0].get_clim()[1] == abs(factor)
        assert bar.cmap.name == ax.images[0].get_cmap().name and bar.outline.get_visible() is False
        places.add(ax.get_position().bounds)
    assert len(places) == 1
    plot_kernel(7 * torch.eye(3), ax=ax)  # an update reaches the bar that was kept
    assert ax.images[0].colorbar.vmax == 7


def test_a_cleared_figure_gets_one_colour_bar():
    figure = plt.figure()
    for factor in (1, 2, 3, 4, 5):
        figure.clear()
        plot_kernel(factor * torch.eye(2), ax=figure.subplots())
    assert len(figure.axes) == 2


def test_a_colour_bar_that_was_removed_comes_back():
    ax = plot_kernel(torch.eye(3))
    ax.clear()
    plot_kernel(torch.eye(3), ax=ax)
    ax.images[0].colorbar.remove()
    ax.clear()
    plot_kernel(torch.eye(3), ax=ax)
    assert len(ax.figure.axes) == 2


def test_the_picture_that_is_there_is_updated():
    ax = plot_kernel(torch.eye(3), title="first")
    drawn, figure = ax.images[0], ax.figure
    updates = {"second": 2 * psd(8), "third": torch.ones(2, 5), "": torch.ones(9, 2)}
    for title, kernel in updates.items():
        assert plot_kernel(kernel, ax=ax, title=title) is ax
        assert ax.images[0] is drawn and len(ax.images) == 1 and len(figure.axes) == 2
        assert np.allclose(pixels(ax), kernel) and ax.get_title() == title
        rows, columns = kernel.shape
        assert ax.get_xlim() == (-0.5, columns - 0.5)  # all of it is seen
        assert ax.get_ylim() == (rows - 0.5, -0.5)  # and row 0 on top
        low, high = drawn.get_clim()
        assert low <= kernel.min() and high == pytest.approx(float(kernel.abs().max()))
        assert drawn.colorbar.mappable is drawn and drawn.colorbar.vmax == high


def test_the_axes_given_are_drawn_on():
    figure, (left, right) = plt.subplots(1, 2)
    assert plot_kernel(psd(), ax=right) is right
    assert not left.images and plt.get_fignums() == [figure.number]


def brightness(image, value):
    return sum(image.to_rgba(value)[:3])


@pytest.mark.parametrize("kernel", [
    psd().abs() + 5, psd(), torch.tensor([[4.0, -0.5], [-0.5, 4.0]]), -torch.eye(3),
])
def test_zero_is_black_in_every_kernel_and_what_is_large_is_bright(kernel):
    image, largest = plot_kernel(kernel).images[0], float(kernel.abs().max())
    assert image.get_clim() == pytest.approx((-largest, largest))
    assert brightness(image, 0.0) < 0.05
    for sign in (1, -1):
        steps = [brightness(image, sign * part * largest) for part in (0, 0.25, 0.5, 0.75, 1)]
        assert steps == sorted(steps) and steps[-1] > 2


def test_what_moves_together_is_warm_and_what_moves_apart_is_green():
    image = plot_kernel(torch.tensor([[3.0, -3.0], [-3.0, 3.0]])).images[0]
    red, green, _ = image.to_rgba(1.5)[:3]
    assert red > green
    red, green, _ = image.to_rgba(-1.5)[:3]
    assert green > red


def test_the_colour_bar_shows_what_the_kernel_has():
    kernel = torch.tensor([[4.0, -0.5], [-0.5, 4.0]])
    ax = plot_kernel(kernel)
    assert ax.images[0].colorbar.ax.get_ylim() == (-0.5, 4)
    plot_kernel(kernel.abs(), ax=ax)
    assert ax.images[0].colorbar.ax.get_ylim() == (0, 4)
    plot_kernel(-kernel.abs(), ax=ax)
    assert ax.images[0].colorbar.ax.get_ylim() == (-4, 0)


@pytest.mark.parametrize("kernel", [
    torch.zeros(3, 3), torch.ones(1, 1), torch.eye(3, dtype=torch.int64), torch.eye(3).bool(),
    torch.eye(3).requires_grad_(),
])
def test_unusual_kernels_are_drawn(kernel):
    ax = plot_kernel(kernel)
    ax.figure.canvas.draw()
    assert np.allclose(pixels(ax), kernel.detach())


@pytest.mark.parametrize("size", [1e-60, 1e60])
def test_any_finite_float64_is_drawn(size):
    ax = plot_kernel(size * psd().abs())
    ax.figure.canvas.draw()
    assert ax.images[0].get_clim()[1] == pytest.approx(float(size * psd().abs().max()))


NO_PERMUTATION = "order must be a permutation of 0 … 5"


@pytest.mark.parametrize("kernel, order, message", [
    (psd()[0], None, r"kernel must have two axes.*got shape \(6,\)"),
    (psd()[..., None, None], None, r"kernel\[:, :, a, b\]"),
    (psd()[:0], None, r"kernel must have two axes.*got shape \(0, 6\)"),
    (psd() * math.nan, None, "kernel must be finite"),
    (psd() + 0j, None, "kernel must be real, got torch.complex128"),
    (psd()[:2, :2], [False, True], "order must be a permutation"),
    (psd(), [1j] * 6, "order must be real"),
    (psd(), [0, 1, 2], NO_PERMUTATION),
    (psd(), [0, 1, 2, 3, 4, 4], NO_PERMUTATION),
    (psd(), [1, 2, 3, 4, 5, 6], NO_PERMUTATION),
    (psd(), [-1, 0, 1, 2, 3, 4], NO_PERMUTATION),
    (psd(), [0.0, 1, 2, 3, 4, 5], NO_PERMUTATION),
    (psd(), 3, NO_PERMUTATION),
    (psd()[:, :5], [0, 1, 2, 3, 4, 5], r"order must be a permutation.*square.*\(6, 5\)"),
])
def test_a_refusal_says_what_is_wrong_and_opens_no_figure(kernel, order, message):
    with pytest.raises(ValueError, match=message):
        plot_kernel(kernel, order=order)
    assert not plt.get_fignums()


# set_style


@pytest.fixture
def plain_style():
    "Afterwards Matplotlib's settings are as before."
    with matplotlib.rc_context():
        yield


def test_lines_are_told_apart_by_colour_and_by_style(plain_style):
    set_style()
    cycle = plt.rcParams["axes.prop_cycle"].by_key()
    pairs = list(zip(cycle["color"], cycle["linestyle"], strict=True))
    assert len(set(pairs)) == len(pairs) == len(set(cycle["color"]))
    assert len(set(cycle["linestyle"][:4])) == 4
    assert plt.rcParams["image.cmap"] == "inferno"  # perceptually uniform


def test_the_style_can_be_set_again_and_drawn_with(plain_style):
    set_style()
    before = dict(plt.rcParams)
    set_style()
    assert dict(plt.rcParams) == before
    plot_kernel(psd(), title="Θ(x, x′)").figure.canvas.draw()


# show


@pytest.fixture
def displayed(monkeypatch):
    "What reaches the front end: IPython's display publisher is replaced by a list."
    messages = []
    publisher = SimpleNamespace(publish=lambda **message: messages.append(message))
    shell = SimpleNamespace(display_pub=publisher)
    plt.close(plt.figure())  # pyplot's first figure asks the shell for more than this one has
    monkeypatch.setattr(InteractiveShell, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(InteractiveShell, "instance", staticmethod(lambda: shell))
    return messages


@pytest.mark.parametrize("given_as", ["axes", "figure"])
def test_a_figure_is_displayed_once_with_its_text_and_closed(given_as, displayed, capsys):
    figure, ax = plt.subplots(figsize=(3, 2), dpi=100, facecolor="red")
    show(ax if given_as == "axes" else figure, "A red <card>.")
    picture, words = displayed
    assert picture["data"]["text/plain"] == words["data"]["text/plain"] == "A red <card>."
    assert words["data"]["text/html"].endswith("</summary>A red &lt;card&gt;.</details>")
    expected = {"alt": "A red <card>.", "width": 300, "height": 200}
    assert picture["metadata"]["image/png"] == expected
    png = io.BytesIO(base64.b64decode(picture["data"]["image/png"]))
    image = Image.open(png).convert("RGB")
    assert image.size == (600, 400)  # two pixels for one, for sharp screens
    assert image.getpixel((1, 1)) == (255, 0, 0)
    assert not plt.get_fignums()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("wrong", [None, "figure", psd()])
def test_what_is_no_figure_is_refused(wrong, displayed):
    message = f"expected a Matplotlib figure or axes, got {type(wrong).__name__}"
    with pytest.raises(TypeError, match=message):
        show(wrong, "nothing")
    assert not displayed
