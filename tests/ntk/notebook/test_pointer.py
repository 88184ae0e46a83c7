"""Points that one drags, and an image that one draws: what Python makes of what the page sends.

What the page does with pointer and keys is tested in a browser, in tests/test_browser.py.
"""

import asyncio
import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from ntk.notebook.explorer import REST
from ntk.notebook.pointer import Canvas, Points, frame_of
from ntk.notebook.views import KernelView

START = np.array([[-1.0, 0.0], [0.0, 0.5], [1.0, -0.5]])
LIMITS = (-2, 2), (-1, 1)


@pytest.fixture
def follow():
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.set(xlim=(-2, 2), ylim=(-1, 1))
    [dots] = ax.plot([], [], "o")

    def follow(points, size=5):
        if points[0, 0] > 1.5:
            raise ValueError("too far to the right")
        dots.set_data(*points.T)
        dots.set_markersize(size)
        ax.set_title(f"highest {points[:, 1].max():.2f}")
        return figure

    return follow


@pytest.fixture
def weigh():
    figure, ax = plt.subplots(figsize=(2, 2))
    picture = ax.imshow(np.zeros((8, 8)), vmin=0, vmax=16)

    def weigh(image):
        picture.set_data(image)
        ax.set_title(f"{image.sum():.0f}")
        return ax

    return weigh


def surface(explorer):
    "The part of it that lives in the page."
    return explorer.children[-3].children[0]


def send(explorer, value):
    "As the page does, after a pointer or a key."
    surface(explorer).set_state({"value": value})


def stored(explorer):
    bundle, metadata = explorer._repr_mimebundle_()
    return bundle["text/plain"], bundle["image/png"], metadata["image/png"]


# Points


@pytest.mark.parametrize("given_as", [np.array, torch.tensor, list])
def test_a_moved_point_changes_picture_and_text(follow, given_as):
    points = Points(follow, "{title}, the first at {points[0][0]:.1f}", given_as(START.tolist()),
                    limits=LIMITS)
    assert points.alt == "highest 0.50, the first at -1.0" and points.message.value == ""
    before = points.picture.value
    send(points, [[-0.5, 0.75], [0, 0.5], [1, -0.5]])
    assert points.alt == "highest 0.75, the first at -0.5" and points.picture.value != before
    assert np.array_equal(points.points, [[-0.5, 0.75], [0, 0.5], [1, -0.5]])


def test_draw_gets_an_array_under_any_name_and_what_sliders_say():
    got = []

    def draw(data, scale=2):
        got.append((data, scale))
        return plt.figure(figsize=(1, 1)).add_subplot()

    points = Points(draw, "{data[1][1]} times {scale}", START, scale=[1, 2, 3])
    data, scale = got[-1]
    assert data.shape == (3, 2) and data.dtype == np.float64 and scale == 2
    points.controls["scale"].value = 3
    assert points.alt == "0.5 times 3" and repr(points) == "Points(3 points, scale=3)"
    assert points.children[0] is points.controls["scale"]


def test_where_the_page_puts_the_points(follow):
    "In parts of the figure, from Matplotlib's own transformation."
    figure = follow(START)
    size = figure.get_size_inches() * figure.dpi
    frame = surface(Points(follow, "", START, limits=LIMITS))._frame
    for point, pixel in zip(START, figure.axes[0].transData.transform(START)):
        parts = [start + length * (value - first) / (last - first)
                 for (start, length, first, last, _, _), value in zip(frame, point)]
        assert parts == pytest.approx(pixel / size)


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_limits_are_those_given_or_those_of_the_axes(layout):
    ax = plt.subplots(layout=layout)[1]
    ax.set(xlim=(3, -3), ylim=(0, 10))
    draw = lambda points: ax
    ends = [[*part[2:]] for part in surface(Points(draw, "", START))._frame]
    assert ends == [[3, -3, -3, 3], [0, 10, 0, 10]]
    ends = [[*part[2:]] for part in surface(Points(draw, "", START, limits=LIMITS))._frame]
    assert ends == [[3, -3, -2, 2], [0, 10, -1, 1]]
    assert frame_of(ax.figure, None)[0][0] == ax.get_position().x0


def test_an_error_leaves_the_last_good_picture(follow):
    points = Points(follow, "{title}", START, limits=LIMITS)
    before = points.picture.value
    send(points, [[1.6, 0], [0, 0.9], [1, 0]])
    assert "too far to the right" in points.message.value
    assert "No picture for Points(3 points)." in points.message.value
    assert points.picture.value == before and points.alt == "highest 0.50"
    send(points, [[1.4, 0], [0, 0.9], [1, 0]])
    assert points.message.value == "" and points.alt == "highest 0.90"


def test_a_picture_at_rest_gets_twice_the_pixels(follow):
    async def move_and_rest():
        send(points, (START / 2).tolist())
        moving = points.picture.value
        await asyncio.sleep(2 * REST)
        return moving

    points = Points(follow, "{title}", START, limits=LIMITS)
    assert len(asyncio.run(move_and_rest())) < len(points.picture.value)


@pytest.mark.parametrize("change, message", [
    (lambda ax: ax.set_xscale("symlog"), "must be linear"),
    (lambda ax: ax.remove(), "has no axes"),
    (lambda ax: (ax.clear(), ax.imshow(np.eye(2)), ax.set(xticks=[], yticks=[])), "heatmaps alone"),
])
def test_a_figure_on_which_no_point_can_lie_is_refused(change, message):
    figure, ax = plt.subplots()
    change(ax)
    points = Points(lambda points: figure, "", START)
    assert message in points.message.value and points.picture.value == ""


def test_a_view_is_refused():
    points = Points(lambda points: KernelView(torch.eye(2)), "", START)
    assert "expected a Matplotlib figure or axes, got KernelView" in points.message.value


@pytest.mark.parametrize("given, options, message", [
    (START[0], {}, r"points must have shape \(N, 2\), got \(2,\)"),
    (START[:0], {}, r"points must have shape \(N, 2\), got \(0, 2\)"),
    (START * np.nan, {}, "points must be finite"),
    (START, {"limits": (0, 1)}, r"limits must be \(\(x_min, x_max\), \(y_min, y_max\)\), got"),
    (START, {"limits": ((1, -1), (0, 1))}, "limits must be"),
    (3 * START, {"limits": LIMITS}, "points must lie within the limits"),
    (START, {"limits": LIMITS, "stills": {"far": 3 * START}}, "points must lie within the limits"),
    (START, {"stills": {"one": START[:1]}}, r"stills must have the points' shape \(3, 2\), got"),
])
def test_points_that_do_not_fit_are_refused(follow, given, options, message):
    with pytest.raises(ValueError, match=message):
        Points(follow, "", given, **options)


# An image


def test_a_stroke_changes_picture_and_text(weigh):
    canvas = Canvas(weigh, "in all {title}", image=np.eye(8))
    assert canvas.alt == "in all 8" and canvas.message.value == ""
    send(canvas, (16 * np.eye(8)).tolist())
    assert canvas.alt == "in all 128" and np.array_equal(canvas.image, 16 * np.eye(8))


def test_it_starts_white_or_with_an_image_of_whole_numbers(weigh):
    assert np.array_equal(Canvas(weigh, "").image, np.zeros((8, 8)))
    assert repr(Canvas(weigh, "", size=4)) == "Canvas(4 × 4)"
    canvas = Canvas(weigh, "", size=2, image=torch.tensor([[0.2, 15.9], [7.4, 16]]))
    assert np.array_equal(canvas.image, [[0, 16], [7, 16]])


@pytest.mark.parametrize("options, error, message", [
    ({"size": 0}, ValueError, "size must be a positive integer, got 0"),
    ({"size": 8.0}, TypeError, "size must be a positive integer, got 8.0"),
    ({"image": np.zeros((8, 7))}, ValueError, r"image must have shape \(8, 8\), got \(8, 7\)"),
    ({"image": 17 * np.eye(8)}, ValueError, "grey values from 0 to 16, got 0 to 17"),
    ({"image": -np.ones((8, 8))}, ValueError, "grey values from 0 to 16, got -1 to -1"),
    ({"image": np.inf * np.ones((8, 8))}, ValueError, "image must be finite"),
    ({"stills": {"small": np.eye(2)}}, ValueError, r"stills must have shape \(8, 8\)"),
])
def test_images_that_do_not_fit_are_refused(weigh, options, error, message):
    with pytest.raises(error, match=message):
        Canvas(weigh, "", **options)


# Both


def test_readers_without_python_get_the_start_or_captioned_stills(follow, weigh):
    points = Points(follow, "{title}", START, limits=LIMITS)
    text, png, about = stored(points)
    assert (text, about) == ("Points(3 points)", {"alt": "highest 0.50", "width": 300,
                                                  "height": 200})
    canvas = Canvas(weigh, "{title}", stills={"one": np.eye(8), "five": 5 * np.eye(8)})
    text, png, about = stored(canvas)
    assert (text, about["alt"]) == ("Canvas(8 × 8)", "8 40") and canvas.alt == "0"
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    assert image.width > 1.9 * 400 > image.height


def test_stills_are_captioned_and_leave_all_as_it_was(follow):
    points = Points(follow, "{title}", START, stills={"low": START, "far": -2 * START})
    send(points, (START / 2).tolist())
    assert stored(points)[2]["alt"] == "highest 0.50"  # draw refuses the other
    assert np.array_equal(points.points, START / 2) and points.alt == "highest 0.25"
    assert [*points.stills] == ["low", "far"]


def test_what_is_handed_out_is_a_copy(follow, weigh):
    points, canvas = Points(follow, "", START), Canvas(weigh, "")
    points.points[0], canvas.image[0] = 9, 9
    assert points.points.max() < 9 and canvas.image.max() < 9


@pytest.mark.parametrize("draw", [lambda: None, lambda points, other: None])
def test_draw_must_take_the_array(draw):
    with pytest.raises(TypeError, match="draw must take the controls"):
        Points(draw, "", START)


def test_text_may_name_the_array_and_title_alone(follow):
    with pytest.raises(ValueError, match=r"alt may name the controls \['points'\] and title"):
        Points(follow, "{image}", START)


def test_no_figure_stays_open():
    Canvas(lambda image: plt.subplots(figsize=(1, 1))[1], "")
    assert not plt.get_fignums()
