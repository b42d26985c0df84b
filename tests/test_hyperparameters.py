"""Hyperparameters that make no sense are refused by every solver, by name."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import implicit_solvers as ims

ADAM = "TorchOptimizer"


def made(name, **options):
    kind = getattr(ims, name)
    if kind is ims.TorchOptimizer:
        return kind(torch.optim.Adam, **options)
    return kind(**options)


ITERATIVE = sorted(
    name
    for name in ims.__all__
    if dataclasses.is_dataclass(getattr(ims, name))
    and {"rtol", "max_steps"} <= {f.name for f in dataclasses.fields(getattr(ims, name))}
)
POSITIVE, SHARE, COUNT = (0.0, -1.0, math.nan), (0.0, -0.5, 1.5, math.nan), (-1, 2.5, True)
RANGES = {
    "damping": SHARE,
    "window": (0, *COUNT),
    "memory": (0, *COUNT),
    "restart": (0, *COUNT),
    "check_every": (0, *COUNT),
    "max_products": (0, *COUNT),
    "halvings": COUNT,
    "expansions": COUNT,
    "shrinks": COUNT,
    "widest": COUNT,
    "first_radius": POSITIVE,
    "reach": POSITIVE,
    "lr": POSITIVE,
    "growth": POSITIVE,
    "regularization": (-1e-9, math.nan),
    "momentum": (-0.1, 1.0, math.nan),
    "rcond": (-1e-9, 1.0, math.nan),
    "shrink": (0.0, 1.0, math.nan),
    "decrease": (0.0, 0.5, math.nan),
    "curvature": (0.0, 1.0, math.nan),
}
OWN = [
    (name, field.name, value)
    for name in ims.__all__
    if dataclasses.is_dataclass(getattr(ims, name))
    for field in dataclasses.fields(getattr(ims, name))
    for value in RANGES.get(field.name, ())
]


def test_the_tables_reach_every_solver():
    assert len(ITERATIVE) == 22 and ADAM in ITERATIVE
    assert {field for _, field, _ in OWN} == set(RANGES)


@pytest.mark.parametrize("name", ITERATIVE)
def test_tolerances_and_steps(name):
    for field, value in [("rtol", -1e-9), ("rtol", math.nan), ("atol", -1e-9), ("atol", math.nan)]:
        with pytest.raises(ValueError, match=rf"{name} has {field}={value!r}: pass a number >= 0"):
            made(name, **{field: value})
    for value in (torch.tensor(1e-3), "1e-3", True):
        with pytest.raises(TypeError, match=f"{name} has rtol=.*: pass a number >= 0"):
            made(name, rtol=value)
    with pytest.raises(TypeError, match=f"{name} has atol=None"):
        made(name, atol=None)
    with pytest.raises(ValueError, match=rf"{name} has max_steps=-1: pass a whole number >= 0"):
        made(name, max_steps=-1)
    with pytest.raises(TypeError, match=f"{name} has max_steps=10.0, of type float"):
        made(name, max_steps=10.0)
    made(name, rtol=None, atol=0, max_steps=0)
    made(name, rtol=np.float32(1e-3), atol=np.float64(0), max_steps=np.int64(3))


@pytest.mark.parametrize(("name", "field", "value"), OWN)
def test_ranges(name, field, value):
    with pytest.raises((ValueError, TypeError), match=f"{name} has {field}=.*: pass "):
        made(name, **{field: value})


def test_what_is_at_the_end_of_a_range_is_taken():
    ims.Anderson(window=1, damping=1, regularization=0, growth=0.5)
    ims.Newton(halvings=0)
    ims.Bisection(expansions=0)
    ims.GradientDescent(momentum=0)
    ims.GMRES(restart=1)
    ims.SVD(rcond=0)


@pytest.mark.parametrize("value", [0, -2, 1.5, True])
def test_a_checkpoint_that_is_none(value):
    with pytest.raises((ValueError, TypeError), match=f"UnrolledAdjoint has checkpoint={value}"):
        ims.UnrolledAdjoint(checkpoint=value)


@pytest.mark.parametrize("name", ["Newton", "Dogleg", "LevenbergMarquardt", "GaussNewton"])
@pytest.mark.parametrize("value", [ims.LU, "LU", 3])
def test_a_linear_solver_that_is_none(name, value):
    wanted = r"as LU\(\)" if name == "Newton" else r"as CG\(\)"
    with pytest.raises(TypeError, match=f"{name} has linear_solver=.*{wanted}"):
        made(name, linear_solver=value)
    made(name, linear_solver=ims.GMRES())
