"""What an explorer shows on a page without Python: a picture for each point of a grid.

The grid is a product of a few values of each control. It always has the values at the start, both
ends and the explorer's stills.
"""

import io
import math
from itertools import product

from PIL import Image

FRAMES = 48  # of an explorer, at most


class Frames:
    "An explorer's pictures: a WebP and its words for each tuple of places of its controls."

    def __init__(self, explorer):
        self.widgets = explorer.controls
        self.choices = {name: choices(widget) for name, widget in self.widgets.items()}
        self.start = self.places_of(explorer.values)
        states = [self.start, *map(self.places_of, explorer.stills.values())]
        self.needed = [{0, len(offered) - 1, *places}
                       for offered, places in zip(self.choices.values(), zip(*states))]
        everything = [[*range(len(offered))] for offered in self.choices.values()]
        self.kept = grid(everything, self.needed, FRAMES)
        self.is_thinned = self.kept != everything
        self.play = played(explorer)
        self.drawn = {places: draw(explorer, self.values_at(places))
                      for places in product(*self.kept)}

    def places_of(self, values):
        return tuple([value for _, value in offered].index(values[name])
                     for name, offered in self.choices.items())

    def values_at(self, places):
        return {name: offered[place][1]
                for place, (name, offered) in zip(places, self.choices.items())}

    @property
    def size(self):
        "Bytes of the pictures and of their words."
        return sum(len(webp) + len(alt.encode())
                   for webp, alt in (self.drawn[places] for places in product(*self.kept)))

    def thin(self):
        "Keep some of them; False where all are needed."
        before = self.kept
        self.kept = grid(before, self.needed, int(0.8 * math.prod(map(len, before))))
        self.is_thinned = True
        return self.kept != before

    def written(self, stem):
        "Each picture as a file, `stem` and its place; what the template explorer.html.j2 takes."
        words = {}
        for place in product(*(range(len(kept)) for kept in self.kept)):
            webp, alt = self.drawn[tuple(kept[k] for kept, k in zip(self.kept, place))]
            key = "-".join(map(str, place))
            stem.with_name(f"{stem.name}{key}.webp").write_bytes(webp)
            words[key] = alt
        start = [kept.index(place) for kept, place in zip(self.kept, self.start)]
        controls = [{"name": widget.description, "kind": kind_of(widget), "start": at,
                     "labels": [offered[place][0] for place in kept], "play": name == self.play}
                    for (name, widget), offered, kept, at
                    in zip(self.widgets.items(), self.choices.values(), self.kept, start)]
        width, height = Image.open(io.BytesIO(self.drawn[self.start][0])).size
        return {"controls": controls, "words": words, "first": "-".join(map(str, start)),
                "size": (math.ceil(width / 2), math.ceil(height / 2)),  # sharp: two for one
                "is_thinned": self.is_thinned}


def choices(control):
    "All that a control offers: [(label, value), …] in its order."
    if hasattr(control, "options"):
        return [*control.options]
    if isinstance(control.value, bool):
        return [("off", False), ("on", True)]
    count = round((control.max - control.min) / control.step)
    values = [round(control.min + k * control.step, 9) for k in range(count + 1)]
    return [(format(value, control.readout_format), value) for value in values]


def kind_of(control):
    "What stands for it in a page."
    if isinstance(control.value, bool):
        return "checkbox"
    return "range" if "Slider" in type(control).__name__ else "radio"


def played(explorer):
    "The name of the control that has a button beside it, or None."
    beside = [widget for row in explorer.children for widget in getattr(row, "children", ())]
    return next((name for name, widget in explorer.controls.items() if widget in beside), None)


def grid(places, needed, frames):
    "For each control the needed places and more, as evenly, as the product of all has room."
    counts = [*map(len, needed)]
    while True:
        rooms = [k for k, offered in enumerate(places) if counts[k] < len(offered)
                 and math.prod(counts) // counts[k] * (counts[k] + 1) <= frames]
        if not rooms:
            return [thinned(*each) for each in zip(places, needed, counts)]
        counts[min(rooms, key=lambda k: counts[k])] += 1


def thinned(places, needed, count):
    "So many places: the needed ones, and then always the middle of the widest gap."
    kept = sorted(needed)
    while len(kept) < count:
        gaps = [[place for place in places if low < place < high]
                for low, high in zip(kept, kept[1:])]
        gap = max(gaps, key=len)
        kept = sorted([*kept, gap[len(gap) // 2]])
    return kept


def draw(explorer, values):
    drawn, alt, _ = explorer._drawn(values)
    return compact(sharp_png(drawn)), alt


def sharp_png(drawn):
    "Of a figure or a view, two pixels for one of the page."
    if hasattr(drawn, "png"):
        return drawn.png
    png = io.BytesIO()
    drawn.savefig(png, format="png", dpi=2 * drawn.dpi)
    return png.getvalue()


def compact(png):
    """A WebP of few colours, pixel for pixel, and smaller than a PNG of these would be.

    They are chosen by how far apart they are: a colour bar has few pixels of each.
    """
    few = Image.open(io.BytesIO(png)).convert("RGB").quantize(
        method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    webp = io.BytesIO()
    few.convert("RGB").save(webp, "webp", lossless=True, quality=80, method=2)
    return webp.getvalue()
