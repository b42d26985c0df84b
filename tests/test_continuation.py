"""Paths: through folds and along them, their ends' derivatives, and how lanes on them end."""

import math

import pytest
import torch
from torch.func import grad, hessian, jacfwd, vmap

import implicit_solvers as ims
from implicit_solvers import Continuation, Status
from implicit_solvers.testing import problems

F32, F64 = torch.float32, torch.float64
MASK = {"on_failure": "mask"}


def tensor(values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def cubic(z, t, a):
    """The path turns back at ``z = sqrt(a)``, and forward again at ``z = -sqrt(a)``."""
    return z**3 - 3 * a * z + 6 * t - 3


def end(a):
    """Return the only root at ``t = 1``, by Viete's formula."""
    return -2 * a.sqrt() * torch.cosh(torch.acosh(1.5 * a**-1.5) / 3)


SLOPES = tensor([1.0, 0.9, math.nan, 1.1, 0.3])
STARTS = tensor([2.1038, 2.0, 2.0, 2.2, 1.5])


@pytest.mark.parametrize("dtype", [F64, F32])
def test_arclength_passes_folds_and_the_parameter_alone_does_not(dtype):
    a = tensor(1.0, dtype)
    sol = ims.continuation(cubic, tensor(2.1, dtype), (a,))
    # the tolerance, and the rounding of the cubic
    torch.testing.assert_close(sol.value, end(a), rtol=4 * torch.finfo(dtype).eps ** 0.75, atol=0)
    solver = Continuation(arclength=False)
    sol = ims.continuation(cubic, tensor(2.1, dtype), (a,), solver=solver, **MASK)
    assert int(sol.status) == Status.STALLED
    # it came to the fold, where t = 5 / 6, and is judged at t = 1
    assert abs(float(sol.value) - 1) < 0.1 and float(sol.residual) == pytest.approx(1, abs=0.05)


def test_derivatives_are_those_of_the_end():
    solve = lambda a: ims.continuation(cubic, tensor(2.1), (a,)).value
    a = tensor(1.0)
    assert float(grad(solve)(a)) == pytest.approx(float(grad(end)(a)), rel=1e-10)
    for second in (hessian, lambda f: jacfwd(jacfwd(f))):
        assert float(second(solve)(a)) == pytest.approx(float(second(end)(a)), rel=1e-8)
    captured = tensor(1.0).requires_grad_()
    sol = ims.continuation(lambda z, t: cubic(z, t, captured), tensor(2.1))
    (slope,) = torch.autograd.grad(sol.value, captured)
    assert float(slope) == pytest.approx(float(grad(end)(a)), rel=1e-10)


def test_memory_does_not_grow_with_the_path():
    def saved(first_step):
        sizes = []
        pack = lambda t: sizes.append(t.numel()) or t
        a = tensor(1.0).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            solver = Continuation(first_step=first_step)
            sol = ims.continuation(cubic, tensor(2.1), (a,), solver=solver)
        return sol.iterations, sum(sizes)

    (few, small), (many, large) = saved(0.1), saved(1e-6)
    assert many > few + 20 and large == small


@pytest.mark.parametrize("way", ["vmap", "in_dims", "native"])
def test_lanes_go_each_its_own_way(way):
    def solve(z, a, **options):
        return ims.continuation(cubic, z, (a,), **options, **MASK)

    if way == "vmap":
        sol = vmap(solve)(STARTS, SLOPES)
    else:
        sol = solve(STARTS, SLOPES, batch_dims=1, in_dims=0 if way == "in_dims" else None)
    codes = [Status.NONFINITE if i == 2 else Status.CONVERGED for i in range(5)]
    assert sol.status.tolist() == codes
    good = [i for i in range(5) if i != 2]
    for i in good:
        alone = solve(STARTS[i], SLOPES[i])
        torch.testing.assert_close(sol.value[i], alone.value)
        assert abs(int(sol.iterations[i]) - int(alone.iterations)) <= 1
    torch.testing.assert_close(sol.value[good], end(SLOPES[good]), rtol=1e-10, atol=0)


@pytest.mark.parametrize("unit", [1e-8, 1.0, 2.0**40])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_no_unit_enters(unit, scale):
    a = tensor(1.0)
    sol = ims.continuation(lambda z, t: scale * cubic(z / unit, t, a), tensor(2.1 * unit))
    plain = ims.continuation(cubic, tensor(2.1), (a,))
    assert int(sol.iterations) == int(plain.iterations)
    assert float(sol.value) == pytest.approx(unit * float(end(a)), rel=1e-11)


# -- Bratu's equation, u'' + lambda e^u = 0, u(0) = u(1) = 0: two branches that meet in a fold ----


def bratu(u, strength):
    padded = torch.nn.functional.pad(u, (1, 1))
    bend = 2 * u - padded[..., :-2] - padded[..., 2:]
    return bend * (u.shape[-1] + 1) ** 2 - strength.unsqueeze(-1) * torch.exp(u)


def closed(height):
    """Return the strength at which ``u(1/2)`` is ``height``, in closed form."""
    theta = torch.acosh(torch.exp(height / 2))
    return 8 * theta**2 / torch.cosh(theta) ** 2


def extrapolated(fine, coarse):
    """Return the limit of two grids, of which one has half of the other's spacing."""
    return (4 * fine - coarse) / 3


@pytest.mark.parametrize("height", [0.5, 1.18, 4.0])
def test_both_branches_of_bratu(height):
    """The amplitude leads along both, through the fold at 3.5138, and so does its derivative."""

    def strength(height, n):
        def fn(z, t, height):
            u, strength = z
            return bratu(u, strength), u[n // 2] - t * height

        z0 = torch.zeros(n, dtype=F64), tensor(0.0)
        return ims.continuation(fn, z0, (height,)).value[1]

    height = tensor(height)
    for of in (lambda f: f, grad):
        fine, coarse = (of(lambda h, n=n: strength(h, n))(height) for n in (63, 31))
        # spacing^4 = 6e-8, times a high derivative of a peak
        assert abs(float(extrapolated(fine, coarse) - of(closed)(height))) < 5e-6


def test_up_to_the_fold_and_no_further():
    solve = lambda most, **options: ims.continuation(
        lambda u, t: bratu(u, most * t), torch.zeros(31, dtype=F64), **options, **MASK
    )
    sol = solve(3.5)
    assert bool(sol.converged) and float(sol.value.max()) == pytest.approx(1.087, abs=5e-3)
    # the largest strength that it came to has the height of the fold; along arclength, nearly
    for arclength, off in ((False, 2e-3), (True, 0.3)):
        sol = solve(4.0, solver=Continuation(arclength=arclength, max_steps=300))
        assert int(sol.status) in (Status.STALLED, Status.MAX_STEPS)
        assert float(sol.value.max()) == pytest.approx(1.1868, abs=off)


@pytest.mark.parametrize("name", ["freudenstein-roth", "freudenstein-roth-far"])
def test_a_root_that_the_default_does_not_find_from_its_start(name):
    """It ends in a local minimum of ``|f|``, as all but Broyden do; the path turns back."""
    problem = next(p for p in problems.ALL if p.name == name)
    z0, theta = problem.start(), problem.theta()
    first = problem.fn(z0, theta)

    def fn(z, t, theta):
        return problem.fn(z, theta) - (1 - t) * first

    assert not bool(ims.root(problem.fn, z0, (theta,), **MASK).converged)
    theta.requires_grad_()
    sol = ims.continuation(fn, z0, (theta,))
    torch.testing.assert_close(sol.value, tensor([5.0, 4.0]), rtol=1e-10, atol=0)
    known = ims.attach(problem.fn, tensor([5.0, 4.0]), (theta,))
    ours, exact = (torch.autograd.grad(z[0], theta)[0] for z in (sol.value, known))
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)


# -- how lanes end ------------------------------------------------------------------------------

ENDS = {
    "the end is a fold": (lambda z, t: z**2 - 1 + t, Status.STALLED, Status.SINGULAR),
    "a fold before the end": (lambda z, t: z**2 - 1 + 1.1 * t, Status.MAX_STEPS),
    "no root at the start": (lambda z, t: z**2 + 1, Status.SINGULAR, Status.STALLED),
    "a pole": (lambda z, t: z * (1 - t) - 1, Status.MAX_STEPS, Status.STALLED, Status.SINGULAR),
    "not defined at the start": (lambda z, t: torch.log(z - 2) + t, Status.NONFINITE),
    "not defined beyond": (lambda z, t: z - torch.sqrt(0.5 - t), Status.STALLED, Status.SINGULAR),
}


@pytest.mark.parametrize("name", ENDS)
def test_lanes_without_an_end_fail(name):
    fn, *codes = ENDS[name]
    for arclength in (True, False):
        solver = Continuation(arclength=arclength, max_steps=200)
        sol = ims.continuation(fn, tensor(1.0), solver=solver, **MASK)
        assert int(sol.status) in (*codes, Status.STALLED) and bool(torch.isfinite(sol.value))
    with pytest.raises(ims.ConvergenceError, match="continuation of fn failed"):
        named = {"fn": fn}["fn"]
        named.__name__ = "fn"
        ims.continuation(named, tensor(1.0), solver=solver)


def test_a_tree_with_aux():
    def fn(z, t):
        a, b = z["a"], z["b"]
        return {"a": cubic(a, t, 1.0), "b": b - t * a.sum()}, 2 * b

    start = {"a": tensor([2.1]), "b": tensor([[0.0, 1.0]])}
    sol = ims.continuation(fn, start, has_aux=True)
    root = end(tensor(1.0))
    torch.testing.assert_close(sol.value, {"a": root.expand(1), "b": root.expand(1, 2)})
    torch.testing.assert_close(sol.aux, 2 * root.expand(1, 2))


@pytest.mark.parametrize("gap", [0.3, 0.1, 0.01])
@pytest.mark.parametrize("arclength", [True, False])
def test_short_steps_tell_a_branch_apart_that_comes_near(gap, arclength):
    """The hyperbola ``z^2 = (2 t - 1)^2 + gap^2`` stays below zero."""
    path = lambda z, t: z**2 - (2 * t - 1) ** 2 - gap**2
    end = -torch.tensor(1 + gap**2, dtype=F64).sqrt()
    solver = Continuation(arclength=arclength, max_length=gap / 2)
    torch.testing.assert_close(ims.continuation(path, end, solver=solver).value, end)
