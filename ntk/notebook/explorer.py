"""Sliders above one picture.

`interact` of ipywidgets clears an output and fills it again at every step, which flickers. Here one
element stays in the page and is given another picture, also while a slider is dragged.
"""

import asyncio
import html
import threading
from contextlib import suppress

import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython.display import display

from ntk.checks import require
from ntk.notebook.controls import (
    NamesOfButtons,
    control_for,
    defaults_of,
    player,
    require_known_fields,
    values_of,
)
from ntk.notebook.drawing import heatmaps_in, live
from ntk.notebook.pictures import figure_of, sharp_png, show_words, title_of
from ntk.notebook.stills import captions, picture_of, stored, strip
from ntk.notebook.views import KernelView

REST = 0.5  # seconds without a move, after which the picture is drawn with twice the pixels
DRAWING = threading.RLock()  # widgets may have threads, and Matplotlib wants one at a time
STYLE = """<style>
/* one may type beside a slider over a list, but ipywidgets takes no notice */
.ntk-list .widget-readout {pointer-events: none; -webkit-user-modify: read-only}
/* the live picture has the words in its alt */
.jp-OutputArea:has(.ntk-explorer) .ntk-words {display: none}
.ntk-explorer img {max-width: 100%}
.ntk-drawn {height: auto; border-radius: 6px}
.ntk-heatmaps {display: flex; flex-wrap: wrap; gap: 1em 2.5em; line-height: 1.4}
.ntk-heatmap {margin: 0; max-width: 100%}
.ntk-heatmap figcaption {font-size: 1.1em; min-height: 1.4em}
.ntk-heatmap > div {display: flex; gap: 0.7em}
.ntk-pixels {image-rendering: pixelated; flex: 0 1 auto; min-width: 0; align-self: flex-start}
.ntk-scale, .ntk-size {position: relative; flex: none; width: 3.6em; font-size: 0.8em}
.ntk-bar {position: absolute; width: 0.7em; height: 100%}
.ntk-scale span {position: absolute; left: 1.1em; transform: translateY(-50%)}
.ntk-scale span:first-of-type {transform: none}
.ntk-scale span:last-of-type {transform: translateY(-100%)}
.ntk-size {border-left: 1px solid currentColor; margin-left: 0.5em}
.ntk-size span {position: absolute; left: 0.8em; transform: translateY(-50%)}
.ntk-size i {position: absolute; left: -0.4em; width: 0.7em; height: 0.7em; border-radius: 50%;
    background: #D55E00; transform: translateY(-50%)}
/* the kernel is busy: the picture comes later than one expects */
.ntk-explorer {position: relative}
.jp-NotebookPanel:has(.jp-Notebook-ExecutionIndicator[data-status="busy"]) .ntk-explorer::before {
    content: "Python is busy: the picture follows."; position: absolute; right: 0; bottom: 0;
    padding: 0.3em; background: #fff3c4; color: black; animation: ntk-late 0.3s step-end}
@keyframes ntk-late {from {visibility: hidden}}
/* the kernel is gone: sliders move, but the picture does not; one sentence above says so */
.ntk-explorer.jupyter-widgets-disconnected img {opacity: 0.2}
.ntk-explorer .jupyter-widgets-disconnected::before {display: none}
.jp-NotebookPanel .ntk-explorer.jupyter-widgets-disconnected::before {
    content: "The kernel was restarted: run this cell again."; position: static; animation: none;
    font: bold 1em var(--jp-ui-font-family, sans-serif); align-self: start}
</style>"""


class Explorer(widgets.VBox):
    """Controls above one picture.

        Explorer(draw, "Kernel of a net of width {width}: {title}", width=[1, 4, 16], seed=(0, 9))

    draw: a function; draw(**values) returns a figure, axes or a `KernelView`, best the same one
        each time with its artists or its kernel updated.
    alt: the picture's text, a format string filled with the values and the figure's `title`.
    stills: values, a list of dicts; the pictures of these, in a strip, are what a reader without
        Python sees. Values left out are those at the start.
    play: the name of a slider over time, which gets a button that plays it like a film. Its
        pictures are drawn before the film starts.
    controls: a list or array (a slider over its entries, or with pairs (label, value) over these
        values; buttons for up to four words), a tuple (min, max[, step]), a bool, or a widget. Each
        starts at the default that `draw` gives its argument, if any.
        `controls["width"].value = 64` moves one.

    If `draw` raises, its message stands under the controls and the last good picture stays. Raises
    TypeError or ValueError for controls that it cannot make or `draw` does not take, and ValueError
    for an `alt` that names others, for stills of values that no control has, and for a `play` that
    is no slider.
    """

    def __init__(self, draw, alt, *, stills=(), play=None, **controls):
        defaults = defaults_of(draw, controls)
        self.controls = {name: control_for(name, spec, defaults.get(name))
                         for name, spec in controls.items()}
        require_known_fields(alt, self.values)
        self._draw, self._alt, self._film = draw, alt, {}
        self.stills = self._captioned(stills)
        self.message, self.picture = widgets.HTML(), widgets.HTML()
        self.alt, self._shown, self._timer, self._moves = "", None, None, 0
        rows = dict(self.controls)
        if play is not None:
            rows[play] = self._played(play)
        style = widgets.HTML(STYLE)
        super().__init__([*rows.values(), self.message, self.picture, style])
        self.add_class("ntk-explorer")
        for control in self.controls.values():
            control.observe(self._update, names="value")
        self._update()

    @property
    def values(self):
        "The controls' values, by name."
        return {name: control.value for name, control in self.controls.items()}

    def _captioned(self, stills):
        "The values of each, under the words that tell it from the others."
        for still in stills:
            known = {*still} <= {*self.values}
            require(known, f"stills may name the controls {list(self.values)}, got {still!r}")
        stills = [{**self.values, **still} for still in stills]
        return dict(zip(captions(stills), stills))

    def _update(self, change=None):
        with DRAWING:
            self._moves += 1
            others = plt.get_fignums()
            try:
                frame = self._film.get(repr(self.values))
                self._show(*frame or self._drawn(self.values))
                if frame is None:  # else the figure shows the film's last one
                    self._sharpen_later()
            except Exception as error:
                for number in {*plt.get_fignums()} - {*others}:
                    plt.close(number)
                self._show_message(error)

    def _sharpen_later(self):
        "Once nothing has moved for a while. A view and heatmaps are sharp already."
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(self._shown, plt.Figure) and not heatmaps_in(self._shown):
            with suppress(RuntimeError):  # no loop, and so nobody who looks
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(REST, self._sharpen, self._moves)

    def _sharpen(self, moves):
        "Draw the picture anew, unless another has come since."
        with DRAWING:
            if moves == self._moves:
                self.picture.value = live(self._shown, self.alt, sharp_png)

    def _drawn(self, values):
        "What `draw` returns, its words, and the HTML of a figure."
        drawn, alt = self._in_words(values)
        return drawn, alt, None if isinstance(drawn, KernelView) else live(drawn, alt)

    def _in_words(self, values):
        "The same without the HTML, which takes most of the time."
        drawn = self._draw(**values)
        if isinstance(drawn, KernelView):
            return drawn, self._alt.format(**{"title": drawn.title, **values})
        figure = figure_of(drawn)
        plt.close(figure)  # or the inline backend shows it a second time
        title = title_of(figure.axes[0]) if figure.axes else ""
        return figure, self._alt.format(**{"title": title, **values})

    def _show(self, drawn, alt, picture):
        self.message.value = ""
        self._shown, self.alt = drawn, alt
        if picture is not None:
            self.picture.value = picture
            return
        drawn.alt = alt
        if self.picture is not drawn:  # the first time
            self.children = [drawn if child is self.picture else child for child in self.children]
            self.picture = drawn

    def _show_message(self, error):
        what = html.escape(f"No picture for {self!r}.")
        why = html.escape(f"{type(error).__name__}: {error}")
        self.message.value = f'<p role="alert"><b>{what}</b> {why}</p>'

    def _played(self, name):
        "The slider and, before it, its button; all pictures are drawn before the film starts."
        slider = self.controls.get(name)
        require(hasattr(slider, "continuous_update"),
                f"play must name a slider, one of {[*self.controls]}, got {name!r}")
        play = player(slider)

        def draw_all(change):
            self._film.clear()
            for value in values_of(slider) if change["new"] else []:
                frame = {**self.values, name: value}
                with DRAWING:
                    drawn = self._drawn(frame)
                if drawn[2] is not None:
                    self._film[repr(frame)] = drawn
            if not change["new"]:
                self._update()

        play.observe(draw_all, "playing" if play.has_trait("playing") else "_playing")
        return widgets.HBox([play, slider, NamesOfButtons()])

    def __repr__(self):
        values = (f"{name}={value!r}" for name, value in self.values.items())
        return f"Explorer({', '.join(values)})"

    def _ipython_display_(self):
        data, metadata = self._repr_mimebundle_()
        display(data, raw=True, metadata=metadata)
        show_words(metadata.get("image/png", {"alt": self.alt})["alt"])

    def _repr_mimebundle_(self, **kwargs):
        "The live view and, for readers without a kernel, the stills with their text."
        if self._shown is None:
            return stored(self, repr(self))
        drawn = []
        for caption, values in self.stills.items():
            with suppress(Exception):  # a still that cannot be drawn is left out
                figure, alt = self._in_words(values)
                drawn.append((picture_of(figure), caption, alt))
        if not drawn:
            return stored(self, repr(self), picture_of(self._shown), self.alt)
        pictures, words, alts = zip(*drawn)
        self._update()
        return stored(self, repr(self), strip(pictures, words), " ".join(alts))
