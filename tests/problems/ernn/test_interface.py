"""The interface of torch.nn.RNN, with torch.nn.RNN itself as the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

from implicit_solvers.problems.ernn import (
    ERNN,
    LEAKY,
    Equilibrium,
    ERNNCell,
    Leak,
    Unconstrained,
    Unrolled,
)
from implicit_solvers.problems.ernn.time_steps import TimeSteps

# h <- 0 + 1 (phi(U (0 + 1 h_{k-1}) + W x + bias) - 1 (0 + 0 h_{k-1})): an ordinary network
ORDINARY = {
    "mode": Unrolled(steps=1, step_size=1.0, learned=False),
    "leak": Leak(1.0, 0.0),
    "well_posed": Unconstrained(),
    "learn_gamma": False,
}

STRUCTURES = {
    "inputs": st.integers(1, 3),
    "hidden": st.integers(1, 3),
    "layers": st.integers(1, 2),
    "both_ways": st.booleans(),
    "batch_first": st.booleans(),
    "bias": st.booleans(),
    "phi": st.sampled_from(["tanh", "relu"]),
}


def pair(inputs, hidden, layers, both_ways, batch_first, bias, phi):
    """An nn.RNN, and an ERNN that is set to be the same."""
    theirs = nn.RNN(
        inputs,
        hidden,
        layers,
        nonlinearity=phi,
        bias=bias,
        batch_first=batch_first,
        bidirectional=both_ways,
        dtype=torch.float64,
    )
    ours = ERNN(
        inputs,
        hidden,
        layers,
        batch_first=batch_first,
        bidirectional=both_ways,
        bias=bias,
        nonlinearity=getattr(torch, phi),
        dtype=torch.float64,
        **ORDINARY,
    )
    names = [f"l{k}{way}" for k in range(layers) for way in ("", "_reverse")[: 1 + both_ways]]
    with torch.no_grad():
        for cell, name in zip(ours.cells, names, strict=True):
            cell.recurrent.weight.copy_(getattr(theirs, f"weight_hh_{name}"))
            cell.weight_input.copy_(getattr(theirs, f"weight_ih_{name}"))
            if bias:
                one, other = (getattr(theirs, f"bias_{k}h_{name}") for k in "ih")
                cell.bias.copy_(one + other)
    return ours, theirs


def same(ours, theirs, x, h0=None):
    """Assert that outputs and gradients agree."""
    results = []
    for net in (ours, theirs):
        data = x.data if isinstance(x, PackedSequence) else x
        leaf = data.clone().requires_grad_()
        output, h_n = net(x._replace(data=leaf) if isinstance(x, PackedSequence) else leaf, h0)
        flat = output.data if isinstance(output, PackedSequence) else output
        slope = torch.autograd.grad(flat.square().sum() + h_n.sin().sum(), leaf)[0]
        results.append((output, h_n, slope))
    (a, b, c), (d, e, f) = results
    assert type(a) is type(d)
    if isinstance(a, PackedSequence):
        for place in (1, 2, 3):
            assert (a[place] is None) == (d[place] is None)
            assert a[place] is None or torch.equal(a[place], d[place])
        a, d = a.data, d.data
    for mine, other in ((a, d), (b, e), (c, f)):
        assert mine.shape == other.shape
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@given(
    **STRUCTURES,
    seed=st.integers(0, 10**6),
    time=st.integers(1, 4),
    batch=st.one_of(st.none(), st.integers(1, 3)),
    with_h0=st.booleans(),
)
def test_values_and_gradients_of_an_ordinary_network(seed, time, batch, with_h0, **structure):
    torch.manual_seed(seed)
    ours, theirs = pair(**structure)
    shape = (time,) if batch is None else (time, batch)
    if structure["batch_first"] and batch is not None:
        shape = shape[::-1]
    x = torch.randn(*shape, structure["inputs"], dtype=torch.float64)
    h0 = None
    if with_h0:
        size = (batch,) if batch is not None else ()
        h0 = torch.randn(len(ours.cells), *size, structure["hidden"], dtype=torch.float64)
    same(ours, theirs, x, h0)


@given(
    **STRUCTURES,
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    with_h0=st.booleans(),
)
def test_packed_sequences_of_an_ordinary_network(seed, lengths, with_h0, **structure):
    torch.manual_seed(seed)
    ours, theirs = pair(**structure)
    sequences = [torch.randn(n, structure["inputs"], dtype=torch.float64) for n in lengths]
    h0 = None
    if with_h0:
        shape = (len(ours.cells), len(lengths), structure["hidden"])
        h0 = torch.randn(*shape, dtype=torch.float64)
    same(ours, theirs, pack_sequence(sequences, enforce_sorted=False), h0)
    ranked = sorted(sequences, key=len, reverse=True)
    same(ours, theirs, pack_sequence(ranked), h0)


MODES = {
    "parallel": {"mode": Equilibrium(block=3)},
    "sequential": {"mode": Equilibrium(parallel=False)},
    "leaky": {"leak": LEAKY},
    "unrolled": {"mode": Unrolled(steps=2)},
}


@pytest.mark.parametrize("mode", MODES)
@given(
    inputs=st.integers(1, 3),
    hidden=st.integers(1, 3),
    layers=st.integers(1, 2),
    both_ways=st.booleans(),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=8)
def test_packed_padded_and_single_sequences_agree(
    mode, inputs, hidden, layers, both_ways, lengths, seed
):
    torch.manual_seed(seed)
    net = ERNN(inputs, hidden, layers, bidirectional=both_ways, dtype=torch.float64, **MODES[mode])
    sequences = [torch.randn(n, inputs, dtype=torch.float64) for n in lengths]
    h0 = torch.randn(len(net.cells), len(lengths), hidden, dtype=torch.float64)
    packed, h_n = net(pack_sequence(sequences, enforce_sorted=False), h0)
    assert h_n.shape == h0.shape
    padded, out_lengths = pad_packed_sequence(packed)
    assert out_lengths.tolist() == lengths
    for k, sequence in enumerate(sequences):
        alone, last = net(sequence, h0[:, k])
        # the solves of a batch and of one lane stop at residuals of 1.8e-12
        torch.testing.assert_close(padded[: len(sequence), k], alone, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(h_n[:, k], last, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_padding_changes_nothing(mode):
    net = ERNN(2, 3, batch_first=True, dtype=torch.float64, **MODES[mode])
    lengths = [4, 2, 3]
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    slopes = []
    for filler in (0.0, 1e3):
        filled = x.clone()
        for row, n in enumerate(lengths):
            filled[row, n:] = filler
        filled.requires_grad_()
        packed = pack_padded_sequence(filled, lengths, batch_first=True, enforce_sorted=False)
        output, h_n = net(packed)
        value = output.data.sum() + h_n.square().sum()
        slopes.append((value.detach(), *torch.autograd.grad(value, (filled, *net.parameters()))))
    for one, other in zip(*slopes, strict=True):
        assert torch.equal(one, other)
    assert (slopes[0][1][1, 2:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_shapes_of_every_mode_are_those_of_torch(mode):
    for layers, both_ways, first in ((1, False, True), (2, True, False)):
        theirs = nn.RNN(3, 4, layers, bidirectional=both_ways, batch_first=first)
        ours = ERNN(3, 4, layers, bidirectional=both_ways, batch_first=first, **MODES[mode])
        for shape in ((5, 2, 3), (5, 3)):
            x = torch.randn(shape)
            assert [t.shape for t in ours(x)] == [t.shape for t in theirs(x)]


def test_state_dict_makes_an_equal_network():
    options = {"num_layers": 2, "bidirectional": True, "rank": 2, "leak": LEAKY}
    torch.manual_seed(0)
    net = ERNN(3, 4, **options)
    torch.manual_seed(1)
    other = ERNN(3, 4, **options)
    x = torch.randn(5, 2, 3)
    assert not torch.equal(net(x)[0], other(x)[0])
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x)[0], other(x)[0])
    assert {"cells.0.log_gamma", "cells.3.recurrent.weight_left"} < set(net.state_dict())


def test_dropout_acts_between_layers_in_training_only():
    net = ERNN(3, 4, num_layers=2, dropout=1.0)
    x = torch.randn(5, 2, 3)
    whole, _ = ERNN(3, 4, num_layers=2), net.eval()
    whole.load_state_dict(net.state_dict())
    assert torch.equal(net(x)[0], whole(x)[0])
    net.train()
    # the second layer reads zeros: its states depend on the input no more
    assert torch.equal(net(x)[0], net(2 * x)[0])
    half = ERNN(3, 50, num_layers=2, dropout=0.5)
    second = half.cells[1]
    seen = []
    original = second.drive
    second.drive = lambda rows, *more: seen.append(rows) or original(rows, *more)
    half(x)
    share = (seen[0] == 0).float().mean().item()
    assert 0.4 < share < 0.6
    with pytest.warns(UserWarning, match="num_layers"):
        ERNN(3, 4, dropout=0.5)


def test_cells_are_called_like_those_of_torch():
    theirs, ours = nn.RNNCell(3, 4), ERNNCell(3, 4)
    for shape in ((3,), (5, 3)):
        x = torch.randn(shape)
        h = torch.randn(*shape[:-1], 4)
        assert ours(x).shape == theirs(x).shape
        assert ours(x, h).shape == theirs(x, h).shape
        torch.testing.assert_close(ours(x), ours(x, torch.zeros_like(h)))


def test_a_network_is_its_cell_repeated():
    net = ERNN(2, 3, leak=LEAKY, dtype=torch.float64)
    x, h = torch.randn(4, 5, 2, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    output, h_n = net(x)
    for k in range(4):
        h = net.cells[0](x[k], h)
        torch.testing.assert_close(output[k], h, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(h_n[0], h, rtol=1e-9, atol=1e-9)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), most=st.integers(1, 9))
def test_time_steps_against_torch_s_packing(lengths, most):
    ranked = sorted(lengths, reverse=True)
    sequences = [torch.arange(n) + 10 * k + 1 for k, n in enumerate(ranked)]
    packed = pack_sequence(sequences)
    steps = TimeSteps(tuple(packed.batch_sizes.tolist()))
    grid = pad_packed_sequence(packed)[0]
    assert torch.equal(steps.grid(packed.data), grid)
    assert torch.equal(steps.rows(grid), packed.data)
    assert steps.last(packed.data).tolist() == [int(s[-1]) for s in sequences]
    backwards = pack_sequence([s.flip(0) for s in sequences]).data
    assert torch.equal(steps.reverse(packed.data), backwards)
    assert torch.equal(steps.reverse(backwards), packed.data)
    blocks = steps.blocks(most)
    assert [size for block in blocks for size in block.sizes] == list(steps.sizes)
    assert all(sum(b.sizes) <= most or len(b.sizes) == 1 for b in blocks)
    assert np.array_equal([len(p) for p in steps.split(packed.data)], list(steps.sizes))


def test_modules_say_what_they_are():
    shown = repr(ERNN(3, 4, batch_first=True, mode=Unrolled(steps=2)))
    assert "batch_first=True" in shown and "Unrolled(steps=2" in shown and "3, 4" in shown
