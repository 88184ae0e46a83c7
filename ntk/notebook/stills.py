"""What a widget leaves in a notebook for those who read it without Python: pictures and words."""

import io
import math

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from ntk.notebook.pictures import base64_of, sharp_png

WIDTH, GAP, LINE = 1680, 40, 44  # of a strip, in pixels, two for one of the page


def stored(widget, text, png=None, alt=""):
    "A widget's live view and what stands for it elsewhere: the MIME bundle and its metadata."
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    data = {"application/vnd.jupyter.widget-view+json": view, "text/plain": text}
    if png is None:
        return data, {}
    width, height = (math.ceil(side / 2) for side in Image.open(io.BytesIO(png)).size)
    data["image/png"] = base64_of(png)
    return data, {"image/png": {"alt": alt, "width": width, "height": height}}


def picture_of(drawn):
    "The sharp PNG of a figure or of a view."
    return drawn.png if hasattr(drawn, "png") else sharp_png(drawn)


def captions(stills):
    "What tells each still, a dict of values, from the others; all of them where nothing does."
    names = [name for name in next(iter(stills), ())
             if len({repr(still[name]) for still in stills}) > 1]
    return [", ".join(f"{name.replace('_', ' ')} {still[name]}" for name in names or still)
            for still in stills]


def strip(pngs, words):
    "One PNG of several, each under its caption: up to three in a row."
    pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
    wide = pictures[0].width
    in_a_row = min(len(pictures), 3 if wide < WIDTH / 2 else 2 if wide < 0.8 * WIDTH else 1)
    side = min(max(picture.width for picture in pictures), WIDTH // in_a_row - GAP)
    pictures = [picture.resize((side, round(picture.height * side / picture.width)))
                if picture.width > side else picture for picture in pictures]
    height = max(picture.height for picture in pictures) + LINE + GAP
    rows = math.ceil(len(pictures) / in_a_row)
    whole = Image.new("RGB", (in_a_row * (side + GAP) - GAP, rows * height - GAP), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.truetype(
        f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 24)
    for i, (picture, caption) in enumerate(zip(pictures, words)):
        left, top = i % in_a_row * (side + GAP), i // in_a_row * height
        pen.text((left + 4, top + 6), caption, fill="black", font=font)
        whole.paste(picture, (left, top + LINE))
    png = io.BytesIO()
    whole.save(png, "png")
    return png.getvalue()
