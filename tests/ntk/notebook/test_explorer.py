"""Sliders above a picture, as a browser gets them: HTML parsed, pixels decoded.

The pictures are held against Matplotlib's own `savefig`, which knows nothing of a kept background.
"""

import asyncio
import base64
import html.parser
import io
import pickle
import threading

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from ntk.notebook.drawing import live, png_of
from ntk.notebook.explorer import REST, Explorer
from ntk.notebook.pictures import plot_kernel, sharp_png
from ntk.notebook.stills import captions, strip
from ntk.notebook.views import KernelView


class Tag(html.parser.HTMLParser):
    "The first element of some HTML: its name, its attributes (unescaped) and all text."

    def __init__(self, source):
        super().__init__()
        self.name, self.attributes, self.text = None, {}, ""
        self.feed(source)

    def handle_starttag(self, name, attributes):
        if self.name is None:
            self.name, self.attributes = name, dict(attributes)

    def handle_data(self, text):
        self.text += text


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def saved(figure):
    "The pixels of the whole figure, by Matplotlib."
    png = io.BytesIO()
    # of a copy: the figure itself would become stale, and a background that was kept would not show
    pickle.loads(pickle.dumps(figure)).savefig(png, format="png")
    return pixels(png.getvalue())


def shown(explorer):
    "The picture in the browser: its pixels and its alternative text."
    tag = Tag(explorer.picture.value)
    assert tag.name == "img"
    kind, encoded = tag.attributes["src"].split(",")
    assert kind == "data:image/png;base64"
    return pixels(base64.b64decode(encoded)), tag.attributes["alt"]


def tiny(**anything):
    "A figure that is the same for all values."
    return plt.figure(figsize=(1, 1))


@pytest.fixture
def draw():
    figure, ax = plt.subplots(figsize=(2, 1.5), dpi=60)

    def draw(width=4, seed=0):
        if width == 13:
            raise ValueError("13 is <unlucky>")
        figure.set_facecolor((width / 255, seed / 255, 0))  # the corner tells which picture it is
        ax.set_title(f"{width} wide")
        draw.calls += 1
        return figure

    draw.figure, draw.calls = figure, 0
    return draw


@pytest.fixture
def explorer(draw):
    alt = "A net {width} wide, seed {seed}: {title}."
    return Explorer(draw, alt, width=[1, 4, 13, 16], seed=(0, 9))


# Picture and text


def test_it_starts_at_the_defaults_of_draw(explorer):
    picture, alt = shown(explorer)
    assert picture.shape == (90, 120, 3) and tuple(picture[0, 0]) == (4, 0, 0)
    assert alt == explorer.alt == "A net 4 wide, seed 0: 4 wide."
    assert explorer.values == {"width": 4, "seed": 0}


def test_moving_a_slider_changes_picture_and_text(explorer):
    explorer.controls["width"].value = 16
    assert tuple(shown(explorer)[0][0, 0]) == (16, 0, 0)
    explorer.controls["seed"].value = 9
    picture, alt = shown(explorer)
    assert tuple(picture[0, 0]) == (16, 9, 0) and alt == "A net 16 wide, seed 9: 16 wide."


def test_the_whole_picture_is_what_the_figure_looks_like(explorer, draw):
    explorer.controls["width"].value = 1
    assert np.array_equal(shown(explorer)[0], saved(draw.figure))


def test_draw_runs_once_for_each_change(explorer, draw):
    assert draw.calls == 1
    explorer.controls["width"].value = 16
    assert draw.calls == 2


def test_a_picture_at_rest_gets_twice_the_pixels(explorer, draw):
    async def move_and_rest():
        explorer.controls["width"].value = 16
        moving = explorer.picture.value
        await asyncio.sleep(REST / 2)
        assert explorer.picture.value == moving
        await asyncio.sleep(REST)

    asyncio.run(move_and_rest())
    sharp, alt = shown(explorer)
    assert sharp.shape == (180, 240, 3) and alt == "A net 16 wide, seed 0: 16 wide."
    assert Tag(explorer.picture.value).attributes["width"] == "120"
    explorer.controls["width"].value = 1
    assert np.array_equal(shown(explorer)[0], saved(draw.figure))


def test_a_sharp_picture_that_comes_late_does_not_replace_a_newer_one(explorer, monkeypatch):
    "JupyterLab may run a widget's messages in another thread than the one that draws at rest."
    started, go_on = threading.Event(), threading.Event()

    def slowly(figure):
        started.set()
        assert go_on.wait(60)
        return sharp_png(figure)

    monkeypatch.setattr("ntk.notebook.explorer.sharp_png", slowly)
    at_rest = threading.Thread(target=explorer._sharpen, args=[explorer._moves])
    move = threading.Thread(target=setattr, args=[explorer.controls["width"], "value", 16])
    at_rest.start()
    assert started.wait(60)
    move.start()
    go_on.set()
    for thread in (at_rest, move):
        thread.join(60)
    assert "A net 16 wide" in explorer.picture.value
    explorer._sharpen(explorer._moves - 1)  # a timer that was too late to be cancelled
    assert "A net 16 wide" in explorer.picture.value
    assert explorer.picture.value == live(explorer._shown, explorer.alt)


def test_a_figure_of_heatmaps_is_sharp_already():
    figure, ax = plt.subplots()
    image = ax.imshow(np.eye(3))
    ax.set(xticks=[], yticks=[])

    def draw(scale=1):
        image.set_data(scale * np.eye(3))
        return figure

    async def rest():
        explorer.controls["scale"].value = 3
        before = explorer.picture.value
        await asyncio.sleep(1.5 * REST)
        return before

    explorer = Explorer(draw, "three times {scale}", scale=(1, 5))
    assert asyncio.run(rest()) == explorer.picture.value and "ntk-pixels" in explorer.picture.value


def test_alternative_text_is_escaped():
    labels = ['"><script>', "&amp;"]
    explorer = Explorer(tiny, 'is "{label}" > <b>?', label=labels)
    assert shown(explorer)[1] == 'is ""><script>" > <b>?'
    assert "<script>" not in explorer.picture.value
    explorer.controls["label"].value = "&amp;"
    assert shown(explorer)[1] == 'is "&amp;" > <b>?'


def test_controls_stand_above_message_and_picture(explorer):
    above = len(explorer.controls) + 2  # below the picture: nothing but a style
    expected = [*explorer.controls.values(), explorer.message, explorer.picture]
    assert list(explorer.children[:above]) == expected
    size = Tag(explorer.picture.value).attributes
    assert (size["width"], size["height"]) == ("120", "90")  # nothing jumps while it loads


# What goes wrong while it is drawn


def test_an_exception_shows_its_message_and_leaves_the_last_good_picture(explorer):
    explorer.controls["width"].value = 16
    before = explorer.picture.value, explorer.alt
    explorer.controls["width"].value = 13
    message = Tag(explorer.message.value)
    assert message.attributes["role"] == "alert"  # read out by a screen reader
    assert "ValueError: 13 is <unlucky>" in message.text and "width=13" in message.text
    assert (explorer.picture.value, explorer.alt) == before
    assert explorer.alt == "A net 16 wide, seed 0: 16 wide."
    explorer.controls["width"].value = 1
    assert explorer.message.value == "" and shown(explorer)[1] == "A net 1 wide, seed 0: 1 wide."


def test_an_exception_in_the_first_draw_shows_its_message(draw):
    explorer = Explorer(lambda width: draw(width), "{width}", width=[13, 16])
    assert "13 is <unlucky>" in Tag(explorer.message.value).text and explorer.picture.value == ""
    bundle, _ = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == "Explorer(width=13)" and "image/png" not in bundle


def test_a_draw_that_returns_no_figure_shows_a_message():
    explorer = Explorer(lambda n=1: None, "{n}", n=[1, 2])
    message = Tag(explorer.message.value).text
    assert "expected a Matplotlib figure or axes, got NoneType" in message


def test_a_text_that_fails_leaves_the_picture_as_it_was():
    def draw(n=1):
        return plt.figure(figsize=(1, 1), facecolor=(n / 10, 0, 0))

    explorer = Explorer(draw, "{n:d}", n=[1, 2.5])
    before = explorer.picture.value
    explorer.controls["n"].value = 2.5  # has no format d
    assert explorer.message.value and explorer.picture.value == before


# Figures are closed: or the inline backend would show them a second time


def test_no_figure_stays_open(explorer):
    assert not plt.get_fignums()
    explorer.controls["width"].value = 16
    assert not plt.get_fignums()


def test_no_figure_stays_open_when_draw_makes_a_new_one_each_time():
    explorer = Explorer(lambda n=1: plt.subplots(figsize=(1, 1))[1], "{n}", n=[1, 2, 3])
    for n in (2, 3, 1):
        explorer.controls["n"].value = n
        assert not plt.get_fignums()


def test_no_figure_stays_open_when_draw_fails_after_making_one():
    def draw(n=1):
        figure = plt.figure(figsize=(1, 1))
        if n == 2:
            raise ValueError("too late")
        return figure

    mine = plt.figure()  # somebody else's: stays
    explorer = Explorer(draw, "{n}", n=[1, 2])
    explorer.controls["n"].value = 2
    assert "too late" in explorer.message.value and plt.get_fignums() == [mine.number]


# For readers without a kernel


def test_text_is_short_and_follows_the_controls(explorer):
    assert repr(explorer) == "Explorer(width=4, seed=0)"
    explorer.controls["seed"].value = 7
    assert repr(explorer) == "Explorer(width=4, seed=7)"


def test_mime_bundle_has_the_live_view_the_picture_and_the_text(explorer):
    bundle, metadata = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == repr(explorer)
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == explorer.model_id
    stored = pixels(base64.b64decode(bundle["image/png"]))
    assert stored.shape == (180, 240, 3) and tuple(stored[0, 0]) == (4, 0, 0)  # twice as sharp
    assert metadata["image/png"] == {"alt": explorer.alt, "width": 120, "height": 90}
    asked_by_ipython, _ = explorer._repr_mimebundle_(include=None, exclude=None)
    assert asked_by_ipython.keys() == bundle.keys()


def test_text_of_an_explorer_with_many_controls_is_not_cut():
    # a widget's own text ends after 110 characters
    names = [f"control_number_{i}" for i in range(9)]
    explorer = Explorer(tiny, "", **{name: [1, 2] for name in names})
    expected = f"Explorer({', '.join(f'{name}=1' for name in names)})"
    assert explorer._repr_mimebundle_()[0]["text/plain"] == repr(explorer) == expected


# Stills and films


def coloured(n=1, seed=0):
    return plt.figure(figsize=(1, 1), dpi=50, facecolor=(n / 10, seed / 10, 0))


def test_stills_are_a_strip_of_their_pictures_with_the_words_of_all():
    stills = [{"n": 1}, {"n": 9, "seed": 5}]
    explorer = Explorer(coloured, "<{n}, {seed}>", stills=stills, n=[1, 5, 9], seed=(0, 9))
    bundle, metadata = explorer._repr_mimebundle_()
    strip = pixels(base64.b64decode(bundle["image/png"]))
    colours = {tuple(colour) for colour in strip.reshape(-1, 3)}
    assert {(25, 0, 0), (229, 127, 0)} <= colours or {(26, 0, 0), (230, 128, 0)} <= colours
    assert metadata["image/png"]["alt"] == "<1, 0> <9, 5>"
    assert bundle["text/plain"] == "Explorer(n=1, seed=0)"  # and the live view is as it was
    assert shown(explorer)[1] == "<1, 0>" and tuple(shown(explorer)[0][0, 0]) in {(25, 0, 0),
                                                                               (26, 0, 0)}
    assert metadata["image/png"]["width"] == -(-strip.shape[1] // 2)


def test_a_still_that_cannot_be_drawn_is_left_out(draw):
    stills = [{"width": 4}, {"width": 13}, {"width": 16}]
    explorer = Explorer(draw, "{width} wide", stills=stills, width=[4, 13, 16])
    assert explorer._repr_mimebundle_()[1]["image/png"]["alt"] == "4 wide 16 wide"
    explorer = Explorer(draw, "{width} wide", stills=[{"width": 13}], width=[4, 13])
    assert explorer._repr_mimebundle_()[1]["image/png"]["alt"] == "4 wide"


def test_captions_tell_what_differs():
    stills = [{"width": 2, "seed": 0}, {"width": 1024, "seed": 0}]
    assert captions(stills) == ["width 2", "width 1024"]
    assert captions(stills[:1]) == ["width 2, seed 0"]
    assert captions([{"hidden_layers": 1}, {"hidden_layers": 2}]) == ["hidden layers 1",
                                                                     "hidden layers 2"]


@pytest.mark.parametrize("count, width, in_a_row", [(1, 600, 1), (2, 600, 2), (4, 1200, 2),
                                                   (3, 800, 3), (5, 400, 3), (2, 1600, 1)])
def test_a_strip_has_rows(count, width, in_a_row):
    png = io.BytesIO()
    Image.new("RGB", (width, 100), "red").save(png, "png")
    whole = pixels(strip([png.getvalue()] * count, ["one"] * count))
    assert whole.shape[1] <= 1680 and (whole.shape[1] + 40) % in_a_row == 0
    red = (whole == (255, 0, 0)).all(axis=2)
    starts = (red[:, 1:] & ~red[:, :-1]).sum(axis=1).max() + red[:, 0].any()
    assert starts == in_a_row
    assert (red.any(axis=1)[1:] & ~red.any(axis=1)[:-1]).sum() == -(-count // in_a_row)


def test_stills_of_values_that_no_control_has_are_refused():
    with pytest.raises(ValueError, match=r"stills may name the controls \['n'\], got {'m': 1}"):
        Explorer(coloured, "", stills=[{"m": 1}], n=[1, 2])


@pytest.mark.parametrize("spec, values", [((0, 6, 2), [0, 2, 4, 6]), ([1, 5, 9], [1, 5, 9])])
def test_a_film_is_drawn_before_it_starts(spec, values):
    drawn = []
    draw = lambda n=values[0]: drawn.append(n) or coloured(n)
    explorer = Explorer(draw, "{n}", play="n", n=spec)
    row = next(child for child in explorer.children if isinstance(child, widgets.HBox))
    play, slider, _ = row.children
    assert isinstance(play, widgets.Play) and slider is explorer.controls["n"]
    assert (play.min, play.max, play.step) in [(0, 6, 2), (0, 2, 1)]
    drawn.clear()
    play.playing = True
    assert drawn == values
    for value in values:
        explorer.controls["n"].value = value
        assert shown(explorer)[1] == str(value)
    assert drawn == values  # nothing was drawn twice
    play.playing = False  # the figure shows the last frame drawn, and is drawn as the slider is
    explorer.controls["n"].value = values[0]
    assert drawn == [*values, values[-1], values[0]]


@pytest.mark.parametrize("play, spec", [("m", [1, 2]), ("n", True), ("n", (0.0, 1.0))])
def test_only_a_slider_of_steps_can_be_played(play, spec):
    with pytest.raises(ValueError, match="play must name a slider"):
        Explorer(lambda n: coloured(), "", play=play, n=spec)


# A kernel that answers in place of a picture


def test_a_view_is_put_in_place_of_the_picture_and_gets_the_words():
    view = KernelView(torch.eye(3), title="three")

    def draw(n=1):
        view.kernel = n * torch.eye(3)
        return view

    explorer = Explorer(draw, "{n} times: {title}", n=[1, 2], stills=[{"n": 1}, {"n": 2}])
    assert view in explorer.children and view.alt == "1 times: three"
    explorer.controls["n"].value = 2
    assert float(view.kernel[0, 0]) == 2 and view.alt == "2 times: three"
    assert explorer.children.count(view) == 1 and explorer.message.value == ""
    bundle, metadata = explorer._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "1 times: three 2 times: three"
    assert float(view.kernel[0, 0]) == 2  # as it was


# Controls


CONTROLS = {  # what is given → the widget it becomes, and a value that it can take
    "list of numbers": ([1, 4, 16], widgets.SelectionSlider, 16),
    "list of floats": ([0.1, 1.0, 10.0], widgets.SelectionSlider, 10.0),
    "(min, max)": ((0, 9), widgets.IntSlider, 7),
    "(min, max, step)": ((0, 10, 5), widgets.IntSlider, 10),
    "(float, float)": ((0.0, 1.0), widgets.FloatSlider, 0.3),
    "bool": (True, widgets.Checkbox, False),
    "array": (np.array([1, 4, 16]), widgets.SelectionSlider, 16),
    "tensor": (torch.tensor([1, 4, 16]), widgets.SelectionSlider, 16),
    "list of NumPy's numbers": (list(np.linspace(0, 1, 3)), widgets.SelectionSlider, 0.5),
    "list of tensors": ([torch.tensor(1), torch.tensor(2)], widgets.SelectionSlider, 2),
    "list of lists": ([[20, 10], [20, 5]], widgets.SelectionSlider, [20, 5]),
    "matrix": (np.arange(6).reshape(3, 2), widgets.SelectionSlider, [4, 5]),
    "pairs": ([("few", 1), ("many", 100)], widgets.SelectionSlider, 100),
    "pairs of numbers": ([(1, 2), (3, 4)], widgets.SelectionSlider, (3, 4)),
    "(min, max) of NumPy": ((np.int64(0), np.int64(9)), widgets.IntSlider, 7),
    "bool of NumPy": (np.True_, widgets.Checkbox, False),
    "a few words": (["relu", "tanh"], widgets.ToggleButtons, "tanh"),
    "many words": ([*"abcde"], widgets.SelectionSlider, "d"),
    "widget": (widgets.IntSlider(2, 0, 5), widgets.IntSlider, 3),
    "choice": (widgets.ToggleButtons(options=["relu", "tanh"]), widgets.ToggleButtons, "tanh"),
}


@pytest.mark.parametrize("spec, kind, value", CONTROLS.values(), ids=CONTROLS)
def test_controls_are_made_from_plain_values(spec, kind, value):
    explorer = Explorer(tiny, "{hidden_width}", hidden_width=spec)
    control = explorer.controls["hidden_width"]
    assert isinstance(control, kind) and control in explorer.children
    assert control.description == "hidden width" and control.tooltip
    assert getattr(control, "continuous_update", True) is True  # it lives while it is dragged
    control.value = value
    assert shown(explorer)[1] == str(value)


def test_a_default_that_is_an_array_is_refused_by_name():
    default = np.ones(2)
    with pytest.raises(ValueError, match="n must offer draw's default"):
        Explorer(lambda n=default: tiny(), "", n=[1, 2])


def test_numbers_of_numpy_stand_in_the_text_as_numbers():
    for spec in (np.array([0.5, 1]), list(np.array([0.5, 1])), [np.float32(0.5)]):
        assert repr(Explorer(tiny, "", n=spec)) == "Explorer(n=0.5)"


def test_a_widget_keeps_its_own_description():
    spec = widgets.IntSlider(2, 0, 5, description="n", tooltip="units in a layer")
    control = Explorer(tiny, "", n=spec).controls["n"]
    assert (control.description, control.tooltip, control.value) == ("n", "units in a layer", 2)


@pytest.mark.parametrize("default, spec", [
    (False, True), (0, (0, 9)), (0.25, (0.0, 1.0)), ("tanh", ["relu", "tanh"]),
])
def test_controls_start_at_the_default_of_draw(default, spec):
    def draw(value=default):
        return tiny()

    assert Explorer(draw, "", value=spec).values == {"value": default}


def test_draw_may_have_arguments_without_a_control():
    def draw(n, colour="red"):
        return plt.figure(figsize=(1, 1), facecolor=colour)

    explorer = Explorer(draw, "{n}", n=[1, 2])
    assert tuple(shown(explorer)[0][0, 0]) == (255, 0, 0)


def test_a_control_may_be_called_title():
    assert shown(Explorer(tiny, "{title}", title=["a", "b"]))[1] == "a"


@pytest.mark.parametrize("spec", [None, object(), [], (5, 1), (1,), ("a", "b"), widgets.Label])
def test_controls_that_cannot_be_made_are_refused(spec):
    with pytest.raises((TypeError, ValueError)):
        Explorer(tiny, "", width=spec)


@pytest.mark.parametrize("spec", [
    None, [], widgets.Label, [None, 1], [1, None], (5, 1), (1,), ("a", "b"), (0, 1, 0),
    np.array([]), (None, 1), object(), [np.ones(2), np.zeros(2)], [torch.ones(2), 1],
    [float("nan"), 1.0],
])
def test_the_refusal_of_a_control_names_it(spec):
    with pytest.raises(TypeError, match="width must be a list, a tuple .* a bool or a widget, got"):
        Explorer(tiny, "", width=spec)


@pytest.mark.parametrize("spec", [
    [1, 2], (1, 20), ["a", "b"], np.array([1, 2]),
], ids=str)
def test_a_default_that_its_control_does_not_offer_is_refused(spec):
    with pytest.raises((TypeError, ValueError), match="width.*50"):
        Explorer(lambda width=50: tiny(), "", width=spec)


@pytest.mark.parametrize("function", [
    lambda width: None, lambda: None, lambda width, depth, seed: None,
])
def test_draw_must_take_the_controls(function):
    with pytest.raises(TypeError, match=r"draw must take the controls \['width', 'depth'\]"):
        Explorer(function, "", width=[1, 2], depth=[1, 2])


@pytest.mark.parametrize("alt", ["{depth}", "{width} {}", "{width", "{width.size}"])
def test_text_may_name_only_the_controls_and_title(alt):
    with pytest.raises(ValueError):
        Explorer(tiny, alt, width=[1, 2])


def test_text_that_names_an_unknown_field_is_refused_by_name():
    message = r"alt may name the controls \['width'\] and title, got {depth}"
    with pytest.raises(ValueError, match=message):
        Explorer(tiny, "{depth}", width=[1, 2])


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_axes_that_are_cleared_at_each_step_keep_one_colour_bar(layout):
    figure, ax = plt.subplots(layout=layout)

    def draw(n=1):
        ax.clear()
        plot_kernel(np.eye(2) * n, ax=ax)
        return figure

    explorer = Explorer(draw, "{n}", n=[1, 2, 3])
    places = [ax.get_position().bounds]
    for n in (2, 3, 1, 2):
        explorer.controls["n"].value = n
        assert explorer.message.value == ""
        places.append(ax.get_position().bounds)
    assert len(figure.axes) == 2 and len(set(places)) == 1
    assert np.abs(pixels(png_of(figure)).astype(int) - saved(figure)).mean() < 0.1


# The kept background: each step looks like the whole figure


@pytest.mark.parametrize("layout", [None, "tight", "constrained", "compressed"])
def test_figures_of_any_layout_are_shown(layout):
    ax = plt.subplots(layout=layout)[1]
    explorer = Explorer(lambda n=4: plot_kernel(torch.eye(n), ax=ax), "{n}", n=[4, 400])
    assert explorer.message.value == "" and explorer.picture.value
    explorer.controls["n"].value = 400
    assert explorer.message.value == "" and ax.images[0].get_array().shape == (400, 400)


def first_tick(ax):
    return ax.get_xticklabels()[1]


def word_of_legend(ax):
    return ax.get_legend().get_texts()[0]


def heatmap(figure, kernel):
    plot_kernel(kernel, ax=figure.axes[1])


CHANGES = {  # what one step of a slider, to n = 0 or 1, may do to a figure and its first axes
    "data": lambda figure, ax, n: ax.lines[0].set_ydata([n, 1 - n]),
    "title": lambda figure, ax, n: ax.set_title(f"at {n}"),
    "title of the figure": lambda figure, ax, n: figure.suptitle(f"at {n}"),
    "limits": lambda figure, ax, n: ax.set_xlim(-1 - 3 * n, 2),
    "scale": lambda figure, ax, n: ax.set_xscale(["linear", "symlog"][n]),
    "label": lambda figure, ax, n: ax.set_ylabel(f"height {n}"),
    "label's colour": lambda figure, ax, n: ax.yaxis.label.set_color(["k", "r"][n]),
    "ticks": lambda figure, ax, n: ax.set_xticks([0, 1 - n / 2]),
    "a tick's text": lambda figure, ax, n: first_tick(ax).set_color(["k", "r"][n]),
    "grid": lambda figure, ax, n: ax.grid(bool(n)),
    "spines": lambda figure, ax, n: ax.spines[:].set_visible(bool(n)),
    "background": lambda figure, ax, n: ax.set_facecolor(["w", "y"][n]),
    "margin": lambda figure, ax, n: figure.set_facecolor(["w", "y"][n]),
    "size": lambda figure, ax, n: figure.set_size_inches(3 + n, 2),
    "place": lambda figure, ax, n: ax.set_position([0.15, 0.3, 0.1 + 0.1 * n, 0.5]),
    "axis": lambda figure, ax, n: ax.set_axis_on() if n else ax.set_axis_off(),
    "frame": lambda figure, ax, n: ax.set_frame_on(bool(n)),
    "axes": lambda figure, ax, n: ax.set_visible(bool(n)),
    "legend": lambda figure, ax, n: ax.legend(loc=["upper left", "lower right"][n]),
    "a word of the legend": lambda figure, ax, n: word_of_legend(ax).set_text(f"line {n}"),
    "a new line": lambda figure, ax, n: ax.axhline(n / 2),
    "everything": lambda figure, ax, n: (ax.clear(), ax.plot([n, 1])),
    "colour bar": lambda figure, ax, n: heatmap(figure, (1 + 99 * n) * torch.eye(3)),
    "colours": lambda figure, ax, n: heatmap(figure, torch.eye(3) - n),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_picture_is_that_of_the_whole_figure_whatever_changes(change):
    figure, axes = plt.subplots(1, 2, figsize=(3, 2), layout="constrained")
    axes[0].plot([0, 1], label="line")
    axes[0].set_ylabel("height")
    axes[0].legend(frameon=False, loc="lower right")
    axes[0].set_facecolor("lightblue")
    plot_kernel(torch.eye(3), ax=axes[1])

    def draw(n=0):
        change(figure, axes[0], n)
        return figure

    explorer, pictures = Explorer(draw, "{n}", n=[0, 1]), []
    for n in (0, 1, 0):
        explorer.controls["n"].value = n
        assert explorer.message.value == ""
        picture, whole = pixels(png_of(figure)).astype(int), saved(figure).astype(int)
        assert picture.shape == whole.shape
        differs = abs(picture - whole).max(axis=2) > 50
        assert differs.mean() < 0.0005  # two artists may lie the other way round
        pictures.append(picture)
    assert not np.array_equal(pictures[0], pictures[1])


def test_ticks_are_drawn_once_while_a_line_moves(monkeypatch):
    figure, ax = plt.subplots(figsize=(1, 1))
    [line], drawn = ax.plot([0, 1]), []
    monkeypatch.setattr(ax.xaxis, "draw", drawn.append)

    def draw(n=0):
        line.set_ydata([n / 10, 1])
        return figure

    explorer = Explorer(draw, "{n}", n=(0, 9))
    before, times = explorer.picture.value, len(drawn)
    explorer.controls["n"].value = 9
    assert explorer.picture.value != before and len(drawn) == times > 0


def test_axes_stay_in_place_while_a_slider_moves():
    ax = plt.subplots(layout="constrained")[1]
    explorer = Explorer(lambda n=4: plot_kernel(1e3 * n * torch.eye(n), ax=ax), "{n}", n=[4, 400])
    before = ax.get_position().bounds
    explorer.controls["n"].value = 400  # longer tick labels
    assert ax.get_position().bounds == pytest.approx(before)
