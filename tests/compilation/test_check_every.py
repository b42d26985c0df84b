"""``check_every``: convergence is asked for now and then, and nothing else changes."""

import pytest
import torch

import implicit_solvers as ims


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def system(z, x, W):
    return torch.tanh(z @ W.T) + z - x


def contraction(z, x, W):
    return torch.tanh(z @ W.T) + x


SOLVERS = {
    "Newton": (ims.root, system, ims.Newton),
    "Chord": (ims.root, system, ims.Chord),
    "FixedPointIteration": (ims.fixed_point, contraction, ims.FixedPointIteration),
    "Anderson": (ims.fixed_point, contraction, ims.Anderson),
}


def solve(name, x, W, **options):
    equation, fn, solver = SOLVERS[name]
    return equation(
        fn,
        torch.zeros_like(x),
        (x, W),
        solver=solver(**options),
        batch_dims=1,
        in_dims=(0, None),
        on_failure="mask",
    )


def same(a, b):
    assert torch.equal(a.status, b.status)
    assert torch.equal(a.iterations, b.iterations)
    torch.testing.assert_close(a.value, b.value, rtol=1e-13, atol=1e-13, equal_nan=True)
    torch.testing.assert_close(a.residual, b.residual, rtol=1e-6, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("every", [2, 3, 7, 1000])
@pytest.mark.parametrize("name", SOLVERS)
def test_results_do_not_depend_on_it(name, every, compact):
    x = torch.logspace(-3, 0.5, 20, dtype=torch.float64).unsqueeze(-1) * drawn(20, 4)
    x[3] = torch.nan
    W = 0.3 * drawn(4, 4, seed=1)
    options = {"compact": compact, "max_steps": 40}
    same(solve(name, x, W, check_every=every, **options), solve(name, x, W, **options))


@pytest.mark.parametrize("solver", [ims.CG, ims.MINRES, ims.GMRES, ims.BiCGStab])
def test_linear_solvers(solver):
    R = drawn(6, 6)
    A = ims.MatrixOperator(R @ R.T + torch.eye(6, dtype=torch.float64), positive_definite=True)
    b = drawn(6, seed=1)
    one, five = (ims.linear_solve(A, b, solver=solver(check_every=k)) for k in (1, 5))
    same(five, one)


def test_gradient_descent():
    x = drawn(5, 3)

    def run(every):
        return ims.minimize(
            lambda z, x: ((z - x) ** 2).sum(-1),
            torch.zeros_like(x),
            (x,),
            solver=ims.GradientDescent(0.1, check_every=every),
            batch_dims=1,
            in_dims=(0,),
        )

    same(run(4), run(1))


@pytest.mark.parametrize("every, error", [(0, ValueError), (1.5, TypeError)])
def test_an_unfit_number_is_refused(every, error):
    with pytest.raises(error, match="check_every"):
        ims.Newton(check_every=every)


def test_questions_are_few():
    """Count how often a value is read on the host: by ``__bool__``, ``__int__``, ``nonzero``."""

    class Counter(torch.overrides.TorchFunctionMode):
        asked = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.asked += func in (torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.item)
            return func(*args, **(kwargs or {}))

    x, W = drawn(8, 4), 0.3 * drawn(4, 4, seed=1)
    counts = []
    for every in (1, 10):
        with torch.no_grad(), Counter() as counter:
            sol = solve("FixedPointIteration", x, W, check_every=every)
        counts.append(counter.asked)
    steps = int(sol.iterations.max())
    assert steps > 20
    assert counts[1] <= steps // 10 + 5 < counts[0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["Newton", "FixedPointIteration", "Anderson"])
def test_no_synchronization_between_checks(name):
    x, W = drawn(64, 4).cuda(), (0.3 * drawn(4, 4, seed=1)).cuda()
    options = {"halvings": 0} if name == "Newton" else {}
    expected = solve(name, x, W, **options)
    equation, fn, solver = SOLVERS[name]
    every = 16
    checked = solver(check_every=every, compact=False, max_steps=every, rtol=None, **options)
    start = torch.zeros_like(x)
    with torch.no_grad():
        problem = {"batch_dims": 1, "in_dims": (0, None), "on_failure": "mask"}
        equation(fn, start, (x, W), solver=checked, **problem)  # handles, workspaces
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchronizing") as caught:
                equation(fn, start, (x, W), solver=checked, **problem)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(caught) <= 8
    same(solve(name, x, W, check_every=every, **options), expected)
