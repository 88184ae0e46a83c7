"""Sliders above one picture.

`interact` of ipywidgets clears an output and fills it again at every step, which flickers. Here one
`<img>` stays in the page and is given another PNG. Most of a figure stays, too, from one step to
the next: its background is drawn once and kept, and only what may move is drawn on it (`png_of`).
"""

import html
import inspect
import io
from contextlib import suppress
from typing import NamedTuple

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from traitlets import TraitError

from ntk.checks import require
from ntk.notebook.pictures import base64_of, figure_of, show_words

STYLE = """<style>
/* one may type beside a slider over a list, but ipywidgets takes no notice */
.ntk-list .widget-readout {pointer-events: none; -webkit-user-modify: read-only}
/* the live picture has the words in its alt */
.jp-OutputArea:has(.ntk-explorer) .ntk-words {display: none}
/* the kernel is busy: the picture comes later than one expects */
.ntk-explorer {position: relative}
.jp-NotebookPanel:has(.jp-Notebook-ExecutionIndicator[data-status="busy"]) .ntk-explorer::before {
    content: "Python is busy: the picture follows."; position: absolute; right: 0; bottom: 0;
    padding: 0.3em; background: #fff3c4; color: black; animation: ntk-late 0.3s step-end}
@keyframes ntk-late {from {visibility: hidden}}
/* the kernel is gone: sliders move, but the picture does not */
.ntk-explorer.jupyter-widgets-disconnected img {opacity: 0.2}
.ntk-explorer.jupyter-widgets-disconnected::after {
    content: "The kernel was restarted: run this cell again."; font-weight: bold}
</style>"""


class Explorer(widgets.VBox):
    """Controls above one picture.

        Explorer(draw, "Kernel of a net of width {width}: {title}", width=[1, 4, 16], seed=(0, 9))

    draw: a function; draw(**values) returns a figure or axes, best the same one each time with its
        artists updated.
    alt: the picture's text, a format string filled with the values and the figure's `title`.
    controls: a list or array (a slider over its entries, or with pairs (label, value) over these
        values), a tuple (min, max[, step]), a bool, or a widget. Each starts at the default that
        `draw` gives its argument, if any. `controls["width"].value = 64` moves one.

    If `draw` raises, its message stands under the controls and the last good picture stays. Raises
    TypeError or ValueError for controls that it cannot make or `draw` does not take, and ValueError
    for an `alt` that names others.
    """

    def __init__(self, draw, alt, **controls):
        defaults = defaults_of(draw, controls)
        self.controls = {name: control_for(name, spec, defaults.get(name))
                         for name, spec in controls.items()}
        require_known_fields(alt, self.values)
        self._draw, self._alt = draw, alt
        self.message, self.picture = widgets.HTML(), widgets.HTML()
        self.png, self.alt = b"", ""
        style = widgets.HTML(STYLE)
        super().__init__([*self.controls.values(), self.message, self.picture, style])
        self.add_class("ntk-explorer")
        for control in self.controls.values():
            control.observe(self._update, names="value")
        self._update()

    @property
    def values(self):
        "The controls' values, by name."
        return {name: control.value for name, control in self.controls.items()}

    def _update(self, change=None):
        others = plt.get_fignums()
        try:
            figure, png, alt = self._drawn()
        except Exception as error:
            for number in {*plt.get_fignums()} - {*others}:
                plt.close(number)
            self._show_message(error)
        else:
            self.png, self.alt = png, alt
            self._show_picture(figure.get_size_inches() * figure.dpi)

    def _drawn(self):
        values = self.values
        figure = figure_of(self._draw(**values))
        plt.close(figure)  # or the inline backend shows it a second time
        title = figure.axes[0].get_title() if figure.axes else ""
        return figure, png_of(figure), self._alt.format(**{"title": title, **values})

    def _show_message(self, error):
        what = html.escape(f"No picture for {self!r}.")
        why = html.escape(f"{type(error).__name__}: {error}")
        self.message.value = f'<p role="alert"><b>{what}</b> {why}</p>'

    def _show_picture(self, size):
        width, height = size
        self.message.value = ""
        self.picture.layout.min_height = f"{height:.0f}px"  # nothing jumps while a picture loads
        self.picture.value = (
            f'<img alt="{html.escape(self.alt)}" width="{width:.0f}" style="max-width: 100%" '
            f'src="data:image/png;base64,{base64_of(self.png)}">')

    def __repr__(self):
        values = (f"{name}={value!r}" for name, value in self.values.items())
        return f"Explorer({', '.join(values)})"

    def _ipython_display_(self):
        data, metadata = self._repr_mimebundle_()
        display(data, raw=True, metadata=metadata)
        show_words(self.alt)

    def _repr_mimebundle_(self, **kwargs):
        "The live view and, for readers without a kernel, the picture with its text."
        bundle = super()._repr_mimebundle_(**kwargs)
        bundle["text/plain"] = repr(self)
        if self.png:
            bundle["image/png"] = base64_of(self.png)
        return bundle, {"image/png": {"alt": self.alt}}


# The controls


def defaults_of(draw, controls):
    "The defaults of draw's arguments, {name: value}, if it takes these controls."
    signature = inspect.signature(draw)
    try:
        signature.bind(**controls)
    except TypeError as error:
        raise TypeError(f"draw must take the controls {list(controls)}: {error}") from None
    return {name: parameter.default for name, parameter in signature.parameters.items()
            if parameter.default is not parameter.empty}


def require_known_fields(alt, values):
    try:
        alt.format(**{"title": "", **values})
    except (KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"alt may name the controls {list(values)} and title, "
                         f"got {{{error.args[0]}}}") from None


def control_for(name, spec, default):
    "The control that `spec` stands for, at `default` unless that is None."
    try:
        control = widget_for(spec)
    except Exception as error:  # of ipywidgets, which does not know the name
        control, reason = None, f": {error}"
    else:
        reason = ""
    require(isinstance(control, widgets.ValueWidget),
            f"{name} must be a list, a tuple (min, max[, step]), a bool or a widget, got {spec!r}"
            f"{reason}", TypeError)
    if default is not None:
        with suppress(TraitError):
            control.value = default
        require(np.array_equal(control.value, default),
                f"{name} must offer draw's default, {default!r}, got {spec!r}")
    control.description = control.description or name.replace("_", " ")
    control.tooltip = control.tooltip or f"{control.description}: use the arrow keys, or drag"
    control.style.description_width, control.layout.width = "8em", "min(36em, 95%)"
    if hasattr(control, "continuous_update"):
        control.continuous_update = False
    return control


def widget_for(spec):
    "A new widget, or the one that `spec` is; None where there is none."
    if isinstance(spec, (np.ndarray, np.generic, torch.Tensor)):
        spec = spec.tolist()
    if isinstance(spec, tuple):
        spec = tuple(map(plain, spec))
    if not isinstance(spec, list):
        return widgets.interactive.widget_from_abbrev(spec)
    return slider_over([plain(entry) for entry in spec])


def plain(entry):
    "Python's number in place of NumPy's or PyTorch's, whose type would stand in the text."
    return entry.item() if getattr(entry, "ndim", None) == 0 else entry


def slider_over(entries):
    "The slider, or None where there is nothing to slide over."
    if not entries:
        return None
    require(not any(entry is None for entry in entries), "None is not a value of a slider")
    require(not any(hasattr(entry, "ndim") for entry in entries), "an array is not a value of a "
            "slider: slide over positions, list(range(len(arrays)))")
    labelled = all(isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
                   for entry in entries)
    # else ipywidgets would take any two numbers for a label and its value
    options = entries if labelled else [(str(entry), entry) for entry in entries]
    slider = widgets.SelectionSlider(options=options)
    slider.add_class("ntk-list")
    return slider


# The picture, as fast as it goes


class Background(NamedTuple):
    "What was drawn of a figure once, and where its axes were then."

    pixels: object
    places: list


def png_of(figure):
    """A PNG of the figure, compressed lightly: what Matplotlib's documentation calls blitting.

    The background, half of the work, is kept with the canvas. It is drawn anew only if an artist in
    it has changed (is `stale`) or axes have moved. What is in front of it is drawn every time.
    """
    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        canvas = FigureCanvasAgg(figure)
    axes = [ax for ax in figure.axes if ax.get_visible()]
    behind = background_artists(figure, axes)
    in_front = foreground_artists(axes, behind)
    background = getattr(canvas, "ntk_background", None)
    if background is None or background.places != places(axes) or is_stale(behind):
        background = canvas.ntk_background = draw_background(canvas, axes, behind, in_front)
    canvas.restore_region(background.pixels)
    for artist in in_front:
        artist.draw(canvas.get_renderer())
    png = io.BytesIO()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.save(png, "png", compress_level=1, compress_type=Image.RLE)
    return png.getvalue()


def background_artists(figure, axes):
    "The figure's patch and title; of its axes patches, ticks, labels and legends without a box."
    artists = [artist for artist in figure.get_children() if artist not in figure.axes]
    for ax in axes:
        artists += [ax.patch, ax.xaxis, ax.yaxis]
        legend = ax.get_legend()
        if legend is not None and not legend.get_frame_on():  # a box would lie below the lines
            artists.append(legend)
    return artists


def foreground_artists(axes, behind):
    "All others, axes by axes and from the lowest up."
    artists = []
    for ax in axes:
        for artist in sorted(ax.get_children(), key=lambda child: child.zorder):
            frameless = not (ax.axison and ax.get_frame_on())
            hidden = frameless and artist in ax.spines.values()
            if not hidden and artist not in behind:
                artists.append(artist)
    return artists


def draw_background(canvas, axes, behind, in_front):
    "Draw what is behind, and keep it. The first time settles the layout: then axes stay in place."
    figure = canvas.figure
    plt.setp(in_front, animated=True)  # so that draw leaves it out
    if figure.get_constrained_layout():
        figure.get_layout_engine().set(rect=(0, 0, 0.95, 1))  # room for longer tick labels later
    canvas.draw()
    figure.set_layout_engine("none")
    for part in parts_of(behind):
        part.stale = False  # also what is not drawn
    return Background(canvas.copy_from_bbox(figure.bbox), places(axes))


def places(axes):
    "Which axes there are and where, and whether their frames are drawn."
    return [(ax, ax.bbox.bounds, ax.axison, ax.get_frame_on()) for ax in axes]


def is_stale(artists):
    return any(part.stale for part in parts_of(artists))


def parts_of(artists):
    return [part for artist in artists for part in artist.findobj()]
