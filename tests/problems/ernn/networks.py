"""Networks in float64 that are solved to rounding, and what is compared of them."""

import torch

import implicit_solvers as ims
from implicit_solvers.problems.ernn import ERNN, Equilibrium, Leak, Unrolled

PHIS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}
SLOPES = {"tanh": 1.0, "sigmoid": 0.25, "relu": 1.0}

# far below what is asserted, 1e-10, and above the rounding of a residual
SOLVER = ims.FixedPointIteration(rtol=3e-14, atol=3e-14)
ADJOINT = ims.ImplicitAdjoint(ims.Neumann(rtol=1e-13))
PARALLEL = Equilibrium(solver=SOLVER, adjoint=ADJOINT)
SEQUENTIAL = Equilibrium(solver=SOLVER, adjoint=ADJOINT, parallel=False)


def network(seed, inputs, hidden, *, phi="tanh", gamma=1.0, share=0.5, leak=(1.0, 1.0), **options):
    """An `ERNN` with ``slope |U| = share gamma`` and parameters that the seed draws."""
    torch.manual_seed(seed)
    return ERNN(
        inputs,
        hidden,
        nonlinearity=PHIS[phi],
        gamma=gamma,
        initial_norm=share * gamma / SLOPES[phi],
        leak=leak if isinstance(leak, Leak) else Leak(*leak),
        dtype=torch.float64,
        **options,
    )


def unrolled_like(net, steps, **options):
    """The network with the same parameters, of ``steps`` steps ``1 / gamma`` each."""
    cell = net.cells[0]
    mode = Unrolled(steps=steps, step_size=1 / cell.gamma.item(), learned=False)
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
        **options,
    )
    state = {name: p for name, p in net.state_dict().items() if "step_sizes" not in name}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and all("step_sizes" in name for name in missing)
    return other


def results(net, x, h0, seed=0):
    """Output, last state, and the gradients of a random form of both: of input, h0, parameters."""
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    output, h_n = net(x, h0)
    g = torch.Generator().manual_seed(seed)
    value = sum((t * torch.randn(t.shape, generator=g, dtype=t.dtype)).sum() for t in (output, h_n))
    names, parameters = zip(*net.named_parameters(), strict=True)
    slopes = torch.autograd.grad(value, (x, h0, *parameters))
    return {
        "output": output.detach(),
        "h_n": h_n.detach(),
        **dict(zip(("x", "h0", *names), slopes, strict=True)),
    }


def assert_same(actual, expected, rtol=1e-10, atol=1e-10):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )
