"""A kernel that answers: what the page gets, and what stands for it without a page.

How it answers to pointer and keys is tested in a browser, in tests/test_browser.py.
"""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ntk.notebook.pictures import GLOW
from ntk.notebook.views import KernelView

KERNEL = torch.tensor([[4.0, 1.0, -2.0], [1.0, 3.0, 0.5], [-2.0, 0.5, 2.0]])
IMAGES = np.arange(3 * 2 * 4).reshape(3, 2, 4)


def entries(view):
    return np.frombuffer(view._entries, np.float32).reshape(view._shape)


def test_the_page_gets_entries_colours_names_and_the_largest():
    view = KernelView(KERNEL, labels=[7, 8, 9], title="three")
    assert np.array_equal(entries(view), KERNEL) and view._largest == 4
    colours = np.frombuffer(view._colours, np.uint8).reshape(-1, 3)
    assert np.array_equal(colours, GLOW(np.arange(GLOW.N), bytes=True)[:, :3])
    assert view._names == ["example 0 (7)", "example 1 (8)", "example 2 (9)"]
    assert view._words == ["7", "8", "9"] and view.title == "three"


@pytest.mark.parametrize("given_as", [np.array, torch.tensor, list])
def test_an_order_sorts_rows_inputs_and_labels_alike(given_as):
    view = KernelView(KERNEL.numpy(), inputs=IMAGES, labels=given_as([7, 8, 9]),
                      order=given_as([2, 0, 1]))
    assert np.array_equal(entries(view), KERNEL[[2, 0, 1]][:, [2, 0, 1]])
    assert view._names[0] == "example 2 (9)" and view._image_shape == [2, 4]
    images = np.frombuffer(view._images, np.uint8).reshape(3, 2, 4)
    assert np.array_equal(images[0], (255 * IMAGES[2] / 23).astype(np.uint8))


def test_inputs_are_images_arrows_texts_or_numbers():
    arrows = KernelView(KERNEL, inputs=torch.tensor([[2.0, 0], [0, 1], [1, 1]]))
    assert arrows._arrows[0] == [1, 0] and arrows._arrows[1] == [0, 0.5]
    texts = KernelView(KERNEL, inputs=["red", "green", "blue"])
    assert texts._names == ["example 0: red", "example 1: green", "example 2: blue"]
    numbers = KernelView(KERNEL, inputs=torch.arange(12.0).view(3, 4))
    assert numbers._names[0] == "example 0: (0, 1, 2, …)"


def test_another_kernel_takes_its_place():
    view = KernelView(KERNEL, order=[2, 1, 0], largest=5)
    view.kernel = 10 * KERNEL
    assert np.array_equal(entries(view), 10 * KERNEL.flip(0, 1)) and view._largest == 5
    assert torch.equal(view.kernel, 10 * KERNEL.flip(0, 1).double())
    with pytest.raises(ValueError, match="the kernel must have 3 rows, got 2"):
        view.kernel = torch.eye(2)


def test_a_reader_without_a_page_gets_a_picture_and_words():
    view = KernelView(KERNEL, inputs=IMAGES, sheet=True, title="three", pinned=[1, 1])
    bundle, metadata = view._repr_mimebundle_()
    assert bundle["text/plain"] == repr(view) == "KernelView(3 × 3)"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    image = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert image.width > image.height > 600
    assert metadata["image/png"]["alt"] == "three: KernelView(3 × 3)"
    view.alt = "Three inputs."
    assert view._repr_mimebundle_()[1]["image/png"]["alt"] == "Three inputs."


@pytest.mark.parametrize("kernel, options, message", [
    (torch.ones(2, 3), {}, r"must be square, got shape \(2, 3\)"),
    (torch.ones(3), {}, "must have two axes"),
    (KERNEL * np.nan, {}, "must be finite"),
    (KERNEL, {"labels": [1, 2]}, "labels must be 3, one for each example, got 2"),
    (KERNEL, {"inputs": np.ones((4, 2, 2))}, "inputs must be 3, one for each example, got 4"),
    (KERNEL, {"order": [0, 1, 1]}, "order must be a permutation"),
    (KERNEL, {"sheet": True}, "sheet needs inputs that are images"),
    (KERNEL, {"sheet": True, "inputs": ["a", "b", "c"]}, "sheet needs inputs that are images"),
])
def test_what_does_not_fit_is_refused(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        KernelView(kernel, **options)


def test_an_array_of_zeros_is_shown():
    assert KernelView(torch.zeros(2, 2))._largest == 1.0 and KernelView(torch.zeros(2, 2)).png
