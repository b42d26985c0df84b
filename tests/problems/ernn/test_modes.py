"""Sequential = parallel = default = unrolled with many steps; what is learned; precisions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, hessian, jacfwd, jvp, vmap

import implicit_solvers as ims
from implicit_solvers.problems import ernn
from implicit_solvers.problems.ernn import LEAKY, Equilibrium, ERNNCell, Leak, Monotone, Unrolled
from implicit_solvers.problems.ernn.baselines import FastRNN, ImplicitEulerRNN
from tests.problems.ernn import networks
from tests.problems.ernn.networks import EXACT, PHIS, SEQUENTIAL, drawn_input, network, results

DEFAULT = Equilibrium()
published = st.sampled_from([(1.0, 1.0), (-1.0, -1.0), (0.4, 0.4)])


def assert_modes_are_one(net, batch, time, more=()):
    """Compare a network that steps through time with others of the same parameters."""
    x, h0 = drawn_input(net, time, batch)
    expected = results(net, x, h0)
    for mode in (networks.many_steps(net), networks.NEWTON, EXACT, *more):
        networks.assert_same(results(networks.twin(net, mode), x, h0), expected)
    # the defaults, 1.8e-12 and 3.7e-11 relative, of sums over time and sequences, grown by leaks
    networks.assert_same(
        results(networks.twin(net, DEFAULT), x, h0), expected, rtol=1e-8, atol=1e-8
    )
    return x, h0, expected


@pytest.mark.parametrize("phi", PHIS)
@given(
    seed=st.integers(0, 10**6),
    inputs=st.integers(1, 3),
    hidden=st.integers(1, 4),
    time=st.integers(1, 5),
    batch=st.integers(1, 3),
    gamma=st.floats(0.4, 3),
    share=st.floats(0, 0.6),  # 0.6^80 is 2e-18: the steps are at the equilibrium
    leak=st.one_of(published, st.tuples(st.floats(-2, 2), st.floats(-0.9, 0.9))),
)
@settings(max_examples=18)
def test_all_modes_are_one(phi, seed, inputs, hidden, time, batch, leak, **numbers):
    leak = Leak(*leak, learned=leak[0] != leak[1])
    net = network(seed, inputs, hidden, phi=phi, leak=leak, mode=SEQUENTIAL, **numbers)
    x, h0, expected = assert_modes_are_one(net, batch, time)
    assert ({"cells.0.a", "cells.0.b", "cells.0.log_gamma"} <= expected.keys()) == leak.learned
    h = h0[0]
    for k, row in enumerate(x):  # the network is its cell, repeated
        h = net.cells[0](row, h)
        torch.testing.assert_close(expected["output"][k], h, rtol=1e-10, atol=1e-10)


STRUCTURES = {
    "two layers both ways": {"num_layers": 2, "bidirectional": True, "leak": (-1.0, -1.0)},
    "monotone": {"well_posed": Monotone()},
    "unconstrained": {"well_posed": ernn.Unconstrained()},
    "a wide margin": {"well_posed": ernn.SpectralNorm(0.3)},
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_all_modes_and_blocks_are_one_for_every_structure(name):
    net = network(1, 2, 3, share=0.6, mode=SEQUENTIAL, **STRUCTURES[name])
    blocks = [Equilibrium(**networks.TIGHT, block=block) for block in (1, 3, 6, 1000)]
    dogleg = {"solver": ims.Dogleg(rtol=3e-14, atol=3e-14), "adjoint": ims.ImplicitAdjoint()}
    both = [Equilibrium(**dogleg, parallel=parallel) for parallel in (True, False)]
    assert_modes_are_one(net, 2, 7, [*blocks, *both])


@pytest.mark.parametrize("leak", [Leak(), LEAKY], ids=["exact", "leaky"])
def test_the_exact_network_has_no_memory_but_sums_and_the_leaky_one_has(leak):
    net = network(4, 2, 5, leak=leak, share=0.3, mode=EXACT)
    x, h0 = drawn_input(net, 8, 1)
    last = lambda order: net(x[order], h0)[1]
    # any order of the even inputs, and of the odd ones, gives the same last state
    distance = (last([4, 3, 0, 7, 6, 1, 2, 5]) - last([*range(8)])).abs().max()
    if leak is LEAKY:
        assert distance > 1e-2
        return
    assert distance < 1e-11
    assert (last([1, 0, *range(2, 8)]) - last([*range(8)])).abs().max() > 1e-2
    # and it is their alternating sum, from cells that see one input each
    alone = torch.stack([(-1.0) ** (7 - k) * net(x[[k]])[1] for k in range(8)])
    torch.testing.assert_close(alone.sum(0) + h0, last([*range(8)]), rtol=1e-10, atol=1e-10)


def test_a_warm_start_saves_iterations():
    net = network(5, 1, 8, share=0.9, leak=(1.0, 0.5), mode=DEFAULT)
    x = torch.sin(torch.arange(40, dtype=torch.float64) / 10).reshape(-1, 1, 1)
    with ims.monitor() as warm:
        net(x)
    h = torch.zeros(1, 8, dtype=torch.float64)
    with ims.monitor() as cold:
        for row in x:
            h = net.cells[0](row, h)
    total = lambda log: sum(int(record.iterations.sum()) for record in log.records)
    assert total(warm) < 0.95 * total(cold)


def learning(**options):
    return network(6, 2, 3, gamma=1.3, leak=Leak(1.5, -0.3, learned=True), **options)


def baseline(kind, phi, **options):
    torch.manual_seed(1)
    return kind(2, 3, nonlinearity=PHIS[phi], dtype=torch.float64, **options)


LEARNED = {
    "equilibrium": lambda: learning(mode=EXACT),
    "unrolled": lambda: learning(mode=Unrolled(steps=3, step_size=0.8)),
    "monotone": lambda: learning(mode=networks.NEWTON, well_posed=Monotone(0.1)),
    "low rank": lambda: learning(mode=networks.NEWTON, rank=2, input_rank=1),
    "at the bound": lambda: learning(mode=networks.NEWTON, well_posed=ernn.SpectralNorm(0.3)),
    **{
        f"{name} {phi}": lambda kind=kind, phi=phi, options=options: baseline(kind, phi, **options)
        for phi in PHIS
        for name, kind, options in [
            ("FastRNN", FastRNN, {"alpha": 0.5, "beta": 0.2}),
            ("implicit Euler", ImplicitEulerRNN, {"mode": SEQUENTIAL}),
        ]
    },
}


RATES = {"log_gamma", "a", "b"}
NUMBERS = {"FastRNN": {"alpha", "beta"}, "implicit": set(), "unrolled": RATES | {"step_sizes"}}


@pytest.mark.parametrize("name", LEARNED)
def test_everything_that_is_learned_against_differences(name):
    net = LEARNED[name]()
    if name == "at the bound":
        with torch.no_grad():
            net.cells[0].recurrent.weight.mul_(3)
    names = {key.removeprefix("cells.0.") for key, _ in net.named_parameters()}
    numbers = {n for n in names if "weight" not in n and n != "bias"}
    assert numbers == NUMBERS.get(name.split()[0], RATES)
    x, h0 = drawn_input(net, 3, 2)

    def states(x, h0, *parameters):
        own = dict(zip(dict(net.named_parameters()), parameters, strict=True))
        return functional_call(net, own, (x, h0))[0]

    arguments = [v.detach().clone().requires_grad_() for v in (x, h0, *net.parameters())]
    assert torch.autograd.gradcheck(states, arguments, atol=1e-7, rtol=1e-6)


def test_what_is_not_to_be_learned_is_not():
    cell = ERNNCell(2, 3, learn_gamma=False, mode=Unrolled(steps=2, learned=False))
    assert {n for n, _ in cell.named_parameters()} == {"recurrent.weight", "weight_input", "bias"}
    assert {"log_gamma", "a", "b", "step_sizes"} < set(cell.state_dict())


@pytest.mark.parametrize("phi", ["tanh", "sigmoid"])
def test_transforms_and_second_derivatives(phi):
    net = network(7, 1, 2, phi=phi, mode=EXACT)
    x, h0 = drawn_input(net, 3, 1)
    move = torch.randn_like(x)

    def form(mode):
        other = networks.twin(net, mode)
        return lambda x: other(x, h0)[0].sin().sum()

    # K = 50 steps, which leave 2^-50, differentiated by torch, are the reference
    reference = form(networks.many_steps(net, 50))
    curvature = hessian(reference)(x)
    xs = torch.stack([x, 2 * x])
    for mode in (EXACT, SEQUENTIAL, DEFAULT):
        f = form(mode)
        close = {"rtol": 1e-8, "atol": 1e-8} if mode is DEFAULT else {"rtol": 1e-9, "atol": 1e-9}
        for way in (hessian(f), lambda x, f=f: torch.autograd.functional.hessian(f, x)):
            torch.testing.assert_close(way(x), curvature, **close)
        torch.testing.assert_close(jacfwd(f)(x), jacfwd(reference)(x), **close)
        torch.testing.assert_close(jvp(f, (x,), (move,)), jvp(reference, (x,), (move,)), **close)
        torch.testing.assert_close(vmap(f)(xs), torch.stack([*map(reference, xs)]), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("leak", [Leak(), Leak(-1, -1), LEAKY], ids=["minus", "plus", "leaky"])
def test_defaults_in_both_precisions(dtype, phi, leak):
    torch.manual_seed(8)
    net = ernn.ERNN(3, 8, nonlinearity=PHIS[phi], leak=leak, dtype=dtype)
    x, h0 = (t.to(dtype) for t in drawn_input(net, 6, 4))
    ours = results(net, x, h0)
    reference = results(networks.twin(net, SEQUENTIAL), x.double(), h0.double())
    assert all(value.dtype == dtype for value in ours.values())
    # the defaults ask for eps^(2/3): 2.4e-5 and 3.7e-11; leaky gradients grow by 2 a step
    size = 64 * (20 if leak is LEAKY else 1)
    tolerance = size * torch.finfo(dtype).eps ** (2 / 3)
    for name, value in reference.items():
        scale = max(1.0, value.abs().max().item())
        assert (ours[name].double() - value).abs().max() < tolerance * scale, name


def test_a_nonlinearity_and_a_gamma_of_your_own():
    softplus = ernn.Nonlinearity(torch.nn.functional.softplus, slope=1.0)
    options = {"gamma": 0.7, "initial_norm": 0.2, "dtype": torch.float64}
    cell = ERNNCell(2, 3, nonlinearity=softplus, mode=SEQUENTIAL, **options)
    x = networks.double(2)
    h, c = cell(x), cell.coefficients()
    residual = torch.log1p(torch.exp(c.U @ h + cell.drive(x))) - c.gamma * h
    assert residual.abs().max() < 1e-13
    assert cell.gamma.item() == pytest.approx(0.7, rel=1e-15)


@pytest.mark.parametrize("norm, scale, most", [(0.3, 0.3, 6), (0.6, 20.0, 8), (0.9, 20.0, 12)])
def test_the_mean_slope_shortens_the_iteration(norm, scale, most):
    """Half of the largest slope takes 7, 13 and 38 steps where slopes are near 1 or near 0."""
    torch.manual_seed(0)
    net = ernn.ERNN(16, 16, initial_norm=norm)
    with ims.monitor() as log:
        net(scale * torch.randn(20, 8, 16))
    assert int(log.records[0].iterations.max()) <= most
