"""Every solver in one compiled graph, and with compiled steps: what it finds stays what it was."""

import functools

import pytest
import torch

import implicit_solvers as ims

from .comparison import agree, compare_lanes, evaluated, nightly_but
from .systems import ROWS

DAILY = {"Newton", "FixedPointIteration", "of one's own", "LBFGS", "fit, GaussNewton"}
# rows that go through AOTAutograd as well: as graphs, and as steps
DERIVATIVES = {"FixedPointIteration", "Broyden, LU", "Newton, GMRES", "Dogleg", "fit, Dogleg"}
STEPS_DERIVATIVES = {"Chord", "Broyden", "Bisection", "Backtracking"}


def backend(name, derivatives):
    return "aot_eager" if name in derivatives else "eager"


@pytest.mark.parametrize("name", nightly_but(DAILY, ROWS))
def test_lanes_in_one_graph(name, graphs):
    system, solver = ROWS[name].problem, ROWS[name].solver()
    run = system.run(solver)
    compiled = torch.compile(run, fullgraph=True, backend=backend(name, DERIVATIVES))
    inputs, per_lane = system.data(7), (True, False)
    # trust regions decide by comparisons that rounding can turn
    steps = 0 if "Dogleg" not in name and "Levenberg" not in name else 1
    sol = compare_lanes(compiled, run, inputs, per_lane, system.bad, steps=steps)
    assert len(sol.iterations.unique()) > 2
    assert graphs() == 1


TRUST = ["Dogleg", "LevenbergMarquardt", "fit, GaussNewton"]
BY_VARIANT = {
    "float32": ["Newton", "Broyden", "Newton, reuse", "LBFGS", "NewtonCG", *TRUST],
    "no in_dims": ["FixedPointIteration", "Broyden", "Newton, reuse", "LBFGS"],
    # a few steps are unrolled, many are a loop
    3: ["FixedPointIteration", "Broyden, LU", "LBFGS", "NewtonCG", *TRUST],
    18: ["FixedPointIteration", "Broyden, bad", "Newton, reuse", "LBFGS", "Backtracking", *TRUST],
}
VARIANTS = [(what, name) for what, names in BY_VARIANT.items() for name in names]
DAILY_VARIANTS = [(3, "FixedPointIteration"), (18, "FixedPointIteration")]


@pytest.mark.parametrize("what, name", nightly_but(DAILY_VARIANTS, VARIANTS))
def test_variants_in_one_graph(what, name):
    system, solver = ROWS[name].problem, ROWS[name].solver
    x, w = system.data(7)
    x = x[4:]
    if what == "float32":
        agree(system.run(solver(), batch_dims=0, in_dims=None), (x[0].float(), w.float()))
    elif what == "no in_dims":
        agree(system.run(solver(), in_dims=None), (x, w), steps=0)
    else:
        run = system.run(solver(rtol=None, max_steps=what))
        if name in TRUST:
            # their gradients are those of an implicit function only where a root was reached
            with torch.no_grad():
                sol, expected = torch.compile(run, fullgraph=True)(x, w), run(x, w)
            torch.testing.assert_close(sol.value, expected.value, rtol=1e-9, atol=1e-9)
        else:
            sol, _ = agree(run, (x, w), steps=0)
        assert sol.status.tolist() == [ims.Status.BUDGET] * 3
        assert sol.iterations.tolist() == [what] * 3


DAILY_STEPS = {"Anderson", "of one's own"}


@pytest.mark.parametrize("name", nightly_but(DAILY_STEPS, ROWS))
def test_compiled_steps(name, graphs, monkeypatch):
    """Lanes leave one after the other."""
    compiling = functools.partial(torch.compile, backend=backend(name, STEPS_DERIVATIVES))
    monkeypatch.setattr(torch, "compile", compiling)
    system, solver = ROWS[name].problem, ROWS[name].solver
    inputs, per_lane = system.data(20), (True, False)
    runs = [system.run(solver(compile=compiled)) for compiled in (True, False)]
    # where a count differs, or a decision of a trust region, both are within the tolerance
    sol = compare_lanes(*runs, inputs, per_lane, system.bad, factor=1e3)
    assert len(sol.iterations.unique()) > 2
    # the whole batch, and smaller powers of two
    assert 1 <= graphs() <= 4


EVERY = [(name, *case) for name in ROWS for case in [(3, True), (7, False), (1000, True)]]
DAILY_EVERY = {(name, 3, True) for name in ("Chord", "Anderson", "LevenbergMarquardt")}
DAILY_EVERY |= {(name, 7, False) for name in ("Newton", "FixedPointIteration", "Chandrupatla")}


@pytest.mark.parametrize("name, every, compact", nightly_but(DAILY_EVERY, EVERY))
def test_results_do_not_depend_on_check_every(name, every, compact):
    system, solver = ROWS[name].problem, ROWS[name].solver
    x, w = system.data(20)
    options = {"compact": compact}
    with torch.no_grad():
        one, several = (system.run(solver(check_every=k, **options))(x, w) for k in (1, every))
    assert torch.equal(one.status, several.status)
    # a lane that stalls in a minimum of |F| moves by rounding, which the number of lanes changes
    moved = one.status != int(ims.Status.STALLED)
    assert torch.equal(one.iterations[moved], several.iterations[moved])
    close = {"atol": 1e-12, "equal_nan": True}
    torch.testing.assert_close(one.value[moved], several.value[moved], rtol=1e-12, **close)
    torch.testing.assert_close(one.residual, several.residual, rtol=1e-6, **close)


# nothing judges where their steps end, so that no lane goes on from there
STEPWISE = {"Anderson", "Aitken", "FISTA", "ProximalGradient", "of one's own"}


@pytest.mark.parametrize("name", nightly_but(DAILY | {"Anderson"}, ROWS))
def test_chunks_are_the_whole(name):
    system, solver = ROWS[name].problem, ROWS[name].solver
    inputs, found = system.data(20), []
    for size in (None, 7):
        with ims.monitor(history=True) as log:
            found.append((*evaluated(system.run(solver(chunk_size=size)), inputs), log.records))
    (whole, gradients, records), (parts, others, several) = found
    assert torch.equal(whole.status, parts.status)
    assert torch.equal(whole.iterations, parts.iterations)
    # products of batches of other sizes are rounded otherwise, and minima of |F| are flat
    close = {"rtol": 1e-8, "atol": 1e-9, "equal_nan": True}
    for field in ("value", "residual", "error"):
        torch.testing.assert_close(getattr(whole, field), getattr(parts, field), **close)
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    for one, other in zip(records, several, strict=True):
        assert (one.equation, one.solver, one.lanes) == (other.equation, other.solver, other.lanes)
        assert torch.equal(one.status, other.status)
    if name in STEPWISE:
        for a, b in zip(*(r[0].history.residuals() for r in (records, several)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)
