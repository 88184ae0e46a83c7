"""What a learner sees and clicks: pictures, sliders, exercises.

Matplotlib and ipywidgets are imported here and nowhere else in `ntk/`, whose other modules do not
import this one. `ntk_helpers` lists what of it notebooks use.
"""
