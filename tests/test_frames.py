"Which of an explorer's states a page without Python has."

import math
from copy import copy

import matplotlib.pyplot as plt
import pytest
from frames import FRAMES, Frames, grid, thinned
from PIL import Image

from ntk_helpers import Explorer


def test_thinned_places_are_even_and_have_those_needed():
    assert thinned(range(101), {0, 100}, 5) == [0, 25, 50, 75, 100]
    assert thinned(range(11), {0, 1, 10}, 4) == [0, 1, 6, 10]
    assert thinned(range(3), {0, 2}, 3) == [0, 1, 2]


@pytest.mark.parametrize("sizes", [(11, 21), (100, 100, 21), (2, 36, 20), (8, 2, 3, 2), (5,)])
def test_a_grid_is_a_product_within_its_limit_that_leaves_no_room(sizes):
    places = [range(size) for size in sizes]
    kept = grid(places, [{0, size - 1} for size in sizes], FRAMES)
    counts = [*map(len, kept)]
    assert FRAMES / 2 < math.prod(counts) <= FRAMES or counts == [*sizes]
    assert all({0, size - 1} <= {*few} for size, few in zip(sizes, kept))


def test_what_is_needed_stays_if_it_has_no_room():
    assert grid([range(9)], [{0, 3, 8}], 2) == [[0, 3, 8]]


@pytest.fixture(scope="module")
def frames():
    figure, ax = plt.subplots(figsize=(3, 2))
    [line] = ax.plot([0, 1], [0, 1])

    def draw(width=4, shift=0.5, bold=False, kind="up"):
        line.set(ydata=[shift, 1], linewidth=width if bold else 1)
        ax.set_title(kind)
        return ax

    explorer = Explorer(draw, "{kind}, width {width}, bold {bold}, at {shift}: {title}",
                        width=[2**k for k in range(9)], shift=(0.0, 1.0, 0.1), bold=True,
                        kind=["up", "down"], play="width", stills=[{"width": 64}, {"shift": 0.3}])
    return Frames(explorer)


@pytest.mark.slow
def test_frames_have_the_start_both_ends_and_the_stills(frames):
    width, shift, bold, kind = frames.kept
    assert {0, 2, 6, 8} <= {*width} and {0, 3, 5, 10} <= {*shift}
    assert (bold, kind) == ([0, 1], [0, 1])
    assert frames.is_thinned and frames.start == (2, 5, 0, 0)
    webp, alt = frames.drawn[0, 3, 1, 1]
    assert alt == "down, width 1, bold True, at 0.3: down" and webp.startswith(b"RIFF")


@pytest.mark.slow
def test_frames_are_written_beside_what_the_page_says_of_them(frames, tmp_path):
    said = frames.written(tmp_path / "0-")
    assert {path.name for path in tmp_path.iterdir()} == {f"0-{key}.webp" for key in said["words"]}
    assert said["words"][said["first"]] == "up, width 4, bold False, at 0.5: up"
    assert Image.open(tmp_path / f"0-{said['first']}.webp").size == (600, 400)
    assert said["size"] == (300, 200)  # so that a sharp screen shows them sharp
    kinds = [(control["kind"], control["play"]) for control in said["controls"]]
    assert kinds == [("range", True), ("range", False), ("checkbox", False), ("radio", False)]
    for control in said["controls"][:2]:
        assert control["labels"][control["start"]] in ("4", "0.50")


@pytest.mark.slow
def test_fewer_frames_keep_what_is_needed(frames):
    frames = copy(frames)  # the other tests have all of them
    before = frames.size
    while frames.thin():
        assert all(needed <= {*kept} for needed, kept in zip(frames.needed, frames.kept))
    assert frames.size <= before and frames.kept[0] == [0, 2, 6, 8]
