"""FastRNN and the implicit Euler network against their formulas, torch's RNN, and SciPy."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from implicit_solvers.problems.ernn import Equilibrium, Unrolled
from implicit_solvers.problems.ernn.baselines import FastRNN, FastRNNCell, ImplicitEulerRNN
from tests.problems.ernn.networks import PHIS, SEQUENTIAL

NUMPY = {
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "relu": lambda z: np.maximum(z, 0),
}
PHI = st.sampled_from(sorted(PHIS))


def matrices(cell):
    """``U``, ``W`` and the bias as arrays."""
    own = (cell.coefficients().U, cell.weight_input, cell.bias)
    return [matrix.detach().numpy() for matrix in own]


def logistic(z):
    return 1 / (1 + math.exp(-z))


@given(
    phi=PHI,
    inputs=st.integers(1, 3),
    hidden=st.integers(1, 5),
    logits=st.tuples(st.floats(-4, 4), st.floats(-4, 4)),
    norm=st.floats(0.1, 3),
    seed=st.integers(0, 999),
)
def test_fastrnn_is_its_formula(phi, inputs, hidden, logits, norm, seed):
    torch.manual_seed(seed)
    alpha, beta = logits
    net = FastRNN(
        inputs,
        hidden,
        batch_first=True,
        nonlinearity=PHIS[phi],
        alpha=alpha,
        beta=beta,
        initial_norm=norm,
        dtype=torch.float64,
    )
    U, W, c = matrices(net.cells[0])
    x = torch.randn(2, 4, inputs, dtype=torch.float64)
    h = torch.randn(2, hidden, dtype=torch.float64)
    output, h_n = net(x, h.unsqueeze(0))
    state = h.numpy()
    for k in range(4):
        inner = NUMPY[phi](state @ U.T + x[:, k].numpy() @ W.T + c)
        # the logits are float32 before they are converted
        a, b = (logistic(float(np.float32(logit))) for logit in logits)
        state = a * inner + b * state
        np.testing.assert_allclose(output[:, k].detach().numpy(), state, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(h_n[0].detach(), output[:, -1].detach())


@given(layers=st.integers(1, 2), both=st.booleans(), seed=st.integers(0, 999))
def test_fastrnn_with_weights_one_and_zero_is_torchs_rnn(layers, both, seed):
    torch.manual_seed(seed)
    options = {"bidirectional": both, "dtype": torch.float64}
    net = FastRNN(3, 4, layers, alpha=50.0, beta=-50.0, **options)
    expected = torch.nn.RNN(3, 4, layers, **options)
    with torch.no_grad():
        for place, cell in enumerate(net.cells):
            suffix = f"l{place // 2}{'_reverse' * (place % 2)}" if both else f"l{place}"
            getattr(expected, f"weight_hh_{suffix}").copy_(cell.coefficients().U)
            getattr(expected, f"weight_ih_{suffix}").copy_(cell.weight_input)
            getattr(expected, f"bias_ih_{suffix}").copy_(cell.bias)
            getattr(expected, f"bias_hh_{suffix}").zero_()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    h0 = torch.randn(len(net.cells), 2, 4, dtype=torch.float64)
    for actual, wanted in zip(net(x, h0), expected(x, h0), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-12)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [2, 5], enforce_sorted=False)
    actual, wanted = net(packed, h0), expected(packed, h0)
    torch.testing.assert_close(actual[0].data, wanted[0].data, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(actual[1], wanted[1], rtol=1e-11, atol=1e-12)


def test_fastrnn_begins_as_the_authors_code_and_learns_both_weights():
    net = FastRNN(3, 4)
    names = {name.removeprefix("cells.0.") for name, _ in net.named_parameters()}
    assert names == {"alpha", "beta", "bias", "recurrent.weight", "weight_input"}
    assert (net.cells[0].alpha.item(), net.cells[0].beta.item()) == (-3, 3)
    assert sum(p.numel() for p in net.parameters()) == 4 * 4 + 4 * 3 + 4 + 2
    net(torch.randn(3, 2, 3))[0].square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("phi", PHIS)
def test_gradients_against_finite_differences(phi):
    torch.manual_seed(1)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    options = {"nonlinearity": PHIS[phi], "dtype": torch.float64}
    for net in (
        FastRNN(2, 3, alpha=0.5, beta=0.2, **options),
        ImplicitEulerRNN(2, 3, mode=SEQUENTIAL, **options),
    ):
        parameters = tuple(p.detach().requires_grad_() for p in net.parameters())
        names = [name for name, _ in net.named_parameters()]

        def output(x, *values, net=net, names=names):
            state = dict(zip(names, values, strict=True))
            return torch.func.functional_call(net, state, (x,))[0]

        # a random direction of all arguments, which misses no wrong entry but by chance
        assert torch.autograd.gradcheck(output, (x, *parameters), fast_mode=True)


@given(
    phi=PHI,
    hidden=st.integers(1, 4),
    step_size=st.floats(0.05, 4),
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 999),
)
def test_a_step_of_implicit_euler_against_scipys_root(phi, hidden, step_size, share, seed):
    torch.manual_seed(seed)
    net = ImplicitEulerRNN(
        2,
        hidden,
        step_size=step_size,
        mode=SEQUENTIAL,
        nonlinearity=PHIS[phi],
        initial_norm=share,
        dtype=torch.float64,
    )
    U, W, c = matrices(net.cells[0])
    x = torch.randn(3, 1, 2, dtype=torch.float64)
    state = torch.randn(1, 1, hidden, dtype=torch.float64)
    output, _ = net(x, state)
    before = state[0, 0].numpy()
    for k in range(3):
        d = W @ x[k, 0].numpy() + c
        # gamma and b are float32 before they are converted
        eta = 1 / (math.exp(float(np.float32(math.log((1 + step_size) / step_size)))) - 1)

        def equation(h, before=before, d=d, eta=eta):
            return h - before - eta * (NUMPY[phi](U @ h + d) - h)

        root = scipy.optimize.root(equation, before, tol=1e-13)
        assert np.abs(equation(root.x)).max() < 1e-9
        np.testing.assert_allclose(output[k, 0].detach().numpy(), root.x, rtol=1e-6, atol=1e-6)
        before = output[k, 0].detach().numpy()


def test_implicit_euler_converges_to_the_flow_of_first_order():
    torch.manual_seed(0)
    x = torch.randn(2, dtype=torch.float64)
    nets = {}
    for steps in (10, 20, 40):
        net = ImplicitEulerRNN(
            2, 3, step_size=2 / steps, mode=SEQUENTIAL, initial_norm=0.9, dtype=torch.float64
        )
        if nets:
            weights = next(iter(nets.values())).named_parameters()
            net.load_state_dict({**net.state_dict(), **dict(weights)})
        nets[steps] = net
    U, W, c = matrices(net.cells[0])
    d = W @ x.numpy() + c
    flow = scipy.integrate.solve_ivp(
        lambda _, h: np.tanh(U @ h + d) - h, (0, 2), np.zeros(3), rtol=1e-11, atol=1e-12
    ).y[:, -1]
    errors = []
    for steps, net in nets.items():
        _, h_n = net(x.expand(steps, 1, 2))
        errors.append(np.abs(h_n[0, 0].detach().numpy() - flow).max())
    ratios = np.divide(errors[:-1], errors[1:])
    assert errors[0] < 0.1 and (abs(ratios - 2) < 0.3).all()


def test_implicit_euler_forgets_by_its_step_size_where_there_is_nothing_to_recur():
    net = ImplicitEulerRNN(2, 3, step_size=0.25, initial_norm=0.0, bias=False, mode=SEQUENTIAL)
    net.to(torch.float64)
    h0 = torch.randn(1, 1, 3, dtype=torch.float64)
    output, _ = net(torch.zeros(4, 1, 2, dtype=torch.float64), h0)
    expected = h0 * 0.8 ** torch.arange(1.0, 5.0, dtype=torch.float64).reshape(4, 1, 1)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FastRNN(2, 3, alpha=math.inf), ValueError, "alpha=inf is not finite"),
        (lambda: FastRNNCell(2, 3, beta=math.nan), ValueError, "beta=nan is not finite"),
        (lambda: FastRNN(0, 3), ValueError, "input_size=0"),
        (lambda: FastRNN(2, 3, mode=Unrolled()), TypeError, "mode"),
        (lambda: ImplicitEulerRNN(2, 3, step_size=0.0), ValueError, "step_size=0.0 is not"),
        (lambda: ImplicitEulerRNN(2, 3, step_size=math.nan), ValueError, "step_size=nan"),
        (lambda: ImplicitEulerRNN(2, 3, step_size=math.inf), ValueError, "step_size=inf"),
        (lambda: ImplicitEulerRNN(2, 3, mode=Unrolled()), TypeError, "pass an Equilibrium"),
        (lambda: ImplicitEulerRNN(2, 3, initial_norm=9.0), ValueError, "initial_norm=9.0"),
    ],
)
def test_unfit_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_nan_stays_in_its_sequence():
    for net in (FastRNN(2, 3), ImplicitEulerRNN(2, 3, mode=Equilibrium(on_failure="mask"))):
        x = torch.randn(4, 2, 2)
        clean = net(x)[0]
        x[2, 1, 0] = math.nan
        output = net(x)[0]
        torch.testing.assert_close(output[:, 0], clean[:, 0])
        assert output[2:, 1].isnan().all() and not output[:2].isnan().any()
