"Products of shares against explicit loops, their labels, and what finds a share that is wrong."

import itertools

import pytest
import torch
from definitions import assert_close, data
from definitions import gradients as gradients_by_definition
from zoo import example

from ntk.gradients import Witness
from ntk.graph import Use
from ntk.layers import prepared
from ntk.shares import (
    COLUMNS,
    Share,
    by_token,
    claims_of,
    dot,
    jacobian_share,
    joined,
    sum_of_shares,
)

OUTPUTS = ["full", "diagonal", "trace"]
WEIGHT = Use("matrix", 0.5, (1, 0), (4, 5), 2)
BIAS = Use("bias", 3.0, (0,), (5,), 0)
TABLE = Use("table", 1.0, (0, 1), (2,), 0)


def reduced(ntk, outputs):
    "Of Θ (N1, N2, O, O), what is asked for."
    if outputs == "full":
        return ntk
    diagonal = torch.stack([ntk[:, :, a, a] for a in range(ntk.shape[2])], 2)
    return diagonal if outputs == "diagonal" else diagonal.sum(2)


def layer_share(n, places=2, uses=None, outputs=2):
    "Of a layer 4 → 5."
    uses = {"w": WEIGHT, "b": BIAS} if uses is None else uses
    return Share("layer", uses, data(n, places, 4), data(n, places, outputs, 5))


def table_share(tokens):
    "Of a table with rows of three numbers; tokens (N, T, at each place)."
    inputs = torch.tensor(tokens)
    return Share("table", {"table": TABLE}, inputs, data(*inputs.shape[:2], 2, 3))


# Products


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("uses, weight, bias", [
    ({"w": WEIGHT, "b": BIAS}, 0.25, 9.0), ({"w": WEIGHT}, 0.25, 0.0),
    ({"w": WEIGHT, "b": BIAS, "c": BIAS._replace(factor=2.0)}, 0.25, 13.0),
])
@pytest.mark.parametrize("places1, places2", [(1, 1), (2, 3)])
def test_a_product_of_layers_is_a_sum_over_pairs_of_places(
        places1, places2, uses, weight, bias, outputs):
    one, two = layer_share(3, places1, uses), layer_share(2, places2, uses)
    expected = torch.zeros(3, 2, 2, 2, dtype=torch.float64)
    for i, j, a, b, s, t in itertools.product(*map(range, (3, 2, 2, 2, places1, places2))):
        inputs = weight * one.inputs[i, s] @ two.inputs[j, t] + bias
        expected[i, j, a, b] += inputs * (one.gradients[i, s, a] @ two.gradients[j, t, b])
    assert_close(sum_of_shares([one], [two], outputs), reduced(expected, outputs))


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("tokens1, tokens2", [
    ([[[0], [1]], [[1], [1]], [[2], [0]]], [[[1], [1]], [[0], [4]]]),  # some of them repeated
    ([[[0], [-1]], [[-1], [-1]]], [[[-1], [0]], [[1], [-1]]]),  # −1 is padding
    ([[[3, 3, 1]], [[0, 2, 3]]], [[[3, 1, 1]], [[5, 5, 5]]]),  # bags
    ([[[0], [1]]], [[[2], [3]]]),  # none in common
])
def test_a_product_of_tables_is_a_sum_over_equal_tokens(tokens1, tokens2, outputs):
    one, two = table_share(tokens1), table_share(tokens2)
    (n1, t1, k1), (n2, t2, k2) = one.inputs.shape, two.inputs.shape
    expected = torch.zeros(n1, n2, 2, 2, dtype=torch.float64)
    for i, s, k, j, t, m, a, b in itertools.product(*map(range, (n1, t1, k1, n2, t2, k2, 2, 2))):
        if one.inputs[i, s, k] == two.inputs[j, t, m] >= 0:
            expected[i, j, a, b] += one.gradients[i, s, a] @ two.gradients[j, t, b]
    expected, found = reduced(expected, outputs), sum_of_shares([one], [two], outputs)
    assert_close(found + torch.zeros_like(expected), expected)


@pytest.mark.parametrize("entries", [1, 13, 1e6])
def test_tokens_may_be_taken_a_few_at_a_time(entries, monkeypatch):
    one, two = (table_share(torch.randint(0, 9, (4, 6, 1)).tolist()) for _ in range(2))
    expected = sum_of_shares([one], [two], "full")
    monkeypatch.setattr("ntk.shares.ENTRIES", entries)
    assert_close(sum_of_shares([one], [two], "full"), expected)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_a_product_of_gradients_is_their_gram_matrix(outputs):
    j1, j2 = data(3, 2, 7), data(4, 2, 7)
    one, two = jacobian_share(["p"], j1), jacobian_share(["p"], j2)
    expected = torch.tensor([[[[a @ b for b in xj] for a in xi] for xj in j2] for xi in j1])
    assert_close(sum_of_shares([one], [two], outputs), reduced(expected, outputs))


def test_shares_of_several_kinds_are_added_up_and_cut_into_rows():
    one = [layer_share(3), table_share([[[0]], [[1]], [[2]]]), jacobian_share(["p"], data(3, 2, 7))]
    two = [layer_share(2), table_share([[[1]], [[0]]]), jacobian_share(["p"], data(2, 2, 7))]
    parts = [sum_of_shares([a], [b], "full") for a, b in zip(one, two)]
    assert_close(sum_of_shares(one, two, "full"), parts[0] + parts[1] + parts[2])
    for rows in (slice(1, None), [1, 2]):
        cut = [share.rows(rows) for share in one]
        assert_close(sum_of_shares(cut, two, "full"), sum_of_shares(one, two, "full")[1:])


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("o", [1, 3])
def test_long_rows_keep_their_digits_in_float32(o, outputs):
    "Positive entries: each sum is far from zero, and its error is that of adding up."
    one, two = torch.rand(2, o, 300_000), torch.rand(3, o, 300_000)
    exact = reduced(torch.einsum("iap,jbp->ijab", one.double(), two.double()), outputs)
    assert dot(one, two, outputs).dtype == torch.float32
    assert_close(dot(one, two, outputs).double(), exact, 1e-6)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("columns", [0, 1, COLUMNS - 1, COLUMNS, COLUMNS + 1])
def test_blocks_of_columns_leave_none_out(columns, outputs):
    one = torch.randn(2, 2, columns, dtype=torch.float64)
    two = one.flip(0)
    expected = torch.einsum("iap,jbp->ijab", one, two)
    assert_close(dot(one, two, outputs) + 1, reduced(expected, outputs) + 1)


def test_gradients_of_the_rows_of_a_table():
    share = table_share([[[3], [1], [3]], [[-1], [0], [4]]])
    d = share.gradients
    found = by_token(share, torch.tensor([1, 3, 6])).view(2, 2, 3, 3)  # example, output, token
    expected = torch.zeros_like(found)
    expected[0, :, 0], expected[0, :, 1] = d[0, 1], d[0, 0] + d[0, 2]
    assert_close(found, expected)
    assert by_token(share, torch.tensor([], dtype=torch.long)).shape == (2, 2, 0)


# Labels, and the shares of several batches


@pytest.mark.parametrize("change", [
    {"factor": -0.5}, {"axes": (0, 1)}, {"role": "filter"}, {"aligned": (5, 4)}, {"argument": 1},
])
def test_a_label_is_the_kind_and_the_uses(change):
    share = layer_share(3)
    assert share.label == layer_share(2, places=1).label
    assert share.label != layer_share(3, uses={"w": WEIGHT._replace(**change), "b": BIAS}).label
    assert share.label != layer_share(3, uses={"b": BIAS}).label
    assert share.label != share._replace(kind="gradients").label


def by_output(*shares):
    "A batch: shares whose gradients are lists over the outputs."
    return [share._replace(gradients=[*share.gradients.unbind(2)]) for share in shares]


@pytest.mark.parametrize("outputs", [1, 3])
def test_batches_are_joined_example_by_example(outputs):
    one, two = ([layer_share(n, outputs=outputs), jacobian_share(["p"], data(n, outputs, 7))]
                for n in (3, 2))
    found = joined([by_output(*one), by_output(*two)])
    for share, a, b in zip(found, one, two):
        assert share.label == a.label
        assert torch.equal(share.gradients, torch.cat([a.gradients, b.gradients]))
        assert share.inputs is None or torch.equal(share.inputs, torch.cat([a.inputs, b.inputs]))
    for share, alone in zip(one, joined([by_output(*one)])):
        assert torch.equal(share.gradients, alone.gradients)


def test_one_output_of_one_batch_is_not_copied():
    [share] = joined([by_output(one := layer_share(3, outputs=1))])
    assert share.gradients.data_ptr() == one.gradients.data_ptr() and share.inputs is one.inputs


def test_batches_of_different_kinds_are_not_joined():
    other = layer_share(2, uses={"w": WEIGHT._replace(factor=2.0), "b": BIAS})
    assert joined([by_output(layer_share(3)), by_output(other)]) is None
    assert joined([by_output(layer_share(3)), []]) is None


# What finds a share that is wrong

KINDS = [("few places", "layer", "layer.weight"), ("few places", "layer", "layer.bias"),
         ("embedding with positions", "table", "lookup.weight"),
         ("embedding bag, mean", "table", "0.weight"), ("many places", "gradients", "layer.weight"),
         ("conv2d: groups", "gradients", "0.weight")]


def share_and_witness(name, parameter):
    model, x, *_ = example(name)
    names = ["layer.weight", parameter] if parameter == "layer.bias" else [parameter]
    [share] = prepared(model, x, "x", names, batch=len(x))
    witness = Witness.of(model, x, names)
    return share, share.rows(witness.rows), witness, dict(model.named_parameters())


def off(share, witness, params, parameter):
    "The error of a claim, next to the size of what was added up."
    claim = claims_of(share, witness, params)[parameter]
    return ((claim.found - claim.expected).norm() / claim.size()).item()


@pytest.mark.parametrize("name, kind, parameter", KINDS)
def test_a_right_share_is_what_the_witness_says(name, kind, parameter):
    share, rows, witness, params = share_and_witness(name, parameter)
    assert share.kind == kind
    assert off(rows, witness, params, parameter) < 1e-12


@pytest.mark.parametrize("name, kind, parameter", KINDS)
def test_wrong_gradients_are_found(name, kind, parameter):
    _, rows, witness, params = share_and_witness(name, parameter)
    for wrong in (1.001 * rows.gradients, rows.gradients.flip(0), rows.gradients.flip(-2),
                  rows.gradients.flip(-1)):
        if not torch.equal(wrong, rows.gradients):
            assert off(rows._replace(gradients=wrong), witness, params, parameter) > 1e-5


@pytest.mark.parametrize("name, kind, parameter", [
    case for case in KINDS if case[1] != "gradients" and case[2] != "layer.bias"])
def test_wrong_inputs_are_found(name, kind, parameter):
    _, rows, witness, params = share_and_witness(name, parameter)
    for wrong in ((rows.inputs + 1) % 7, rows.inputs.flip(0)):
        assert off(rows._replace(inputs=wrong), witness, params, parameter) > 1e-5


@pytest.mark.parametrize("name, parameter", [("few places", "layer.weight"),
                                             ("few places", "layer.bias")])
def test_a_wrong_factor_is_found(name, parameter):
    _, rows, witness, params = share_and_witness(name, parameter)
    for factor in (-1.0, 1.001):
        uses = rows.uses | {parameter: rows.uses[parameter]._replace(factor=factor)}
        assert off(rows._replace(uses=uses), witness, params, parameter) > 1e-5


def test_wrong_axes_are_found():
    _, rows, witness, params = share_and_witness("x @ W @ W", "w")
    assert rows.kind == "layer" and off(rows, witness, params, "w") < 1e-12
    uses = {"w": rows.uses["w"]._replace(axes=(1, 0))}
    assert off(rows._replace(uses=uses), witness, params, "w") > 1e-5


@pytest.mark.parametrize("name, kind, parameter", KINDS)
def test_a_witness_is_the_gradient_of_a_sum(name, kind, parameter):
    _, _, witness, params = share_and_witness(name, parameter)
    model, x, *_ = example(name)
    j = gradients_by_definition(model, x[witness.rows])
    columns = dict(zip(params, j.split([p.numel() for p in params.values()], 2)))
    expected = torch.einsum("io,iop->p", witness.direction, columns[parameter])
    assert_close(witness.gradients[parameter], expected)
