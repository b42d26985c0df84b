"""Sequential implicit = parallel = unrolled with many steps; what is learned; precisions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, hessian

import implicit_solvers as ims
from implicit_solvers.problems.ernn import (
    ERNN,
    LEAKY,
    Equilibrium,
    ERNNCell,
    Leak,
    Monotone,
    Nonlinearity,
    SpectralNorm,
    Unconstrained,
    Unrolled,
)
from tests.problems.ernn.networks import (
    ADJOINT,
    PARALLEL,
    PHIS,
    SEQUENTIAL,
    SOLVER,
    assert_same,
    network,
    results,
    unrolled_like,
)

NEWTON = Equilibrium(solver=ims.Newton(rtol=3e-14, atol=3e-14), adjoint=ims.ImplicitAdjoint())


def twin(net, mode):
    """A network with the same parameters in another mode."""
    cell = net.cells[0]
    other = ERNN(
        net.input_size,
        net.hidden_size,
        net.num_layers,
        bidirectional=net.bidirectional,
        mode=mode,
        nonlinearity=cell.phi,
        leak=cell.leak,
        well_posed=cell.well_posed,
        dtype=torch.float64,
    )
    other.load_state_dict(net.state_dict())
    return other


def drawn_input(seed, time, batch, inputs, cells, hidden):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(time, batch, inputs, generator=g, dtype=torch.float64)
    return x, torch.randn(cells, batch, hidden, generator=g, dtype=torch.float64)


SIZES = {
    "seed": st.integers(0, 10**6),
    "inputs": st.integers(1, 3),
    "hidden": st.integers(1, 4),
    "time": st.integers(1, 5),
    "batch": st.integers(1, 3),
    "gamma": st.floats(0.4, 3),
    # 0.6^80 is 2e-18: the steps are at the equilibrium
    "share": st.floats(0, 0.6),
}


@pytest.mark.parametrize("phi", PHIS)
@given(**SIZES, a=st.sampled_from([1.0, -1.0, 0.4]))
@settings(max_examples=10)
def test_sequential_parallel_and_unrolled_are_one(
    phi, seed, inputs, hidden, time, batch, gamma, share, a
):
    net = network(
        seed, inputs, hidden, phi=phi, gamma=gamma, share=share, leak=(a, a), mode=SEQUENTIAL
    )
    x, h0 = drawn_input(seed, time, batch, inputs, 1, hidden)
    expected = results(net, x, h0)
    assert_same(results(twin(net, PARALLEL), x, h0), expected)
    assert_same(results(unrolled_like(net, 80), x, h0), expected)


@pytest.mark.parametrize("phi", PHIS)
@given(**SIZES, leak=st.tuples(st.floats(-2, 2), st.floats(-0.9, 0.9)))
@settings(max_examples=8)
def test_leaky_sequential_and_unrolled_are_one(
    phi, seed, inputs, hidden, time, batch, gamma, share, leak
):
    net = network(
        seed,
        inputs,
        hidden,
        phi=phi,
        gamma=gamma,
        share=share,
        leak=Leak(*leak, learned=True),
        mode=SEQUENTIAL,
    )
    x, h0 = drawn_input(seed, time, batch, inputs, 1, hidden)
    expected = results(net, x, h0)
    assert {"cells.0.a", "cells.0.b", "cells.0.log_gamma"} < expected.keys()
    assert_same(results(unrolled_like(net, 80), x, h0), expected)
    assert_same(results(twin(net, NEWTON), x, h0), expected)


def test_two_layers_both_ways_in_parallel():
    net = network(
        1, 3, 4, num_layers=2, bidirectional=True, leak=(-1.0, -1.0), share=0.6, mode=SEQUENTIAL
    )
    x, h0 = drawn_input(1, 7, 2, 3, 4, 4)
    expected = results(net, x, h0)
    assert_same(results(twin(net, PARALLEL), x, h0), expected)
    assert_same(results(unrolled_like(net, 90), x, h0), expected)


@pytest.mark.parametrize("well_posed", [Monotone(), Unconstrained(), SpectralNorm(0.3)], ids=str)
def test_parallel_with_newton_and_every_parametrization(well_posed):
    newton = {"solver": ims.Dogleg(rtol=3e-14, atol=3e-14)}
    net = network(
        2, 2, 3, well_posed=well_posed, mode=Equilibrium(**newton, parallel=False), share=0.6
    )
    x, h0 = drawn_input(2, 4, 2, 2, 1, 3)
    assert_same(results(twin(net, Equilibrium(**newton)), x, h0), results(net, x, h0))


@pytest.mark.parametrize("block", [1, 3, 6, 1000])
def test_the_size_of_a_block_changes_nothing(block):
    net = network(3, 2, 3, mode=PARALLEL)
    x, h0 = drawn_input(3, 9, 2, 2, 1, 3)
    mode = Equilibrium(solver=SOLVER, adjoint=ADJOINT, block=block)
    assert_same(results(twin(net, mode), x, h0), results(net, x, h0), rtol=1e-12, atol=1e-12)


def test_the_exact_network_has_no_memory_but_sums():
    # any order of the even inputs, and of the odd ones, gives the same last state
    net = network(4, 2, 5, mode=PARALLEL)
    x, h0 = drawn_input(4, 8, 1, 2, 1, 5)
    order = torch.tensor([4, 3, 0, 7, 6, 1, 2, 5])
    last = net(x, h0)[1]
    torch.testing.assert_close(net(x[order], h0)[1], last, rtol=1e-12, atol=1e-12)
    other = net(x[torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])], h0)[1]
    assert (other - last).abs().max() > 1e-2
    # and it is their alternating sum, from cells that see one input each
    alone = torch.stack([net(x[k : k + 1])[1] for k in range(8)])
    signs = torch.tensor([(-1.0) ** (7 - k) for k in range(8)]).reshape(-1, 1, 1, 1)
    torch.testing.assert_close((signs * alone).sum(0) + h0, last, rtol=1e-10, atol=1e-10)


def test_the_leaky_network_has_memory():
    net = network(4, 2, 5, leak=LEAKY, share=0.3, mode=Equilibrium(solver=SOLVER, adjoint=ADJOINT))
    x, h0 = drawn_input(4, 8, 1, 2, 1, 5)
    order = torch.tensor([4, 3, 0, 7, 6, 1, 2, 5])
    assert (net(x[order], h0)[1] - net(x, h0)[1]).abs().max() > 1e-2


def test_a_warm_start_saves_iterations():
    net = network(5, 1, 8, share=0.9, leak=(1.0, 0.5), mode=Equilibrium())
    x = torch.sin(torch.arange(40, dtype=torch.float64) / 10).reshape(-1, 1, 1)
    with ims.monitor() as warm:
        net(x)
    cell, h = net.cells[0], torch.zeros(1, 8, dtype=torch.float64)
    with ims.monitor() as cold:
        for row in x:
            h = cell(row, h)

    def total(log):
        return sum(int(record.iterations.sum()) for record in log.records)

    assert total(warm) < 0.95 * total(cold)


LEARNED = {
    "equilibrium": {"mode": Equilibrium(solver=SOLVER, adjoint=ADJOINT)},
    "unrolled": {"mode": Unrolled(steps=3, step_size=0.8)},
    "monotone": {"mode": NEWTON, "well_posed": Monotone(0.1)},
    "low-rank": {"mode": NEWTON, "rank": 2, "input_rank": 1},
    "at-the-bound": {"mode": NEWTON, "well_posed": SpectralNorm(0.3), "push": 3.0},
}


@pytest.mark.parametrize("name", LEARNED)
def test_everything_that_is_learned_against_differences(name):
    options = dict(LEARNED[name])
    push = options.pop("push", 1.0)
    leak = Leak(1.5, -0.3, learned=True)
    net = network(6, 2, 3, gamma=1.3, share=0.5, leak=leak, **options)
    x, h0 = drawn_input(6, 3, 2, 2, 1, 3)
    with torch.no_grad():
        if push != 1:
            net.cells[0].recurrent.weight.mul_(push)
    names, values = zip(*net.named_parameters(), strict=True)
    assert "cells.0.log_gamma" in names and "cells.0.a" in names
    assert ("cells.0.step_sizes" in names) == (name == "unrolled")
    learned = [v.detach().clone().requires_grad_() for v in values]

    def loss(*parameters):
        return functional_call(net, dict(zip(names, parameters, strict=True)), (x, h0))[0]

    assert torch.autograd.gradcheck(loss, learned, atol=1e-7, rtol=1e-6)


def test_what_is_not_to_be_learned_is_not():
    cell = ERNNCell(2, 3, learn_gamma=False, mode=Unrolled(steps=2, learned=False))
    assert {n for n, _ in cell.named_parameters()} == {"recurrent.weight", "weight_input", "bias"}
    assert {"log_gamma", "a", "b", "step_sizes"} < set(cell.state_dict())


def test_second_derivatives():
    net = network(7, 1, 2, mode=Equilibrium(solver=SOLVER, adjoint=ADJOINT))
    x, h0 = drawn_input(7, 3, 1, 1, 1, 2)

    # K = 80 steps, differentiated twice by torch, are the reference
    many = unrolled_like(net, 80)
    reference = hessian(lambda x: many(x, h0)[0].sum())(x)
    for mode in (PARALLEL, SEQUENTIAL):
        other = twin(net, mode)
        ours = hessian(lambda x, other=other: other(x, h0)[0].sum())(x)
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("leak", [Leak(), Leak(-1, -1), LEAKY], ids=["minus", "plus", "leaky"])
def test_defaults_in_both_precisions(dtype, phi, leak):
    torch.manual_seed(8)
    net = ERNN(3, 8, nonlinearity=PHIS[phi], leak=leak, dtype=dtype)
    x = torch.randn(6, 4, 3, dtype=dtype)
    h0 = torch.randn(1, 4, 8, dtype=dtype)
    ours = results_any(net, x, h0)
    exact = ERNN(3, 8, nonlinearity=PHIS[phi], leak=leak, mode=SEQUENTIAL, dtype=torch.float64)
    exact.load_state_dict(net.state_dict())
    reference = results_any(exact, x.double(), h0.double())
    assert all(value.dtype == dtype for value in ours.values())
    # the defaults ask for eps^(2/3): 2.4e-5 and 3.7e-11; leaky gradients grow by 2 a step
    size = 64 * (20 if leak is LEAKY else 1)
    tolerance = size * torch.finfo(dtype).eps ** (2 / 3)
    for name, value in reference.items():
        scale = max(1.0, value.detach().abs().max().item())
        assert (ours[name].double() - value).abs().max() < tolerance * scale, name


def results_any(net, x, h0):
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    output, h_n = net(x, h0)
    value = output.square().sum() + h_n.sum()
    names, parameters = zip(*net.named_parameters(), strict=True)
    slopes = torch.autograd.grad(value, (x, h0, *parameters))
    return {"output": output, "h_n": h_n, **dict(zip(("x", "h0", *names), slopes, strict=True))}


def test_a_nonlinearity_of_your_own():
    softplus = Nonlinearity(torch.nn.functional.softplus, slope=1.0)
    cell = ERNNCell(2, 3, nonlinearity=softplus, mode=SEQUENTIAL, dtype=torch.float64)
    x = torch.randn(2, dtype=torch.float64)
    h, c = cell(x), cell.coefficients()
    residual = torch.log1p(torch.exp(c.U @ h + cell.drive(x))) - c.gamma * h
    assert residual.abs().max() < 1e-13


def test_gamma_of_the_cell_is_what_was_asked_for():
    cell = ERNNCell(2, 3, gamma=0.7, dtype=torch.float64)
    np.testing.assert_allclose(cell.gamma.item(), 0.7, rtol=1e-15)
