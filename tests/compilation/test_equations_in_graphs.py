"""`root`, `fixed_point` and `minimize` inside one compiled graph."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import implicit_solvers as ims

from .comparison import agree

DTYPES = [torch.float64, torch.float32]


def drawn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def system(z, x, W):
    return torch.tanh(z @ W.T) + z - x


def contraction(z, x, W):
    return torch.tanh(z @ W.T) + x


LANES = {"batch_dims": 1, "in_dims": (0, None), "on_failure": "mask"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_newton_in_lanes(dtype):
    x, W = drawn(5, 4, dtype=dtype), 0.3 * drawn(4, 4, seed=1, dtype=dtype)
    agree(
        lambda x, W: ims.root(system, torch.zeros_like(x), (x, W), solver=ims.Newton(), **LANES),
        (x, W),
        backend="aot_eager" if dtype == torch.float64 else "eager",
    )


def test_newton_halves_its_steps():
    # from 3 the full step of arctan leads away
    def run(x):
        start = torch.full_like(x, 3.0)
        return ims.root(
            lambda z, x: torch.arctan(z) - x,
            start,
            (x,),
            solver=ims.Newton(),
            batch_dims=1,
            in_dims=(0,),
            on_failure="mask",
        )

    agree(run, (0.1 * drawn(4, 1),))


def test_one_lane_and_a_pytree():
    def run(a, b):
        def fn(z, a, b):
            return {"u": z["u"] ** 3 + z["v"].sum() - a, "v": z["v"] + b * z["u"]}

        start = {"u": torch.ones_like(a), "v": torch.zeros_like(b)}
        sol = ims.root(fn, start, (a, b), solver=ims.Newton(), on_failure="mask")
        flat = torch.cat([sol.value["u"].reshape(1), sol.value["v"]])
        return ims.Solution(flat, sol.converged, sol.iterations, sol.residual, sol.status)

    agree(run, (torch.tensor(2.0, dtype=torch.float64), 0.1 * drawn(3)))


@pytest.mark.parametrize("solver", [ims.FixedPointIteration(), ims.Anderson()])
def test_fixed_points_of_a_module(solver):
    cell = nn.Linear(4, 4).double()
    nn.init.orthogonal_(cell.weight, 0.5)
    layer = ims.nn.FixedPoint(
        lambda z, x: torch.tanh(cell(z) + x),
        solver=solver,
        batch_dims=1,
        on_failure="mask",
        return_solution=True,
    )
    agree(layer, (drawn(5, 4),), list(cell.parameters()), backend="aot_eager")


def root_of_square(x, w, **options):
    """Lanes ``z**2 + w**2 x z = x``: of NaN or negative ``x`` have no root, and fail alone."""

    def fn(z, x, w):
        return z**2 + w**2 * x * z - x

    options = {"solver": ims.Newton(max_steps=30), "on_failure": "mask", **options}
    return ims.root(fn, torch.ones_like(x), (x, w), batch_dims=1, in_dims=(0, None), **options)


def test_lanes_that_fail_have_no_part_in_gradients():
    x = torch.tensor([[2.0], [float("nan")], [-9.0], [5.0]], dtype=torch.float64)
    w = torch.tensor([0.3], dtype=torch.float64)
    (sol, (gx, gw)), _ = agree(root_of_square, (x, w), backend="aot_eager", steps=0)
    assert sol.status.tolist()[1] == ims.Status.NONFINITE
    assert not sol.converged[2]
    assert gx[1:3].flatten().tolist() == [0.0, 0.0]
    alone = agree(root_of_square, (x[[0, 3]], w))[0][1]
    torch.testing.assert_close(gw, alone[1])


@pytest.mark.parametrize("value, w", [(float("nan"), 0.3), (-9.0, 0.3), (2.0, float("nan"))])
def test_gradients_are_zero_where_every_lane_fails(value, w):
    x, w = torch.full((2, 1), value, dtype=torch.float64), torch.tensor([w], dtype=torch.float64)
    (sol, gradients), _ = agree(root_of_square, (x, w))
    assert not sol.converged.any()
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("z0, x", [(1.0, float("nan")), (1.0, -9.0)])
def test_gradients_are_zero_where_the_only_lane_fails(z0, x):
    w = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def run(x):
        start = torch.full_like(x, z0)
        return ims.root(
            lambda z, x: z**2 + w * z - x,
            start,
            (x,),
            solver=ims.Newton(max_steps=30),
            on_failure="mask",
        )

    (sol, gradients), _ = agree(run, (torch.tensor(x, dtype=torch.float64),), (w,))
    assert not sol.converged
    assert [float(g) for g in gradients] == [0.0, 0.0]


def test_a_diverging_fixed_point():
    def run(a):
        return ims.fixed_point(
            lambda z, a: a * z + 1,
            torch.zeros_like(a),
            (a,),
            solver=ims.FixedPointIteration(max_steps=60),
            batch_dims=1,
            in_dims=(0,),
            on_failure="mask",
        )

    a = torch.tensor([[0.5], [2.0], [-0.3]], dtype=torch.float64)
    (sol, (g,)), _ = agree(run, (a,))
    assert sol.converged.tolist() == [True, False, True]
    assert float(g[1]) == 0.0


@pytest.mark.parametrize("steps", [4, 40])
def test_a_budget_of_steps(steps):
    solver = ims.FixedPointIteration(max_steps=steps, rtol=None)

    def run(x, W):
        options = {"solver": solver, **LANES}
        return ims.fixed_point(contraction, torch.zeros_like(x), (x, W), **options)

    (sol, _), _ = agree(run, (drawn(3, 4), 0.2 * drawn(4, 4, seed=1)))
    assert sol.status.tolist() == [ims.Status.BUDGET] * 3


@pytest.mark.parametrize(
    "adjoint",
    [
        ims.ImplicitAdjoint(ims.GMRES()),
        ims.OneStepAdjoint(),
        pytest.param(ims.ImplicitAdjoint(ims.BiCGStab()), marks=pytest.mark.nightly),
    ],
)
def test_adjoints(adjoint):
    def run(x, W):
        options = {"solver": ims.FixedPointIteration(), "adjoint": adjoint, **LANES}
        return ims.fixed_point(contraction, torch.zeros_like(x), (x, W), **options)

    agree(run, (drawn(3, 4), 0.2 * drawn(4, 4, seed=1)), factor=1e3)


@pytest.mark.nightly
def test_a_minimum_by_gradient_descent_and_conjugate_gradients():
    def run(x, w):
        return ims.minimize(
            lambda z, x, w: ((z - x) ** 2).sum(-1) + w * (z**4).sum(-1),
            torch.zeros_like(x),
            (x, w),
            solver=ims.GradientDescent(0.1),
            adjoint=ims.ImplicitAdjoint(ims.CG()),
            **LANES,
        )

    agree(run, (drawn(3, 4), torch.tensor(0.2, dtype=torch.float64)), factor=1e3)


def test_auxiliary_outputs():
    def run(x, W):
        def fn(z, x, W):
            return system(z, x, W), (z * x).sum()

        sol = ims.root(fn, torch.zeros_like(x), (x, W), solver=ims.Newton(), has_aux=True, **LANES)
        return ims.Solution(
            sol.value * sol.aux, sol.converged, sol.iterations, sol.residual, sol.status
        )

    agree(run, (drawn(3, 4), 0.2 * drawn(4, 4, seed=1)))


def test_captured_tensors_made_inside_of_the_graph():
    cell = nn.Linear(4, 4).double()

    def run(x, W):
        scaled, W2 = x * 2, 0.5 * W
        return ims.root(
            lambda z: torch.tanh(torch.nn.functional.linear(z, W2)) + z - cell(scaled),
            torch.zeros_like(x),
            solver=ims.Newton(),
            on_failure="mask",
        )

    agree(run, (drawn(2, 4), 0.2 * drawn(4, 4, seed=1)), list(cell.parameters()))


def test_batches_of_any_size_share_a_graph():
    counter = CompileCounterWithBackend("aot_eager")

    def run(x, W):
        return ims.root(system, torch.zeros_like(x), (x, W), solver=ims.Newton(), **LANES)

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    W = 0.2 * drawn(4, 4, seed=1)
    for lanes in (3, 7, 12):
        x = drawn(lanes, 4)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x, W).value, run(x, W).value)
    assert counter.frame_count == 1


def test_nothing_is_differentiated_without_grad():
    def run(x, W):
        return ims.root(system, torch.zeros_like(x), (x, W), solver=ims.Newton(), **LANES)

    x, W = drawn(3, 4), 0.2 * drawn(4, 4, seed=1).requires_grad_()
    with torch.no_grad():
        out = torch.compile(run, fullgraph=True, backend="aot_eager")(x, W)
    assert not out.value.requires_grad
    torch.testing.assert_close(out.value, run(x, W).value.detach())


def test_a_root_without_a_solver_is_found_by_the_dogleg():
    x = torch.linspace(0.5, 2.0, 6, dtype=torch.float64).reshape(3, 2)

    def layer(x, solver=None):
        fn = lambda z, x: z**3 + z - x
        options = {"batch_dims": 1, "in_dims": (0,), "on_failure": "mask"}
        return ims.root(fn, torch.zeros_like(x), (x,), solver=solver, **options)

    (traced, gradients), _ = agree(layer, (x,), steps=3)
    assert torch.equal(traced.iterations, layer(x, ims.Dogleg(reuse=0)).iterations)
    # of the loss in `evaluated`
    z, weights = traced.value, torch.linspace(0.5, 1.5, 6, dtype=torch.float64).reshape(3, 2)
    torch.testing.assert_close(gradients[0], 2 * weights * z / (3 * z**2 + 1))
    agree(lambda x: layer(x, ims.Dogleg()), (x,))


def test_a_solver_made_inside_of_the_graph():
    def layer(x):
        options = {"batch_dims": 1, "in_dims": (0,), "on_failure": "mask"}
        fn = lambda z, x: z**3 + z - x
        return ims.root(fn, torch.zeros_like(x), (x,), solver=ims.Chord(), **options)

    agree(layer, (torch.linspace(0.1, 0.3, 6, dtype=torch.float64).reshape(3, 2),))


@pytest.mark.nightly
@pytest.mark.parametrize("inner", [ims.GMRES(), ims.BiCGStab(), ims.LSMR()])
def test_newton_krylov(inner):
    solver = ims.Newton(linear_solver=inner)
    x, W = drawn(5, 4), 0.3 * drawn(4, 4, seed=1)
    agree(
        lambda x, W: ims.root(system, torch.zeros_like(x), (x, W), solver=solver, **LANES),
        (x, W),
    )
