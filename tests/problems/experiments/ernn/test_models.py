"""Shuffles, the readout, and what exact cells cannot tell, without any training."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Generator

from implicit_solvers.problems.ernn.sequence_model import SequenceModel, parameter_count
from implicit_solvers.problems.experiments.data.adding import generate_adding
from implicit_solvers.problems.experiments.data.sequences import Sequences, pad
from implicit_solvers.problems.experiments.data.time_shuffle import shuffled
from implicit_solvers.problems.experiments.ernn.models import LABELS, MODELS

QUICK = [name for name in MODELS if name not in ("leaky-implicit", "implicit-euler")]


def ragged(lengths, channels=2, seed=0):
    """Sequences of random numbers."""
    draw = np.random.default_rng(seed)
    x, lengths = pad([draw.normal(size=(length, channels)) for length in lengths])
    return Sequences(x, lengths, torch.zeros(len(lengths), 1))


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    keep_parity=st.booleans(),
    seed=st.integers(0, 99),
)
def test_shuffled_sequences_are_permutations(lengths, keep_parity, seed):
    sequences = ragged(lengths, channels=1, seed=seed)
    other = shuffled(sequences, Generator().manual_seed(seed), keep_parity)
    assert (other.lengths == sequences.lengths).all() and other.y is sequences.y
    for before, after, length in zip(sequences.x[..., 0], other.x[..., 0], lengths, strict=True):
        assert (after[length:] == before[length:]).all()
        for first in range(2) if keep_parity else [0]:
            chosen = slice(first, length, 2 if keep_parity else 1)
            assert sorted(before[chosen].tolist()) == sorted(after[chosen].tolist())
    again = shuffled(sequences, Generator().manual_seed(seed), keep_parity)
    assert (again.x == other.x).all()


def test_all_orders_are_as_likely():
    x = torch.arange(3.0).reshape(1, 3, 1).expand(6000, 3, 1).contiguous()
    sequences = Sequences(x, torch.full((6000,), 3), torch.zeros(6000, 1))
    orders = shuffled(sequences, Generator().manual_seed(0), keep_parity=False).x[..., 0]
    counts = orders.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 6 and ((counts - 1000).abs() < 5 * 1000**0.5).all()


@pytest.mark.parametrize("name", MODELS)
def test_states_are_read_at_the_last_steps_of_each_sequence(name):
    sequences = ragged([5, 3, 4])
    model = SequenceModel(MODELS[name](2, 4), hidden=4, outputs=2, size=3)
    read = model(sequences.x, sequences.lengths)
    assert read.shape == (3, 2, 3)
    for number, length in enumerate((5, 3, 4)):
        alone = model(sequences.x[number : number + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(read[number], alone[0], rtol=1e-4, atol=1e-5)


def test_every_model_has_a_label_and_parameters_as_its_formula_says():
    assert set(LABELS) == set(MODELS)
    counts = {name: parameter_count(MODELS[name](3, 5)) for name in MODELS}
    matrices = 5 * 5 + 5 * 3 + 5
    torch_rnn = matrices + 5
    expected = {
        **{"exact": matrices + 1, "exact-plus": matrices + 1},
        **{"leaky": matrices + 3, "leaky-implicit": matrices + 3, "implicit-euler": matrices},
        "antisymmetric": matrices,
        **{"k1": matrices + 2, "k3": matrices + 4, "k5": matrices + 6, "fastrnn": matrices + 2},
        **{"rnn": torch_rnn, "gru": 3 * torch_rnn, "lstm": 4 * torch_rnn},
    }
    assert counts == expected


@pytest.mark.parametrize("name", QUICK)
def test_only_exact_cells_are_blind_to_order(name):
    """Even steps exchanged among themselves, and odd ones: the alternating sum stays."""
    torch.manual_seed(3)
    sequences = ragged([12] * 8)
    other = shuffled(sequences, Generator().manual_seed(1), keep_parity=True)
    model = SequenceModel(MODELS[name](2, 6), hidden=6, outputs=1, size=6)
    with torch.no_grad():
        before, after = (model(s.x, s.lengths) for s in (sequences, other))
    change = (before - after).norm() / before.norm()
    assert change < 1e-5 if name.startswith("exact") else change > 2e-3
    # with a = b = -1 it is a sum: any order will do; with a = b = 1 signs change
    anyhow = shuffled(sequences, Generator().manual_seed(1), keep_parity=False)
    with torch.no_grad():
        change = (before - model(anyhow.x, anyhow.lengths)).norm() / before.norm()
    assert change < 1e-5 if name == "exact-plus" else change > 2e-3


@pytest.mark.parametrize(("name", "low", "high"), [("exact", -0.05, 0.05), ("exact-plus", 0.9, 1)])
def test_no_readout_of_exact_states_adds_two_numbers(name, low, high):
    """The sign of a marked number depends on its place, which features of one step cannot know.

    With as many even as odd places in each half, the states and the sum are uncorrelated: no
    affine readout explains any of its variance. Without signs (a = b = -1) it is nearly all.
    """
    torch.manual_seed(0)
    task = generate_adding(8, train=3000, validation=1, test=3000)
    rnn = MODELS[name](2, 64)
    features = []
    with torch.no_grad():
        rnn.cells[0].weight_input.mul_(8)  # bends the features of a step
        for part in (task.train, task.test):
            state = rnn(part.x)[0][:, -1].double().numpy()
            features.append(np.concatenate([state, np.ones((len(state), 1))], 1))
    targets = [part.y[:, 0].double().numpy() for part in (task.train, task.test)]
    weights = np.linalg.lstsq(features[0], targets[0], rcond=1e-6)[0]
    error = np.mean((features[1] @ weights - targets[1]) ** 2)
    assert low <= 1 - error / targets[1].var() <= high
