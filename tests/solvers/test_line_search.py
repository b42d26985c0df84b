"""Line searches: the conditions that they promise, on functions of one variable."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

import implicit_solvers as ims
from tests.solvers.objectives import F32, F64, Functions, tensor

EPS = torch.finfo(F64).eps


def wavy(z, a, b, c, d):
    """A quartic with waves on it: bounded below, with many minima."""
    return 0.1 * a * z**4 + b * z + torch.sin(c * z + d)


coefficients = st.tuples(
    st.floats(0.01, 5.0), st.floats(-3.0, 3.0), st.floats(0.1, 6.0), st.floats(-3.0, 3.0)
)
lanes = st.lists(
    st.tuples(coefficients, st.floats(-3.0, 3.0), st.floats(-4.0, 4.0)), min_size=1, max_size=5
)


def drawn(cases):
    parameters = tensor([c[0] for c in cases]).unbind(-1)
    start, log_length = tensor([c[1:] for c in cases]).unbind(-1)
    return Functions(wavy, *parameters), start, 10**log_length


def along(functions, point, direction, found):
    """Return the lengths, and objective and slope at both ends, evaluated again by NumPy."""
    a, b, c, d = (p.numpy() for p in functions.parameters)
    ends = []
    for z in (point.z.squeeze(-1).numpy(), found.point.z.squeeze(-1).numpy()):
        value = 0.1 * a * z**4 + b * z + np.sin(c * z + d)
        slope = 0.4 * a * z**3 + b + c * np.cos(c * z + d)
        ends += [value, slope * direction.squeeze(-1).numpy()]
    length = ((found.point.z - point.z) / direction).squeeze(-1).numpy()
    return length, *ends


@given(lanes, st.sampled_from([0.1, 0.5, 0.9]))
def test_strong_wolfe_conditions_hold(cases, curvature):
    """In every lane that goes down at all, from first lengths of 1e-4 to 1e4."""
    functions, start, first = drawn(cases)
    point, direction, found = functions.search(
        ims.StrongWolfe(curvature=curvature), start, length=first
    )
    length, before, slope, after, slope_after = along(functions, point, direction, found)
    steep = -slope > 1e-10
    assert bool(found.ok.numpy()[steep].all())
    fall = -1e-4 * length * slope
    noise = EPS ** (2 / 3) * np.maximum(np.abs(before), 1)
    enough = (after <= before - fall + 1e-12 * (1 + np.abs(before))) | (
        (fall <= noise) & (after <= before + 1.1 * noise)
    )
    assert enough[steep].all()
    assert (np.abs(slope_after) <= -curvature * slope * (1 + 1e-9) + 1e-13)[steep].all()
    assert functions.count["lanes"] <= 30 * len(cases)


@given(lanes)
def test_armijo_holds_and_twice_the_length_does_not_do(cases):
    functions, start, first = drawn(cases)
    point, direction, found = functions.search(ims.Backtracking(decrease=0.4), start, length=first)
    length, before, slope, after, _ = along(functions, point, direction, found)
    for i in range(len(cases)):
        if -slope[i] <= 1e-6:
            continue
        assert bool(found.ok[i])
        halvings = math.log2(float(first[i]) / length[i])
        assert halvings > -1e-6 and abs(halvings - round(halvings)) < 1e-6
        assert after[i] <= before[i] + 0.4 * length[i] * slope[i] + 1e-10 * (1 + abs(before[i]))
        if round(halvings) == 0:
            continue
        a, b, c, d = (float(p[i]) for p in functions.parameters)
        z = float(point.z[i, 0]) + 2 * length[i] * float(direction[i, 0])
        twice = 0.1 * a * z**4 + b * z + math.sin(c * z + d)
        assert twice > before[i] + 0.8 * length[i] * slope[i] - 1e-10 * (1 + abs(before[i]))


@pytest.mark.parametrize("method", [ims.StrongWolfe(), ims.Backtracking()], ids=["wolfe", "armijo"])
@pytest.mark.parametrize("compact", [True, False], ids=["compact", "static"])
def test_lanes_are_alone(method, compact):
    generator = torch.Generator().manual_seed(0)
    draw = lambda low, high: low + (high - low) * torch.rand(
        40, generator=generator, dtype=F64
    )  # fmt: skip
    parameters = draw(0.01, 5), draw(-3, 3), draw(0.1, 6), draw(-3, 3)
    start, first = draw(-3, 3), 10 ** draw(-4, 4)
    functions = Functions(wavy, *parameters)
    _, _, batch = functions.search(method, start, length=first, compact=compact)
    spent, alone = functions.count["lanes"], 0
    for i in range(40):
        single = Functions(wavy, *(p[i : i + 1] for p in parameters))
        _, _, found = single.search(method, start[i : i + 1], length=first[i : i + 1])
        alone += single.count["lanes"]
        assert torch.allclose(found.point.z, batch.point.z[i : i + 1], rtol=1e-12, atol=1e-14), i
    assert spent <= 2 * alone if compact else spent % 40 == 0


def test_exact_search_of_a_parabola():
    """With a small share of the slope left the minimum is hit, in four evaluations at most."""
    curves = tensor([0.01, 1.0, 300.0])
    functions = Functions(lambda z, a: 0.5 * a * (z - 1) ** 2, curves)
    _, _, found = functions.search(ims.StrongWolfe(curvature=1e-3), torch.zeros(3, dtype=F64))
    assert torch.allclose(found.point.z, torch.ones(3, 1, dtype=F64), atol=1e-3)
    assert functions.count["lanes"] <= 12


def test_scipy_finds_a_length_too():
    """On the functions that SciPy's search is tested with, from the same starts."""
    cases = [
        lambda z: -z / (z**2 + 2),
        lambda z: (z + 0.004) ** 5 - 2 * (z + 0.004) ** 4,
        lambda z: torch.sqrt(1 + 1e4 * (z - 1) ** 2),
    ]
    for fn in cases:
        for first in (1e-3, 1e-1, 10.0, 1e3):
            functions = Functions(fn)
            start = torch.zeros(1, dtype=F64)
            point, _, found = functions.search(
                ims.StrongWolfe(curvature=0.1), start, torch.ones(1, dtype=F64), tensor([first])
            )
            slope = float(point.gradient)
            value = lambda x, fn=fn: float(fn(torch.as_tensor(x))[0])
            gradient = lambda x, fs=functions: fs.value_and_gradient(
                torch.from_numpy(x).unsqueeze(0)
            )[1].numpy()[0]
            theirs = scipy.optimize.line_search(
                value, gradient, np.zeros(1), np.ones(1), c2=0.1, amax=1e4
            )[0]
            assert theirs is not None and bool(found.ok)
            assert abs(float(found.point.gradient)) <= 0.1 * abs(slope)
            assert float(found.point.value) <= float(point.value) + 1e-4 * slope * float(
                found.point.z
            )


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_where_the_fall_drowns_in_rounding_slopes_judge(dtype):
    """The parabola is lost beside 1e4 with its rounding, its slope is not."""
    offset = torch.full((5,), 1e4, dtype=dtype)
    start = 1 + torch.tensor([1e-3, 1e-2, -1e-2, 2e-2, -2e-3], dtype=dtype) * (
        1e-5 if dtype == F64 else 1
    )
    functions = Functions(
        lambda z, c: (
            c * (1 + 3 * torch.finfo(dtype).eps * torch.sin(1e12 * z).detach()) + 0.5 * (z - 1) ** 2
        ),
        offset,
    )
    for method in (ims.StrongWolfe(), ims.Backtracking()):
        for first in (0.5, 1.0, 1.7):
            length = torch.full_like(start, first)
            point, _, found = functions.search(method, start, length=length)
            assert bool(found.ok.all())
            assert bool((found.point.gradient.abs() < 0.95 * point.gradient.abs()).all())


NOWHERE = {
    "linear": lambda z: -z,
    "parabola": lambda z: -(z**2),
    "cone": lambda z: -torch.sqrt(1 + z**2),
    "exponential": lambda z: -torch.exp(z),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_unbounded_line_is_no_step(name):
    functions = Functions(NOWHERE[name])
    point, _, found = functions.search(ims.StrongWolfe(), tensor([0.5, 2.0]))
    assert not bool(found.ok.any())
    assert torch.equal(found.point.z, point.z) and torch.equal(found.point.value, point.value)
    assert functions.count["lanes"] <= 60


@pytest.mark.parametrize("method", [ims.StrongWolfe(), ims.Backtracking()], ids=["wolfe", "armijo"])
def test_no_way_down(method):
    """Up the slope, along none, with NaN in the direction or the objective: the point stays."""
    functions = Functions(lambda z, c: (z - 1) ** 2 + c, tensor([0.0, 0.0, 0.0, math.nan, 0.0]))
    start, direction = torch.zeros(5, dtype=F64), tensor([-1.0, 0.0, math.nan, 1.0, 1.0])
    point, _, found = functions.search(method, start, direction)
    assert found.ok.tolist() == [False, False, False, False, True]
    assert torch.equal(found.point.z[:4], point.z[:4])


@pytest.mark.parametrize("method", [ims.StrongWolfe(), ims.Backtracking()], ids=["wolfe", "armijo"])
def test_it_comes_back_into_the_domain(method):
    functions = Functions(lambda z: z - torch.log(z) + torch.sqrt(3 - z))
    start = tensor([0.1, 0.5, 2.5])
    point, _, found = functions.search(method, start, length=tensor([1e3, 1e2, 1e4]))
    assert bool(found.ok.all()) and bool((found.point.value < point.value).all())


@pytest.mark.parametrize(
    "build, name",
    [
        (lambda: ims.StrongWolfe(decrease=0.0), "decrease"),
        (lambda: ims.StrongWolfe(decrease=0.3, curvature=0.2), "curvature"),
        (lambda: ims.StrongWolfe(curvature=1.0), "curvature"),
        (lambda: ims.StrongWolfe(max_steps=0), "max_steps"),
        (lambda: ims.Backtracking(decrease=0.5), "decrease"),
        (lambda: ims.Backtracking(shrink=1.0), "shrink"),
        (lambda: ims.Backtracking(shrink=math.nan), "shrink"),
        (lambda: ims.Backtracking(max_steps=0), "max_steps"),
    ],
    ids=["no-fall", "flat", "steep", "none", "half", "same", "nan", "zero"],
)
def test_unfit_options_are_refused(build, name):
    with pytest.raises(ValueError, match=name):
        build()
