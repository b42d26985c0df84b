"""The commands gradients and trajectories: what they measure, and runs that are interrupted."""

import json

import numpy as np
import pytest
import torch
from torch import Generator, nn

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.cli.ernn import gradients, trajectories
from implicit_solvers.problems.cli.ernn.jacobians import (
    distances_from_identity,
    end_to_end,
    norms_along,
    step_of,
)
from implicit_solvers.problems.data.pixel_sequences import load_digit_sequences
from implicit_solvers.problems.ernn import ERNN, LEAKY, Equilibrium, ERNNCell, Unrolled

GRADIENTS = [
    *("ernn", "gradients", "--models", "rnn", "exact", "--epochs", "2", "--hidden", "3"),
    *("--batch", "600", "--measured", "1", "--long", "5", "--checkpoint-every", "1"),
]
TRAJECTORIES = [
    *("ernn", "trajectories", "--models", "rnn", "exact", "leaky", "--epochs", "2"),
    *("--train", "40", "--steps", "5", "--drawn", "2", "--checkpoint-every", "1"),
]


def test_an_exact_network_keeps_the_norm_over_a_thousand_steps():
    torch.manual_seed(0)
    cell = ERNNCell(2, 4, dtype=torch.float64)
    first = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    h = first
    for row in torch.randn(1000, 3, 2, dtype=torch.float64):
        h = cell(row, h)
    g = torch.randn(3, 4, dtype=torch.float64)
    # J = (-I)^1000: what comes back is what went in, by a linear solve in each step
    (back,) = torch.autograd.grad(h, first, g)
    torch.testing.assert_close(back, g, rtol=1e-6, atol=1e-6)
    x = torch.randn(20, 2, dtype=torch.float64)
    norms = norms_along(step_of(ERNN(2, 4, initial_norm=0.9)), x, 4)
    assert max(abs(norm - 1) for norm in norms) < 1e-8


NETS = {
    "rnn": lambda: nn.RNN(2, 3),
    "leaky": lambda: ERNN(2, 3, leak=LEAKY),
    "exact": lambda: ERNN(2, 3, mode=Equilibrium()),
    "unrolled": lambda: ERNN(2, 3, mode=Unrolled(steps=2)),
}


@pytest.mark.parametrize("name", NETS)
def test_jacobians_against_differences(name):
    torch.manual_seed(1)
    net = NETS[name]()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    step, x = step_of(net), torch.randn(6, 2, dtype=torch.float64)

    def last(h):
        for row in x[1:]:
            h = step(row, h)
        return h

    first = step(x[0], torch.zeros(3, dtype=torch.float64))
    e = 1e-6 * torch.eye(3, dtype=torch.float64)
    columns = [(last(first + d) - last(first - d)) / 2e-6 for d in e]
    expected = torch.stack(columns, 1).numpy()
    J = end_to_end(step, x, 3).numpy()
    np.testing.assert_allclose(J, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(norms_along(step, x, 3)[-1], np.linalg.norm(J, 2), rtol=1e-8)
    # the step is the network's own, which is left as it was
    states, h = net(x.float().unsqueeze(1))[0], torch.zeros(3, dtype=torch.float64)
    for k, row in enumerate(x):
        h = step(row, h)
        torch.testing.assert_close(states[k, 0].double(), h, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_distances_from_minus_the_identity():
    one, _ = distances_from_identity(1, 1.0, norm=0.7)
    five, _ = distances_from_identity(5, 1.0, norm=0.7)
    assert 0.6 < one <= 0.7 and 0.03 < five < 0.17
    _, norm = distances_from_identity(5, 1e-3, norm=0.7)
    assert norm < 0.01
    distances = [distances_from_identity(k, 0.5, norm=0.7)[0] for k in (1, 3, 9, 27)]
    assert distances == sorted(distances, reverse=True)


def test_rings_differ_in_their_order_alone():
    x, y = trajectories.rings(200, 8, 0.0, Generator().manual_seed(0))
    cross = x[:, 0, 0] * x[:, 1, 1] - x[:, 0, 1] * x[:, 1, 0]
    assert torch.equal((cross > 0).long(), y)
    assert 60 < int(y.sum()) < 140
    drawn, labels = trajectories._drawn(trajectories.Configuration(steps=8, drawn=3))
    for one, other in zip(drawn[labels == 0], drawn[labels == 1], strict=True):
        back = torch.cat([one[:1], one[1:].flip(0)])
        torch.testing.assert_close(back, other, rtol=1e-5, atol=1e-5)


def test_trajectories_are_the_states_of_the_network():
    torch.manual_seed(2)
    net = ERNN(2, 3, batch_first=True)
    x = torch.randn(4, 5, 2)
    states = trajectories.trajectories(net, x, 3)
    assert (states[:, 0] == 0).all()
    torch.testing.assert_close(states[:, 1:], net(x)[0].double(), rtol=1e-4, atol=1e-4)


def contents(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["timing"]
    return metrics


@pytest.mark.parametrize(
    ("command", "figure", "module"),
    [
        (GRADIENTS, "gradients.png", gradients),
        (TRAJECTORIES, "trajectories.png", trajectories),
    ],
    ids=["gradients", "trajectories"],
)
def test_a_run_and_one_that_is_interrupted(command, figure, module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gradients, "STEPS", (1, 3))
    rows = load_digit_sequences(8)
    monkeypatch.setattr(gradients, "load_digit_sequences", lambda width: rows)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*command, "--out", str(whole)]) == 0
    assert (whole / figure).read_bytes()[1:4] == b"PNG"
    assert "Results" in capsys.readouterr().out

    fit = module.fit

    def interrupted(*arguments):
        # in the second network's second epoch
        epochs = fit(*arguments)
        yield next(epochs)
        if (broken / "checkpoint.pt").exists() and broken.joinpath("armed").exists():
            raise KeyboardInterrupt
        (broken / "armed").touch()
        yield from epochs

    monkeypatch.setattr(module, "fit", interrupted)
    assert main([*command, "--out", str(broken)]) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.setattr(module, "fit", fit)
    assert main([*command, "--out", str(broken), "--resume"]) == 0
    assert contents(broken) == contents(whole)
    assert main([*command, "--epochs", "3", "--out", str(broken), "--resume"]) == 2
    assert "epochs 2 where this run has 3" in capsys.readouterr().err

    metrics = contents(whole)
    if module is gradients:
        assert metrics["largest_deviation_of_exact"] < 1e-6
        assert [t["model"] for t in metrics["training"]] == ["rnn", "exact"]
        assert all(len(t["test"]) == 2 for t in metrics["training"])
        assert len(metrics["along"][0]["norms"]) == 4
    else:
        assert np.shape(metrics["trajectories"]["leaky"]) == (4, 6, 2)
        # from zero, and, for the exact network, the same end whatever the order of two inputs
        assert (np.array(metrics["trajectories"]["exact"])[:, 0] == 0).all()


@pytest.mark.parametrize(
    "options",
    [
        ("gradients", "--long", "1"),
        ("gradients", "--models", "gru"),
        ("gradients", "--hidden", "0"),
        ("trajectories", "--hidden", "1"),
        ("trajectories", "--noise", "-1"),
    ],
    ids=" ".join,
)
def test_bad_options(options):
    with pytest.raises(SystemExit) as caught:
        main(["ernn", *options])
    assert caught.value.code == 2
