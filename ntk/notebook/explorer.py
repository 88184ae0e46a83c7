"""Sliders above a picture."""

import base64
import html
import inspect
import io
from contextlib import suppress

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from traitlets import TraitError

from ntk.checks import require
from ntk.notebook.pictures import figure_of, show_words

# ipywidgets lets people type beside a slider over a list, but takes no notice; the live picture has its own words;
# when the kernel is busy, the picture comes later than one expects; and when it is gone, sliders move, but the picture does not
_EXPLORER_STYLE = """<style>
.ntk-list .widget-readout {pointer-events: none; -webkit-user-modify: read-only}
.jp-OutputArea:has(.ntk-explorer) .ntk-words {display: none}
.ntk-explorer {position: relative}
.jp-NotebookPanel:has(.jp-Notebook-ExecutionIndicator[data-status="busy"]) .ntk-explorer::before {
    content: "Python is busy: the picture follows."; position: absolute; right: 0; bottom: 0; padding: 0.3em;
    background: #fff3c4; color: black; animation: ntk-late 0.3s step-end}
@keyframes ntk-late {from {visibility: hidden}}
.ntk-explorer.jupyter-widgets-disconnected img {opacity: 0.2}
.ntk-explorer.jupyter-widgets-disconnected::after {content: "The kernel was restarted: run this cell again."; font-weight: bold}
</style>"""


class Explorer(widgets.VBox):
    """Controls above one picture: `Explorer(draw, "Kernel of a net of width {width}: {title}", width=[1, 4, 16], seed=(0, 9))`.

    draw(**values) returns a figure or axes, best the same one each time with its artists updated.
    alt: the picture's alternative text, a format string filled with the values and the figure's `title`.
    controls: a list (a slider over its entries), a tuple (min, max[, step]), a bool, or a widget;
        each starts at the default that `draw` gives its argument, if any. `controls["width"].value = 64` moves one.

    If `draw` raises, its message stands under the controls and the last good picture stays. Raises TypeError or ValueError
    for controls that it cannot make or `draw` does not take, and for an `alt` that names others.
    """

    def __init__(self, draw, alt, **controls):
        signature = inspect.signature(draw)
        try:
            signature.bind(**controls)
        except TypeError as error:
            raise TypeError(f"draw must take the controls {list(controls)}: {error}") from None
        defaults = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}
        self.controls = {name: control_for(name, spec, defaults.get(name)) for name, spec in controls.items()}
        self._draw, self._alt = draw, alt
        try:
            alt.format(**{"title": "", **self.values})
        except (KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"alt may name the controls {list(controls)} and title, got {{{error.args[0]}}}") from None
        self.message, self.picture, self.png, self.alt = widgets.HTML(), widgets.HTML(), b"", ""
        super().__init__([*self.controls.values(), self.message, self.picture, widgets.HTML(_EXPLORER_STYLE)])
        self.add_class("ntk-explorer")
        for control in self.controls.values():
            control.observe(self._update, names="value")
        self._update()

    @property
    def values(self):
        "The controls' values, by name."
        return {name: control.value for name, control in self.controls.items()}

    def _update(self, change=None):
        values, others = self.values, plt.get_fignums()
        try:
            figure = figure_of(self._draw(**values))
            plt.close(figure)  # or the inline backend shows it a second time
            title = figure.axes[0].get_title() if figure.axes else ""
            self.png, self.alt = png_of(figure), self._alt.format(**{"title": title, **values})
        except Exception as error:
            for number in {*plt.get_fignums()} - {*others}:
                plt.close(number)
            text = html.escape(f"{type(error).__name__}: {error}")
            self.message.value = f'<p role="alert"><b>No picture for {html.escape(repr(self))}.</b> {text}</p>'
            return
        self.message.value = ""
        width, height = figure.get_size_inches() * figure.dpi
        self.picture.layout.min_height = f"{height:.0f}px"  # so that nothing jumps while a picture loads
        self.picture.value = (f'<img alt="{html.escape(self.alt)}" width="{width:.0f}" style="max-width: 100%" '
                              f'src="data:image/png;base64,{base64.b64encode(self.png).decode()}">')

    def __repr__(self):
        return f"Explorer({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"

    def _ipython_display_(self):
        data, metadata = self._repr_mimebundle_()
        display(data, raw=True, metadata=metadata)
        show_words(self.alt)

    def _repr_mimebundle_(self, **kwargs):
        "The live view and, for readers without a kernel, the picture with its text."
        bundle = super()._repr_mimebundle_(**kwargs)
        bundle["text/plain"] = repr(self)
        if self.png:
            bundle["image/png"] = base64.b64encode(self.png).decode()
        return bundle, {"image/png": {"alt": self.alt}}


def png_of(figure):
    "As fast as it goes: axes and legends, half of the work, are drawn anew only once they changed; light compression."
    canvas = figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)
    axes = [ax for ax in figure.axes if ax.get_visible()]
    frame = [*{*figure.get_children()} - {*figure.axes}, *(part for ax in axes for part in (ax.patch, ax.xaxis, ax.yaxis)),
             *(legend for ax in axes if (legend := ax.get_legend()) and not legend.get_frame_on())]
    content = [artist for ax in axes for artist in sorted(ax.get_children(), key=lambda child: child.zorder)
               if artist not in frame and (ax.axison or artist not in ax.spines.values())]
    places = lambda: [(ax, ax.axison, ax.bbox.bounds) for ax in axes]
    parts = lambda: [part for each in frame for part in each.findobj()]
    if places() != getattr(canvas, "ntk_places", None) or any(part.stale for part in parts()):
        plt.setp(content, animated=True)  # so that draw leaves it out
        if figure.get_constrained_layout():
            figure.get_layout_engine().set(rect=(0, 0, 0.95, 1))  # room for longer tick labels later
        canvas.draw()
        figure.set_layout_engine("none")
        for part in parts():
            part.stale = False  # also what is not drawn
        canvas.ntk_places, canvas.ntk_frame = places(), canvas.copy_from_bbox(figure.bbox)
    canvas.restore_region(canvas.ntk_frame)
    for artist in content:
        artist.draw(canvas.get_renderer())
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1, compress_type=3)
    return buffer.getvalue()


def control_for(name, spec, default):
    if isinstance(spec, list) and spec:
        control = widgets.SelectionSlider(options=spec)
        control.add_class("ntk-list")
    else:
        control = widgets.interactive.widget_from_abbrev(spec)
    require(isinstance(control, widgets.ValueWidget) and spec != [],
             f"{name} must be a list, a tuple (min, max[, step]), a bool or a widget, got {spec!r}", TypeError)
    if default is not None:
        with suppress(TraitError):
            control.value = default
        require(control.value == default, f"{name} must offer draw's default, {default!r}, got {spec!r}")
    control.description = control.description or name.replace("_", " ")
    control.tooltip = control.tooltip or f"{control.description}: use the arrow keys, or drag"
    control.style.description_width, control.layout.width = "8em", "min(36em, 95%)"
    if hasattr(control, "continuous_update"):
        control.continuous_update = False
    return control
