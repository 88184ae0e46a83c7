"From plain values to sliders, boxes and buttons; and one that plays a slider like a film."

import inspect
from contextlib import suppress

import anywidget
import ipywidgets as widgets
import numpy as np
import torch
from traitlets import TraitError

from ntk.checks import require

BUTTONS = 4  # words that find room beside each other


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
    if not control.has_trait("description"):  # it has words of its own
        return control
    control.description = control.description or name.replace("_", " ")
    if control.has_trait("tooltip"):  # ipywidgets 7 has none
        control.tooltip = control.tooltip or f"{control.description}: use the arrow keys, or drag"
    control.style.description_width, control.layout.width = "8em", "min(36em, 95%)"
    if control.has_trait("continuous_update"):
        # a slider lives while it is dragged: what comes too fast for Python, ipywidgets leaves out
        control.continuous_update = "Slider" in type(control).__name__
    return control


def widget_for(spec):
    "A new widget, or the one that `spec` is; None where there is none."
    if isinstance(spec, (np.ndarray, np.generic, torch.Tensor)):
        spec = spec.tolist()
    if isinstance(spec, tuple):
        spec = tuple(map(plain, spec))
    if not isinstance(spec, list):
        return widgets.interactive.widget_from_abbrev(spec)
    return choice_of([plain(entry) for entry in spec])


def plain(entry):
    "Python's number in place of NumPy's or PyTorch's, whose type would stand in the text."
    return entry.item() if getattr(entry, "ndim", None) == 0 else entry


def choice_of(entries):
    "A slider; buttons for a few words, which have no order; None where there is nothing to choose."
    if not entries:
        return None
    require(not any(entry is None for entry in entries), "None is not a value of a slider")
    require(not any(hasattr(entry, "ndim") for entry in entries), "an array is not a value of a "
            "slider: slide over positions, list(range(len(arrays)))")
    labelled = all(isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
                   for entry in entries)
    # else ipywidgets would take any two numbers for a label and its value
    options = entries if labelled else [(str(entry), entry) for entry in entries]
    if len(entries) <= BUTTONS and all(isinstance(entry, str) for entry in entries):
        return widgets.ToggleButtons(options=options)
    slider = widgets.SelectionSlider(options=options)
    slider.add_class("ntk-list")
    return slider


class NamesOfButtons(anywidget.AnyWidget):
    "Invisible: gives the buttons of a Play widget beside it the names that a screen reader says."

    _esm = """
    const names = ["Play or pause", "Stop", "Repeat"];
    function render({el}) {
      el.style.display = "none";
      const name = () => {
        const buttons = el.closest(".widget-hbox")?.querySelectorAll(".widget-play button") ?? [];
        buttons.forEach((button, i) => button.setAttribute("aria-label", names[i]));
        if (!buttons.length) setTimeout(name, 50);  // not in the page yet
      };
      name();
    }
    export default {render};
    """


def player(slider):
    "A button that moves the slider in the browser, from its first value to its last."
    by_place = hasattr(slider, "options")
    first, last, step = (0, len(slider.options) - 1, 1) if by_place else (
        slider.min, slider.max, slider.step)
    require(isinstance(first, int) and isinstance(step, int), "play must name a slider over a list "
            f"or over whole numbers, got one from {first} by {step}")
    play = widgets.Play(min=first, max=last, step=step, interval=120)
    play.layout.width = "auto"
    widgets.jslink((play, "value"), (slider, "index" if by_place else "value"))
    return play


def values_of(slider):
    "All values of a slider, in its order."
    if hasattr(slider, "options"):
        return [value for _, value in slider.options]
    return range(slider.min, slider.max + 1, slider.step)
