"""A kernel that answers: point at an entry, and both inputs, the value and the cosine are there.

What follows the pointer is JavaScript in the page, kernel_view.js, without Python: it is quick, and
works by arrow keys as well. Without a kernel a picture and a text stand in the notebook.
"""

import math
from pathlib import Path

import anywidget
import matplotlib.pyplot as plt
import numpy as np
import traitlets
from IPython.display import display

from ntk.checks import require
from ntk.notebook.pictures import GLOW, plot_kernel, reordered, sharp_png, show_words
from ntk.notebook.stills import stored
from ntk.reading import checked_matrix, real_numbers

FOLDER = Path(__file__).parent
COLOURS = (GLOW(np.arange(GLOW.N), bytes=True)[:, :3]).tobytes()


class KernelView(anywidget.AnyWidget):
    """A kernel (N, N), a tensor or array, that answers to the pointer and to arrow keys.

        KernelView(ntk, inputs=images, labels=digits, order=labels.argsort(), sheet=True)

    Pointing at an entry gives both inputs, the value and the cosine, and draws the row. A click or
    Enter pins the entry, which is then in `pinned`, [row, column] as shown, and can be observed.

    inputs: what the examples look like: images (N, height, width), arrows (N, 2) by their angles,
        a list of N texts, or None.
    labels: N words or numbers that stand beside the examples' numbers.
    order: a permutation (N,) of the rows and columns.
    sheet: show all images on one sheet, on which each glows by its entry in the row chosen. There,
        too, one may point and walk.
    largest: where the colours end; None: at the largest entry in size.
    title: stands above the heatmap.

    `view.kernel = another` shows another one of the same size in its place. Raises ValueError for
    a kernel that is not a real and finite square, and for inputs, labels or an order that are not
    for its examples.
    """

    _esm, _css = FOLDER / "kernel_view.js", FOLDER / "kernel_view.css"
    title, alt = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)
    pinned = traitlets.List(traitlets.Int()).tag(sync=True)
    sheet = traitlets.Bool().tag(sync=True)
    _entries, _colours = traitlets.Bytes().tag(sync=True), traitlets.Bytes(COLOURS).tag(sync=True)
    _shape, _image_shape = traitlets.List().tag(sync=True), traitlets.List([0, 0]).tag(sync=True)
    _largest = traitlets.Float(1.0).tag(sync=True)
    _images, _arrows = traitlets.Bytes().tag(sync=True), traitlets.List().tag(sync=True)
    _names, _words = traitlets.List().tag(sync=True), traitlets.List().tag(sync=True)

    def __init__(self, kernel, *, inputs=None, labels=None, order=None, sheet=False, largest=None,
                 title="", pinned=()):
        super().__init__(title=title, pinned=[*pinned])
        n = len(square(kernel))
        for name, given in (("labels", labels), ("inputs", inputs)):
            count = n if given is None else len(given)
            require(count == n, f"{name} must be {n}, one for each example, got {count}")
        self._order = None if order is None else real_numbers(order, "order").cpu()
        self._fixed_largest = largest
        self.kernel = kernel
        order = range(n) if order is None else self._order.tolist()
        self._words = ["" if labels is None else f"{plain(labels[i])}" for i in order]
        self._names = [f"example {i}" + (f" ({word})" if word else "")
                       for i, word in zip(order, self._words)]
        if inputs is not None:
            self._take_inputs([inputs[i] for i in order])
        require(not sheet or self._images, "sheet needs inputs that are images (N, height, width)")
        self.sheet = sheet

    def _take_inputs(self, inputs):
        if isinstance(inputs[0], str):
            self._names = [f"{name}: {text}" for name, text in zip(self._names, inputs)]
            return
        inputs = np.stack([np.asarray(one, dtype=float) for one in inputs])
        if inputs.ndim == 3:
            low, high = inputs.min(), inputs.max()
            scaled = 255 * (inputs - low) / ((high - low) or 1)
            self._images, self._image_shape = scaled.astype(np.uint8).tobytes(), [*inputs.shape[1:]]
        elif inputs.ndim == 2 and inputs.shape[1] == 2:
            longest = np.linalg.norm(inputs, axis=1).max() or 1
            self._arrows = (inputs / longest).tolist()
        else:
            self._take_inputs([in_brief(one) for one in inputs.reshape(len(inputs), -1)])

    @property
    def kernel(self):
        "The kernel as shown, in its order: a tensor (N, N) in float64."
        return self._kernel

    @kernel.setter
    def kernel(self, kernel):
        kernel = square(kernel).double().cpu()
        before = len(self._names) or len(kernel)
        require(len(kernel) == before, f"the kernel must have {before} rows, got {len(kernel)}")
        self._kernel = kernel if self._order is None else reordered(kernel, self._order)
        kernel = self._kernel
        with self.hold_sync():
            self._shape = [*kernel.shape]
            self._largest = self._fixed_largest or float(kernel.abs().max()) or 1.0
            self._entries = kernel.float().numpy().tobytes()

    @property
    def png(self):
        "The still picture: the kernel, its row marked if one was chosen, beside the sheet."
        row = self.pinned[0] if self.pinned else 0
        figure, axes = plt.subplots(1, 1 + self.sheet, figsize=(4.2 * (1 + self.sheet) + 0.8, 4.4),
                                    squeeze=False, layout="constrained")
        if self.sheet:
            self._draw_sheet(axes[0, 0], row)
        ax = plot_kernel(self._kernel, ax=axes[0, -1], title=self.title)
        ax.images[0].set_clim(-self._largest, self._largest)
        ax.images[0].colorbar.ax.set_ylim(min(0.0, self._kernel.min()), self._largest)
        if self.sheet or self.pinned:
            ax.axhspan(row - 0.5, row + 0.5, fill=False, color="white")
        plt.close(figure)
        return sharp_png(figure)

    def _draw_sheet(self, ax, row):
        (height, width), n = self._image_shape, len(self._kernel)
        across = min(n, max(10, math.ceil(math.sqrt(n))))
        images = np.frombuffer(self._images, np.uint8).reshape(n, height, width) / 255
        tints = GLOW(0.5 + self._kernel[row].numpy() / self._largest / 2)[:, :3]
        tints = np.maximum(tints, np.array([70, 70, 80]) / 255)
        canvas = np.zeros((math.ceil(n / across) * (height + 1), across * (width + 1), 3))
        for i, (image, tint) in enumerate(zip(images, tints)):
            top, left = i // across * (height + 1), i % across * (width + 1)
            canvas[top:top + height, left:left + width] = image[..., None] * tint
        ax.imshow(canvas, interpolation="nearest")
        corner = row % across * (width + 1) - 1, row // across * (height + 1) - 1
        ax.add_patch(plt.Rectangle(corner, width + 1, height + 1, fill=False, color="white", lw=2))
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"A step for {self._names[row]} moves these", loc="left")
        ax.spines[:].set_visible(False)

    def __repr__(self):
        return f"KernelView({len(self._kernel)} × {len(self._kernel)})"

    def _ipython_display_(self):
        data, metadata = self._repr_mimebundle_()
        display(data, raw=True, metadata=metadata)
        show_words(metadata["image/png"]["alt"])

    def _repr_mimebundle_(self, **kwargs):
        "The live view and, for readers without a kernel, the picture with its text."
        alt = self.alt or f"{self.title or 'A kernel'}: {self!r}"
        return stored(self, repr(self), self.png, alt)


def square(kernel):
    kernel = checked_matrix(kernel)
    require(len(kernel) == kernel.shape[1],
            f"the kernel of a view must be square, got shape {tuple(kernel.shape)}")
    return kernel


def plain(label):
    "Python's number in place of NumPy's or PyTorch's."
    return label.item() if hasattr(label, "item") else label


def in_brief(numbers):
    "The first of an input's numbers."
    dots = ", …" if len(numbers) > 3 else ""
    return f"({', '.join(f'{number:.2g}' for number in numbers[:3])}{dots})"
