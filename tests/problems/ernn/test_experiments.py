"""The commands gradients and trajectories: what they measure, and runs that are interrupted."""

import copy
import functools
import itertools
import json

import numpy as np
import pytest
import torch
from torch import Generator, nn

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.cli.ernn import gradients, jacobians, trajectories
from implicit_solvers.problems.data.pixel_sequences import load_digit_sequences
from implicit_solvers.problems.ernn import ERNN, LEAKY, Equilibrium, ERNNCell, Unrolled
from tests.problems.ernn.networks import double

SHORT = "--epochs 2 --checkpoint-every 1"
GRADIENTS = f"gradients {SHORT} --models rnn exact --hidden 3 --batch 600 --measured 1 --long 5"
TRAJECTORIES = f"trajectories {SHORT} --models rnn exact leaky --train 40 --steps 5 --drawn 2"


def test_an_exact_network_keeps_the_norm_over_many_steps():
    torch.manual_seed(0)
    cell = ERNNCell(2, 4, dtype=torch.float64)
    h = first = double(3, 4).requires_grad_()
    for row in double(250, 3, 2):
        h = cell(row, h)
    g = double(3, 4)
    # J = (-I)^250: what comes back is what went in, by a linear solve, to 4e-11, in each step
    (back,) = torch.autograd.grad(h, first, g)
    torch.testing.assert_close(back, g, rtol=1e-7, atol=1e-7)
    step = jacobians.step_of(ERNN(2, 4, initial_norm=0.9))
    norms = jacobians.norms_along(step, double(20, 2), 4)
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
    before = copy.deepcopy(net.state_dict())
    step, x = jacobians.step_of(net), double(6, 2)
    zero, e = torch.zeros(3).double(), 1e-6 * torch.eye(3).double()
    last = lambda h: functools.reduce(lambda h, row: step(row, h), x[1:], h)
    first = step(x[0], zero)
    columns = [(last(first + d) - last(first - d)) / 2e-6 for d in e]
    expected = torch.stack(columns, 1).numpy()
    J = jacobians.end_to_end(step, x, 3).numpy()
    np.testing.assert_allclose(J, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        jacobians.norms_along(step, x, 3)[-1], np.linalg.norm(J, 2), rtol=1e-8
    )
    # the step is the network's own, which is left as it was
    states = torch.stack([*itertools.accumulate(x, lambda h, row: step(row, h), initial=zero)])
    found = net(x.float().unsqueeze(1))[0].squeeze(1)
    torch.testing.assert_close(found.double(), states[1:], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_distances_from_minus_the_identity():
    far = functools.partial(jacobians.distances_from_identity, norm=0.7)
    assert 0.6 < far(1, 1.0)[0] <= 0.7 and 0.03 < far(5, 1.0)[0] < 0.17
    assert far(5, 1e-3)[1] < 0.01
    distances = [far(k, 0.5)[0] for k in (1, 3, 9, 27)]
    assert distances == sorted(distances, reverse=True)


def test_rings_differ_in_their_order_alone():
    x, y = trajectories.rings(200, 8, 0.0, Generator().manual_seed(0))
    cross = x[:, 0, 0] * x[:, 1, 1] - x[:, 0, 1] * x[:, 1, 0]
    assert torch.equal((cross > 0).long(), y)
    assert 60 < int(y.sum()) < 140
    drawn, labels = trajectories._drawn(trajectories.Configuration(steps=8, drawn=3))
    one, other = drawn[labels == 0], drawn[labels == 1]
    back = torch.cat([one[:, :1], one[:, 1:].flip(1)], 1)
    torch.testing.assert_close(back, other, rtol=1e-5, atol=1e-5)


def test_trajectories_are_the_states_of_the_network():
    net, x = ERNN(2, 3, batch_first=True), torch.randn(4, 5, 2)
    states = trajectories.trajectories(net, x, 3)
    assert (states[:, 0] == 0).all()
    torch.testing.assert_close(states[:, 1:], net(x)[0].double(), rtol=1e-4, atol=1e-4)


def contents(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["timing"]
    return metrics


@pytest.mark.parametrize("command", [GRADIENTS, TRAJECTORIES], ids=["gradients", "trajectories"])
def test_a_run_and_one_that_is_interrupted(command, tmp_path, monkeypatch, capsys):
    command = ["ernn", *command.split()]
    module = {"gradients": gradients, "trajectories": trajectories}[command[1]]
    monkeypatch.setattr(gradients, "STEPS", (1, 3))
    rows = load_digit_sequences(8)
    monkeypatch.setattr(gradients, "load_digit_sequences", lambda width: rows)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*command, "--out", str(whole)]) == 0
    assert (whole / f"{command[1]}.png").read_bytes()[1:4] == b"PNG"
    assert "Results" in capsys.readouterr().out

    fit = module.fit

    def interrupted(*arguments):
        # in the second network's second epoch
        epochs = fit(*arguments)
        yield next(epochs)
        if (broken / "checkpoint.pt").exists() and (broken / "armed").exists():
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


BAD = "gradients --long 1", "gradients --models gru", "gradients --hidden 0"


@pytest.mark.parametrize("options", [*BAD, "trajectories --hidden 1", "trajectories --noise -1"])
def test_bad_options(options):
    with pytest.raises(SystemExit) as caught:
        main(["ernn", *options.split()])
    assert caught.value.code == 2
