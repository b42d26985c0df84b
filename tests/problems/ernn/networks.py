"""Networks in float64 that are solved to rounding, and what is compared of them."""

import functools

import torch

import implicit_solvers as ims
from implicit_solvers.problems.ernn import ERNN, Equilibrium, Unrolled

PHIS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}
SLOPES = {"tanh": 1.0, "sigmoid": 0.25, "relu": 1.0}

# far below what is asserted, 1e-10, and above the rounding of a residual
SOLVER = ims.FixedPointIteration(rtol=3e-14, atol=3e-14)
ADJOINT = ims.ImplicitAdjoint(ims.Neumann(rtol=1e-13))
TIGHT = {"solver": SOLVER, "adjoint": ADJOINT}
EXACT = Equilibrium(**TIGHT)
SEQUENTIAL = Equilibrium(**TIGHT, parallel=False)
NEWTON = Equilibrium(solver=ims.Newton(rtol=3e-14, atol=3e-14), adjoint=ims.ImplicitAdjoint())


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def network(seed, inputs, hidden, *, phi="tanh", gamma=1.0, share=0.5, leak=(1.0, 1.0), **options):
    """An `ERNN` with ``slope |U| = share gamma`` and parameters that the seed draws."""
    torch.manual_seed(seed)
    options |= {"gamma": gamma, "initial_norm": share * gamma / SLOPES[phi], "leak": leak}
    return ERNN(inputs, hidden, nonlinearity=PHIS[phi], dtype=torch.float64, **options)


def drawn_input(net, time, batch):
    """An input and a first state."""
    return double(time, batch, net.input_size), double(len(net.cells), batch, net.hidden_size)


def many_steps(net, steps=80):
    """The mode of as many steps ``1 / gamma``."""
    return Unrolled(steps=steps, step_size=1 / net.cells[0].gamma.item(), learned=False)


def twin(net, mode):
    """A network with the same parameters in another mode."""
    cell = net.cells[0]
    options = {"nonlinearity": cell.phi, "leak": cell.leak, "well_posed": cell.well_posed}
    options |= {"bidirectional": net.bidirectional, "dtype": torch.float64}
    other = ERNN(net.input_size, net.hidden_size, net.num_layers, mode=mode, **options)
    missing, unexpected = other.load_state_dict(net.state_dict(), strict=False)
    assert not unexpected and all("step_sizes" in name for name in missing)
    return other


def results(net, x, h0):
    """Output, last state, and the gradients of a random form of both: of input, h0, parameters."""
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    output, h_n = net(x, h0)
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=g, dtype=torch.float64) for t in (output, h_n)]
    value = sum((w.to(x.dtype) * t).sum() for w, t in zip(weights, (output, h_n), strict=True))
    names, parameters = zip(*net.named_parameters(), strict=True)
    slopes = torch.autograd.grad(value, (x, h0, *parameters))
    names = ("output", "h_n", "x", "h0", *names)
    return dict(zip(names, (output.detach(), h_n.detach(), *slopes), strict=True))


assert_same = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
