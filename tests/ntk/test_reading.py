"""cosine, alignment and spectrum against NumPy, formulas written out, and gradients themselves."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from definitions import assert_close, data, gradients, mlp

from ntk import alignment, compute_ntk, cosine, spectrum


def psd(n=6, rank=9):
    factor = np.random.default_rng(0).normal(size=(n, rank))
    return torch.from_numpy(factor @ factor.T)


def cosine_by_numpy(kernel):
    kernel = np.asarray(kernel)
    norms = np.sqrt(np.diag(kernel))
    return kernel / np.outer(norms, norms)


def alignment_by_formula(kernel, labels):
    "Cortes et al. 2012, definition 4, with the centring matrix H = I − 11ᵀ/n."
    kernel, labels = np.asarray(kernel), np.asarray(labels)
    n = len(kernel)
    if labels.ndim == 2:
        target = labels @ labels.T
    else:
        target = np.equal.outer(labels, labels).astype(float)
    h = np.eye(n) - np.ones((n, n)) / n
    k, t = h @ kernel @ h, h @ target @ h
    return np.trace(k.T @ t) / (np.linalg.norm(k) * np.linalg.norm(t))


# What counts as a kernel


def alignment_with_two_classes(kernel):
    return alignment(kernel, [0, 1] * 3)


@pytest.mark.parametrize("reader", [cosine, alignment_with_two_classes, spectrum])
@pytest.mark.parametrize("kernel, message", [
    (psd()[:, :5], r"kernel must be square, got shape \(6, 5\)"),
    (psd() + torch.triu(torch.ones(6, 6)), "kernel must be symmetric"),
    (psd() * math.nan, "kernel must be finite"),
    (psd() / 0, "kernel must be finite"),
    (psd()[0], r"kernel must have two axes.*got shape \(6,\)"),
    (psd()[:0, :0], r"kernel must have two axes.*got shape \(0, 0\)"),
    (psd()[:, :, None, None],
     r"kernel must have two axes.*got shape \(6, 6, 1, 1\); choose .*kernel\[:, :, a, b\]"),
    (torch.tensor([[2, 1j], [-1j, 2]]), "kernel must be real, got torch.complex64"),
    (psd().numpy() + 0j, "kernel must be real, got torch.complex128"),
    ([[1.0, 1j], [-1j, 1.0]], "kernel must be real, got torch.complex128"),
    ([[1.0, 2.0], [3.0]], "kernel must be a tensor, an array or a list of numbers, got list"),
])
def test_a_kernel_must_be_square_symmetric_and_finite(kernel, message, reader):
    with pytest.raises(ValueError, match=message):
        reader(kernel)


@pytest.mark.parametrize("dtype, error, refused", [
    (torch.float64, 1e-9, False), (torch.float64, 1e-7, True),
    (torch.float32, 1e-5, False), (torch.float32, 1e-3, True),
])
def test_a_kernel_is_symmetric_to_the_precision_of_its_dtype(dtype, error, refused):
    kernel = torch.ones(3, 3, dtype=dtype)
    kernel[0, 1] += error
    if refused:
        with pytest.raises(ValueError, match="kernel must be symmetric"):
            cosine(kernel)
    else:
        assert_close(cosine(kernel), np.ones((3, 3)), 2 * error)


@pytest.mark.parametrize("nothing", [None, "kernel", {"a": 1}, [["a"]]])
def test_what_is_no_kernel_is_refused_by_name(nothing):
    with pytest.raises(TypeError, match="kernel must be a tensor, an array or a list of numbers"):
        cosine(nothing)


def as_rows(kernel):
    return list(kernel)


def backwards(kernel):
    "An array with negative strides."
    return kernel.flip(0, 1).numpy()[::-1, ::-1]


def with_a_graph(kernel):
    return kernel.clone().requires_grad_()


@pytest.mark.parametrize("given_as", [torch.clone, torch.Tensor.numpy, torch.Tensor.tolist,
                                      torch.Tensor.float, with_a_graph, as_rows, backwards])
def test_a_kernel_may_be_a_tensor_an_array_or_a_list(given_as):
    kernel, labels = psd(), [0, 1] * 3
    given = given_as(kernel)
    assert_close(cosine(given), cosine_by_numpy(kernel), 1e-6)
    assert_close(spectrum(given).eigenvalues, np.linalg.eigvalsh(kernel)[::-1], 1e-6)
    assert alignment(given, labels) == pytest.approx(alignment_by_formula(kernel, labels), abs=1e-6)


# Cosine


def test_cosine_is_that_of_the_gradients():
    model, x = mlp(4, 5), data()
    grads = gradients(model, x).squeeze(1)
    expected = F.cosine_similarity(grads[:, None], grads[None], dim=2)
    assert_close(cosine(compute_ntk(model, x)), expected, 1e-12)


def test_cosine_has_a_diagonal_of_ones_and_forgets_norms():
    kernel, lengths = psd(), torch.tensor([1, 10, 0.1, 2, 3, 1e-3], dtype=torch.float64)
    assert_close(cosine(kernel).diagonal(), torch.ones(6), 1e-14)
    assert_close(cosine(kernel * lengths[:, None] * lengths), cosine_by_numpy(kernel), 1e-12)


def test_lists_are_read_in_float64():
    numbers = [[1 / 3, 0.1], [0.1, 1 / 7]]
    assert spectrum(numbers).eigenvalues.tolist() == spectrum(np.array(numbers))[0].tolist()
    assert cosine(numbers).dtype == torch.float64
    assert cosine(numbers)[0, 1].item() == pytest.approx(0.1 * 21**0.5, rel=1e-14)
    assert cosine([list(row) for row in torch.eye(2)]).dtype == torch.float32  # those of tensors
    expected = alignment(psd(), np.array([0.1, 0.2, 0.7, 0.4, 0.5, 0.6]))
    assert alignment(psd().tolist(), [0.1, 0.2, 0.7, 0.4, 0.5, 0.6]) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_cosines_are_within_one_and_their_diagonal_is_exactly_one(seed, dtype):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(40, 6)) * 10 ** rng.uniform(-1, 1, size=(40, 1))
    features[20:] = -2 * features[:20]  # antiparallel, and as parallel as rounding allows
    kernel = torch.from_numpy(features @ features.T).to(dtype)
    kernel[7], kernel[:, 7] = 0, 0
    got = cosine(kernel)
    assert got.dtype == dtype and not got.double().acos().isnan().any()
    assert got.max() == 1 and got.min() >= -1
    expected = torch.ones(40)
    expected[7] = 0
    assert got.diagonal().tolist() == expected.tolist()


def test_the_angles_of_a_float32_kernel_have_no_nan():
    angles = cosine(compute_ntk(mlp(4, 8).float(), data(20).float())).acos()
    assert angles.diagonal().eq(0).all() and angles.isfinite().all()


def test_cosine_of_a_gradient_of_length_zero_is_zero():
    got = cosine(torch.tensor([[4.0, 0, 6], [0, 0, 0], [6, 0, 16]]))
    assert got.tolist() == [[1, 0, 0.75], [0, 0, 0], [0.75, 0, 1]]


def test_cosine_refuses_a_negative_diagonal():
    with pytest.raises(ValueError, match="negative diagonal entry, got -1"):
        cosine(torch.diag(torch.tensor([1.0, -1.0])))


# Alignment


@pytest.mark.parametrize("labels", [
    [0, 1, 2, 0, 1, 2],
    [5, 5, -3, 5, -3, 7],
    [True, False, True, True, False, False],
])
@pytest.mark.parametrize("given_as", [list, tuple, np.array, torch.tensor])
def test_alignment_with_classes_follows_the_formula(labels, given_as):
    expected = alignment_by_formula(psd(), labels)
    assert alignment(psd(), given_as(labels)) == pytest.approx(expected, abs=1e-12)


def test_alignment_with_targets_follows_the_formula():
    targets = np.random.default_rng(1).normal(size=(6, 2))
    expected = alignment_by_formula(psd(), targets)
    assert alignment(psd(), targets) == pytest.approx(expected, abs=1e-12)
    one = targets[:, :1]
    expected = alignment_by_formula(psd(), one)
    assert alignment(psd(), one) == pytest.approx(expected, abs=1e-12)
    assert alignment(psd(), one[:, 0]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("labels", [
    [0, 1, 1, 0, 1, 1],
    [False, True, True, False, True, True],
    [0.0, 1, 1, 0, 1, 1],
])
def test_alignment_with_two_classes_is_that_with_plus_and_minus_one(labels):
    signs = np.array([[-1.0], [1], [1], [-1], [1], [1]])
    expected = alignment_by_formula(psd(), signs)
    assert alignment(psd(), labels) == pytest.approx(expected, abs=1e-12)


def test_alignment_is_one_for_the_labels_own_kernel():
    y = torch.tensor([1.0, -1, -1, 1, 1])
    assert alignment(torch.outer(y, y), y) == pytest.approx(1)
    assert alignment(-torch.outer(y, y), y) == pytest.approx(-1)


@pytest.mark.parametrize("change", [lambda k: k + 100, lambda k: 1e-3 * k, lambda k: 7 * k - 3])
def test_alignment_ignores_offset_and_scale(change):
    labels = [0, 1, 1, 0, 2, 2]
    expected = alignment_by_formula(psd(), labels)
    assert alignment(change(psd()), labels) == pytest.approx(expected, abs=1e-10)


def test_alignment_ignores_the_order_of_examples():
    labels, order = np.array([0, 1, 1, 0, 2, 2]), [3, 1, 5, 0, 2, 4]
    expected = alignment_by_formula(psd(), labels)
    got = alignment(psd()[order][:, order], labels[order])
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kernel, labels, message", [
    (psd(), [0, 1, 0], r"labels must have shape \(6,\).*got \(3,\)"),
    (psd(), 1, r"labels must have shape \(6,\).*got \(\)"),
    (psd(), [[0, 1]] * 6,
     r"labels must have shape \(6,\), one per row of the kernel, got \(6, 2\)"),
    (psd(), np.zeros((6, 1, 1)), r"labels must have shape \(6,\).*got \(6, 1, 1\)"),
    (psd(), [0.0, 1, 2, 3, 4, math.nan], "labels must be finite"),
    (psd(), [1j] * 6, "labels must be real"),
    (psd(), [[0, 1], [1]], "labels must be a tensor, an array or a list of numbers"),
    (psd(), [1] * 6, "labels must not be constant"),
    (psd(), [0.1] * 6, "labels must not be constant"),
    (psd(9), [0.7] * 9, "labels must not be constant"),  # centred, 1e-16 of them is left
    (torch.full((6, 6), 0.1), [0, 1] * 3, "kernel must not be constant"),
    (torch.zeros(6, 6), [0, 1] * 3, "kernel must not be constant"),
])
def test_alignment_says_what_is_wrong(kernel, labels, message):
    with pytest.raises(ValueError, match=message):
        alignment(kernel, labels)


# Spectrum


def test_spectrum_is_numpys_from_the_largest_down():
    kernel = psd()
    values, vectors = spectrum(kernel)
    assert_close(values, np.linalg.eigvalsh(kernel)[::-1], 1e-12)
    assert (values.diff() <= 0).all()
    assert_close(kernel @ vectors, vectors * values, 1e-12)  # K v = λ v, column by column
    assert_close(vectors.T @ vectors, torch.eye(6), 1e-12)
    assert_close(vectors @ torch.diag(values) @ vectors.T, kernel, 1e-12)


def test_spectrum_has_names_and_fixed_signs():
    result = spectrum(psd())
    assert result.eigenvalues is result[0] and result.eigenvectors is result[1]
    largest = result.eigenvectors.abs().argmax(0)
    assert (result.eigenvectors[largest, torch.arange(6)] > 0).all()


def test_spectrum_of_a_float32_kernel_is_computed_in_float64():
    kernel = psd().float()
    values = spectrum(kernel).eigenvalues
    assert values.dtype == torch.float64
    assert_close(values, np.linalg.eigvalsh(kernel.double())[::-1], 1e-12)


@pytest.mark.parametrize("activation, rank", [("tanh", 89), ("relu", 85)])
def test_rank_is_at_most_the_number_of_parameters(activation, rank):
    # relu has four fewer: scaling a unit's incoming weights up and its outgoing weight down changes
    # nothing, one direction for each of its four units to which every gradient is orthogonal
    model = mlp(20, 4, activation=activation)
    assert sum(p.numel() for p in model.parameters()) == 89
    values = spectrum(compute_ntk(model, data(100, 20))).eigenvalues
    assert (values > 1e-12 * values[0]).sum() == rank
