"""The interface of torch.nn.RNN, with torch.nn.RNN itself as the oracle."""

import functools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import rnn

from implicit_solvers.problems import ernn
from implicit_solvers.problems.ernn import ERNN, LEAKY, Equilibrium, ERNNCell, Leak, Unrolled
from implicit_solvers.problems.ernn.baselines import FastRNN
from tests.problems.ernn.networks import double

# h <- 0 + 1 (phi(U (0 + 1 h_{k-1}) + W x + bias) - 1 (0 + 0 h_{k-1})): an ordinary network
ORDINARY = {
    "mode": Unrolled(steps=1, step_size=1.0, learned=False),
    "leak": Leak(1.0, 0.0),
    "well_posed": ernn.Unconstrained(),
    "learn_gamma": False,
}
# FastRNN with the weights 1 and 0, to rounding, is another
NETWORKS = {"ERNN": (ERNN, ORDINARY), "FastRNN": (FastRNN, {"alpha": 50.0, "beta": -50.0})}
MODES = {
    "parallel": {"mode": Equilibrium(block=6)},
    "sequential": {"mode": Equilibrium(parallel=False)},
    "leaky": {"leak": LEAKY},
    "unrolled": {"mode": Unrolled(steps=2)},
}
lengths_of = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def assert_equal_states(net, theirs, x, h0):
    """Compare outputs, their arrangement, and gradients."""
    packed = isinstance(x, rnn.PackedSequence)
    found = []
    for module in (net, theirs):
        leaf = (x.data if packed else x).clone().requires_grad_()
        output, h_n = module(x._replace(data=leaf) if packed else leaf, hx=h0)
        flat = output.data if packed else output
        slope = torch.autograd.grad(flat.square().sum() + h_n.sin().sum(), leaf)[0]
        found.append((flat, h_n, slope, *(output[1:] if packed else ())))
    assert isinstance(output, rnn.PackedSequence) == packed
    for ours, other in zip(*found, strict=True):
        assert (ours is None) == (other is None)
        if ours is not None:
            torch.testing.assert_close(ours, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    both_ways=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    phi=st.sampled_from(["tanh", "relu"]),
    lengths=lengths_of,
    layout=st.sampled_from(["single", "batch", "packed", "sorted"]),
    with_h0=st.booleans(),
)
@settings(max_examples=60)
def test_an_ordinary_network(
    kind, seed, sizes, both_ways, batch_first, bias, phi, lengths, layout, with_h0
):
    torch.manual_seed(seed)
    given = (*sizes, phi, bias, batch_first, 0.0, both_ways)
    theirs = nn.RNN(*given, dtype=torch.float64)
    make, options = NETWORKS[kind]
    net = make(*given, dtype=torch.float64, **options)
    with torch.no_grad():
        for cell, (W, U, *biases) in zip(net.cells, theirs.all_weights, strict=True):
            cell.recurrent.weight.copy_(U)
            cell.weight_input.copy_(W)
            if bias:
                cell.bias.copy_(sum(biases))
    sequences = [double(n, sizes[0]) for n in lengths]
    if layout == "sorted":
        sequences.sort(key=len, reverse=True)
    if layout in ("packed", "sorted"):
        x = rnn.pack_sequence(sequences, enforce_sorted=layout == "sorted")
    else:
        x = double(len(lengths), lengths[0], sizes[0]) if layout == "batch" else sequences[0]
    batch = () if layout == "single" else (len(lengths),)
    if layout == "batch" and not batch_first:
        x = x.transpose(0, 1)
    h0 = double(len(net.cells), *batch, sizes[1]) if with_h0 else None
    assert_equal_states(net, theirs, x, h0)


@pytest.mark.parametrize("mode", MODES)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    both_ways=st.booleans(),
    lengths=lengths_of,
    seed=st.integers(0, 10**6),
)
@example(sizes=(2, 3, 2), both_ways=True, lengths=[3, 1, 4, 2], seed=0)
@settings(max_examples=8)
def test_packed_padded_and_single_sequences_agree(mode, sizes, both_ways, lengths, seed):
    torch.manual_seed(seed)
    net = ERNN(*sizes, bidirectional=both_ways, dtype=torch.float64, **MODES[mode])
    sequences = [double(n, sizes[0]) for n in lengths]
    h0 = double(len(net.cells), len(lengths), sizes[1])
    packed, h_n = net(rnn.pack_sequence(sequences, enforce_sorted=False), h0)
    assert h_n.shape == h0.shape
    padded, out_lengths = rnn.pad_packed_sequence(packed)
    assert out_lengths.tolist() == lengths
    for k, sequence in enumerate(sequences):
        alone, last = net(sequence, h0[:, k])
        # the solves of a batch and of one lane stop at residuals of 1.8e-12
        torch.testing.assert_close(padded[: len(sequence), k], alone, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(h_n[:, k], last, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_padding_changes_nothing(mode):
    net = ERNN(2, 3, batch_first=True, dtype=torch.float64, **MODES[mode])
    x, lengths, slopes = double(3, 4, 2), torch.tensor([4, 2, 3]), []
    padding = torch.arange(4) >= lengths.unsqueeze(1)
    for filler in (0.0, 1e3):
        filled = torch.where(padding.unsqueeze(-1), filler, x).requires_grad_()
        packed = rnn.pack_padded_sequence(filled, lengths, batch_first=True, enforce_sorted=False)
        output, h_n = net(packed)
        value = output.data.sum() + h_n.square().sum()
        slopes.append((value.detach(), *torch.autograd.grad(value, (filled, *net.parameters()))))
    assert all(torch.equal(one, other) for one, other in zip(*slopes, strict=True))
    assert (slopes[0][1][padding] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_packed_sequences_under_a_transform(mode):
    net = ERNN(2, 3, dtype=torch.float64, **MODES[mode])
    packed, weights = rnn.pack_sequence([double(4, 2), double(2, 2)]), dict(net.named_parameters())
    loss = lambda weights: torch.func.functional_call(net, weights, (packed,))[0].data.sum()
    expected = torch.autograd.grad(loss(weights), list(weights.values()))
    found = torch.func.grad(loss)(weights)
    torch.testing.assert_close([found[name] for name in weights], list(expected))


def test_state_dict_makes_an_equal_network():
    options = {"num_layers": 2, "bidirectional": True, "rank": 2, "leak": LEAKY}
    net, other, x = ERNN(3, 4, **options), ERNN(3, 4, **options), torch.randn(5, 2, 3)
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
    half = ERNN(3, 50, num_layers=2, dropout=0.5, bias=False, **ORDINARY)
    half.cells[1].recurrent.weight.data.zero_()
    half.cells[1].weight_input.data.copy_(torch.eye(50))
    # the second layer shows which of the first one's states it was given
    share = (half(x)[0] == 0).float().mean().item()
    assert 0.4 < share < 0.6
    with pytest.warns(UserWarning, match="num_layers"):
        ERNN(3, 4, dropout=0.5)


class Tagger(nn.Module):
    """A model as people write it around torch.nn.RNN."""

    def __init__(self, kind):
        super().__init__()
        how = {"nonlinearity": "relu", "batch_first": True, "dropout": 0.5, "bidirectional": True}
        self.rnn = kind(input_size=3, hidden_size=4, num_layers=2, **how)
        self.head = nn.Linear(self.rnn.hidden_size * (1 + self.rnn.bidirectional), 2)

    def forward(self, x, hx=None):
        self.rnn.flatten_parameters()
        output, h_n = self.rnn(x, hx=hx)
        if isinstance(output, rnn.PackedSequence):
            output, _ = rnn.pad_packed_sequence(output, batch_first=self.rnn.batch_first)
        return self.head(output), h_n


@pytest.mark.parametrize("mode", [Equilibrium(), Unrolled()])
def test_a_model_written_for_torch_s_network_runs_with_this_one(mode):
    models = [Tagger(kind) for kind in (nn.RNN, functools.partial(ERNN, mode=mode))]
    x, h0 = torch.randn(5, 6, 3), torch.zeros(4, 5, 4)
    packed = rnn.pack_padded_sequence(x, torch.tensor([6, 2, 4, 1, 6]), True, False)
    for call in [(x,), (x, h0), (packed,), (packed, h0), (x[0],), (x[0], h0[:, 0])]:
        outs = []
        for model in models:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            out, h_n = model(*call)
            (out.square().mean() + h_n.square().mean()).backward()
            optimizer.step()
            outs.append((out.shape, h_n.shape, [p.grad is None for p in model.head.parameters()]))
        assert outs[0] == outs[1]
    states = [model.rnn(input=x)[1] for model in models]
    assert states[0].shape == states[1].shape


@pytest.mark.parametrize("lanes", [(), (5,)])
def test_cells_are_called_like_those_of_torch(lanes):
    theirs, ours = nn.RNNCell(3, 4), ERNNCell(3, 4)
    x, h = torch.randn(*lanes, 3), torch.randn(*lanes, 4)
    assert ours(x, h).shape == theirs(x, h).shape
    torch.testing.assert_close(ours(x), ours(x, torch.zeros_like(h)))


@pytest.mark.parametrize("parallel", [True, False])
def test_a_batch_without_sequences(parallel):
    out, h_n = ERNN(2, 3, mode=Equilibrium(parallel=parallel))(torch.zeros(4, 0, 2))
    assert out.shape == (4, 0, 3) and h_n.shape == (1, 0, 3)


def test_modules_say_what_they_are():
    shown = repr(ERNN(3, 4, batch_first=True, mode=Unrolled(steps=2)))
    assert "batch_first=True" in shown and "Unrolled(steps=2" in shown and "3, 4" in shown
