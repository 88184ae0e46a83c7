"""The live picture of a figure, as fast as it goes.

A figure of heatmaps alone takes no drawing: each is a PNG with one pixel for each entry, which the
browser enlarges, and what is written beside it is text of the page. Of any other figure most stays
from one step to the next: its background is drawn once and kept, and only what may move is drawn on
it. Matplotlib's documentation calls that blitting.
"""

import html
import io
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from ntk.notebook.pictures import base64_of, title_of

HEATMAP = 400  # the width of a heatmap in the page, in pixels, or a little less
DECADES = -2, 4  # of the scale beside a kernel


def live(figure, alt, draw=None):
    "The HTML of a figure, whose words are `alt`; with a PNG by draw(figure) if it has no heatmaps."
    panels = heatmaps_in(figure)
    if panels:
        return heatmaps(panels, alt)
    width, height = (figure.get_size_inches() * figure.dpi).round().astype(int)
    png = (draw or png_of)(figure)
    return picture(png, alt, f'class="ntk-drawn" width="{width}" height="{height}"')


def picture(png, alt, attributes):
    source = f"data:image/png;base64,{base64_of(png)}"
    return f'<img alt="{html.escape(alt)}" {attributes} src="{source}">'


# Heatmaps


def heatmaps_in(figure):
    "[(axes, image), …] if all axes but colour bars hold an image each and no more, else []."
    bars = [image.colorbar.ax for ax in figure.axes for image in ax.images if image.colorbar]
    panels = [ax for ax in figure.axes if ax not in bars and ax.get_visible()]
    if figure.texts or not all(holds_an_image_alone(ax) for ax in panels):
        return []
    return [(ax, ax.images[0]) for ax in panels]


def holds_an_image_alone(ax):
    others = [*ax.lines, *ax.patches, *ax.collections, *ax.texts]
    return len(ax.images) == 1 and not (others or len(ax.get_xticks()) or len(ax.get_yticks()))


def heatmaps(panels, alt):
    "The HTML of all panels, side by side where there is room. The first has the words for all."
    words = [alt, *[""] * (len(panels) - 1)]
    found = [heatmap(ax, image, text) for (ax, image), text in zip(panels, words)]
    return f'<div class="ntk-heatmaps">{"".join(found)}</div>'


def heatmap(ax, image, alt):
    title, below = html.escape(title_of(ax)), html.escape(ax.get_xlabel())
    side = f' title="rows: {html.escape(ax.get_ylabel())}"' if ax.get_ylabel() else ""
    rows, columns = image.get_array().shape[:2]
    width = HEATMAP // columns * columns or HEATMAP  # whole pixels for each entry
    size = f'style="width: {width}px; aspect-ratio: {columns} / {rows}"'
    pixels = picture(png_at_data_size(image), alt, f'class="ntk-pixels"{side} {size}')
    return (f'<figure class="ntk-heatmap"><figcaption>{title}</figcaption>'
            f"<div>{pixels}{colour_scale(image)}</div><small>{below}</small></figure>")


def png_at_data_size(image):
    colours = image.to_rgba(image.get_array(), bytes=True)[..., :3]
    return png_from(Image.fromarray(np.ascontiguousarray(colours)))


def png_from(picture):
    png = io.BytesIO()
    picture.save(png, "png", compress_level=1, compress_type=Image.RLE)
    return png.getvalue()


def colour_scale(image):
    "The colours beside their numbers; and the size of a kernel on a scale that never moves."
    low, high = image.get_clim()
    if image.colorbar is not None:
        low, high = image.colorbar.ax.get_ylim()
    steps = np.linspace(high, low, 64)[:, None]
    colours = np.ascontiguousarray(image.to_rgba(steps, bytes=True)[..., :3])
    values = [high, 0.0, low] if low < 0 < high else [high, low]
    marks = [f'<span style="top: {100 * (high - value) / (high - low):.1f}%">'
             f"{value:.3g}</span>".replace("-", "−") for value in values]
    bar = picture(png_from(Image.fromarray(colours)), "", 'class="ntk-bar"')
    size = size_mark(high) if image.get_label() == "kernel" else ""
    return f'<div class="ntk-scale">{bar}{"".join(marks)}</div>{size}'


def size_mark(largest):
    "A dot at the largest entry, between powers of ten."
    low, high = DECADES
    where = (np.log10(max(largest, 1e-300)) - low) / (high - low)
    decades = [f'<span style="top: {100 * (1 - (k - low) / (high - low)):.0f}%">{10.0**k:g}</span>'
               for k in range(low, high + 1)]
    return (f'<div class="ntk-size" title="the largest entry, {largest:.3g}">{"".join(decades)}'
            f'<i style="top: {100 * (1 - min(max(where, 0), 1)):.1f}%"></i></div>')


# All else


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
    return png_from(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))


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
