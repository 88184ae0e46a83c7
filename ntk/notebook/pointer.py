"""Pictures that follow the pointer: points that one drags, and a small image that one draws.

Each is an explorer with a control of another kind. In the page, pointer.js moves a point or draws a
stroke at once, without Python, which gets to know what has become of it and sends another picture.
As with a slider, ipywidgets leaves out what comes too fast, and the last value wins.
"""

import inspect
from pathlib import Path

import anywidget
import ipywidgets as widgets
import traitlets

from ntk.checks import is_finite, require, require_positive_ints
from ntk.notebook.drawing import heatmaps_in
from ntk.notebook.explorer import Explorer
from ntk.notebook.pictures import figure_of
from ntk.reading import real_numbers

FOLDER = Path(__file__).parent
WHITE, BLACK = 0, 16  # the grey values of scikit-learn's digits


class Surface(anywidget.AnyWidget, widgets.ValueWidget):
    "What the pointer changes: an array, which the page gets as lists."

    _esm, _css = FOLDER / "pointer.js", FOLDER / "pointer.css"
    value = traitlets.Any().tag(  # no echo: it could take back a later move
        sync=True, echo_update=False, to_json=lambda array, _: array.tolist(),
        from_json=lambda rows, _: array_of(rows, "value"))
    _start, _frame = traitlets.List().tag(sync=True), traitlets.List().tag(sync=True)
    _kind, _black = traitlets.Unicode().tag(sync=True), traitlets.Int(BLACK).tag(sync=True)

    def __init__(self, kind, value):
        super().__init__(value=value, _start=value.tolist(), _kind=kind)


class ByPointer(Explorer):
    "An explorer of what `draw` makes of its first argument, an array that the pointer changes."

    def __init__(self, draw, alt, surface, stills, controls):
        self._name = next(iter(inspect.signature(draw).parameters), surface._kind)
        self._surface = surface
        super().__init__(draw, alt, stills=stills, **controls, **{self._name: surface})
        stage = widgets.Box([surface, self.picture])
        stage.add_class("ntk-stage").add_class(f"ntk-stage-{surface._kind}")
        *others, style = (child for child in self.children if child is not self.picture)
        self.children = [*(stage if child is surface else child for child in others), style]

    def _captioned(self, stills):
        return {caption: {**self.values, self._name: still} for caption, still in stills.items()}

    def _show(self, drawn, alt, picture):
        figure_of(drawn)  # no view: it would stand elsewhere
        super()._show(drawn, alt, picture)

    def __repr__(self):
        others = [f"{name}={value!r}" for name, value in self.values.items() if name != self._name]
        return f"{type(self).__name__}({', '.join([self._size, *others])})"


class Points(ByPointer):
    """A picture with points on it that one may drag, or move by arrow keys.

        Points(draw, "{title}, through five points.", points, limits=((-3, 3), (-2, 2)))

    draw: a function; draw(points) gets an array (N, 2) in the coordinates of the data and returns a
        figure or axes, best the same one each time with its artists updated. The points lie on the
        first axes of the figure, which must be linear.
    alt: the picture's text, a format string filled with the figure's `title` and the points under
        the name that `draw` has for them: "{points[0][1]:.1f}".
    points: (N, 2), a tensor, an array or a list: where they start, and where Escape puts them back.
    limits: ((x_min, x_max), (y_min, y_max)), which they do not leave; None: those of the axes.
    stills: {caption: points (N, 2)}; the pictures of these, in a strip, are what a reader without
        Python sees. Else it is the picture of the start.
    controls: as in `Explorer`, above the picture; `draw` gets their values by name.

    Where they are now is in `points`. If `draw` raises, its message stands under the picture, and
    the last good one stays. Raises ValueError for points or stills of another shape or outside the
    limits, and what `Explorer` raises.
    """

    def __init__(self, draw, alt, points, *, limits=None, stills=None, **controls):
        points = array_of(points, "points")
        require(points.ndim == 2 and points.shape[1] == 2 and len(points) > 0,
                f"points must have shape (N, 2), got {points.shape}")
        stills = {caption: array_of(still, "stills") for caption, still in (stills or {}).items()}
        for still in stills.values():
            require(still.shape == points.shape,
                    f"stills must have the points' shape {points.shape}, got {still.shape}")
        self._limits = None if limits is None else array_of(limits, "limits")
        if limits is not None:
            require_within(self._limits, points, *stills.values())
        super().__init__(draw, alt, Surface("points", points), stills, controls)

    @property
    def points(self):
        "Where they are now: an array (N, 2)."
        return self._surface.value.copy()

    @property
    def _size(self):
        return f"{len(self._surface.value)} points"

    def _show(self, drawn, alt, picture):
        self._surface._frame = frame_of(figure_of(drawn), self._limits)
        super()._show(drawn, alt, picture)


class Canvas(ByPointer):
    """A small image that one draws, by pointer or by keys, beside a picture that follows the pen.

        Canvas(draw, "Decided for the image drawn: {title}.", image=digits.images[3])

    draw: a function; draw(image) gets an array (size, size) of grey values, whole numbers from 0,
        white, to 16, black, as scikit-learn's digits have them, and returns a figure or axes, best
        the same one each time with its artists updated.
    alt: the picture's text, a format string filled with the figure's `title`.
    size: cells in each direction. The pen is finer, and a cell's grey is the mean over it.
    image: (size, size), a tensor, an array or a list: the start, to which Escape leads back; None:
        all white.
    stills: {caption: image (size, size)}; the pictures of these, in a strip, are what a reader
        without Python sees. Else it is the picture of the start.
    controls: as in `Explorer`, above the picture; `draw` gets their values by name.

    What is drawn now is in `image`. If `draw` raises, its message stands under the picture, and the
    last good one stays. Raises TypeError or ValueError for a size that is no positive integer and
    for images of another shape or with other values, and what `Explorer` raises.
    """

    def __init__(self, draw, alt, *, size=8, image=None, stills=None, **controls):
        require_positive_ints(size=size)
        image = [[WHITE] * size] * size if image is None else image
        stills = {caption: image_of(still, size, "stills")
                  for caption, still in (stills or {}).items()}
        surface = Surface("canvas", image_of(image, size, "image"))
        super().__init__(draw, alt, surface, stills, controls)

    @property
    def image(self):
        "What is drawn now: an array (size, size) from 0, white, to 16, black."
        return self._surface.value.copy()

    @property
    def _size(self):
        size = len(self._surface.value)
        return f"{size} × {size}"


def array_of(values, name):
    "A copy in float64."
    values = real_numbers(values, name).double()
    require(is_finite(values), f"{name} must be finite, got NaN or infinity")
    return values.cpu().numpy().copy()


def require_within(limits, *arrays):
    ordered = limits.shape == (2, 2) and (limits[:, 0] < limits[:, 1]).all()
    require(ordered, f"limits must be ((x_min, x_max), (y_min, y_max)), got {limits.tolist()}")
    low, high = limits.T
    for points in arrays:
        require(((low <= points) & (points <= high)).all(),
                f"points must lie within the limits {limits.tolist()}, got {points.tolist()}")


def image_of(values, size, name):
    image = array_of(values, name)
    require(image.shape == (size, size),
            f"{name} must have shape {(size, size)}, got {image.shape}")
    require(((WHITE <= image) & (image <= BLACK)).all(), f"{name} must have grey values from "
            f"{WHITE} to {BLACK}, got {image.min():g} to {image.max():g}")
    return image.round()


def frame_of(figure, limits):
    """For x and y: where the first axes start and how long they are, in parts of the figure; the
    data at their ends; and the limits of points."""
    require(figure.axes, "the figure has no axes for the points to lie on")
    ax = figure.axes[0]
    require(not heatmaps_in(figure), "points must lie on axes with ticks, a line or a text: "
            "heatmaps alone are no picture, but parts of the page")
    require((ax.get_xscale(), ax.get_yscale()) == ("linear", "linear"),
            "the axes on which points lie must be linear")
    left, bottom, width, height = ax.get_position().bounds
    x, y = (ax.get_xlim(), ax.get_ylim()) if limits is None else limits
    return [[*map(float, (left, width, *ax.get_xlim(), *sorted(x)))],
            [*map(float, (bottom, height, *ax.get_ylim(), *sorted(y)))]]
