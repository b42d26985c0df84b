"""Hyperparameters that make no sense are refused by every solver, by name."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import implicit_solvers as ims


def made(name, **options):
    first = (torch.optim.Adam,) if name == "TorchOptimizer" else ()
    return getattr(ims, name)(*first, **options)


FIELDS = {
    name: {field.name for field in dataclasses.fields(getattr(ims, name))}
    for name in ims.__all__
    if dataclasses.is_dataclass(getattr(ims, name))
}
ITERATIVE = sorted(name for name, fields in FIELDS.items() if {"rtol", "max_steps"} <= fields)
POSITIVE, SHARE, COUNT = (0.0, -1.0, math.nan), (0.0, -0.5, 1.5, math.nan), (-1, 2.5, True)
NO_NUMBER = (torch.tensor(1e-3), "1e-3", True)
RANGES = {
    "rtol": (-1e-9, math.nan, *NO_NUMBER),
    **dict.fromkeys(("atol", "f_atol"), (-1e-9, math.nan, None, *NO_NUMBER)),
    "max_steps": (-1, 10.0),
    "max_trials": (-1, 10.0),
    "damping": SHARE,
    **dict.fromkeys(
        ("window", "memory", "restart", "check_every", "chunk_size", "max_products"), (0, *COUNT)
    ),
    **dict.fromkeys(("halvings", "expansions", "shrinks", "widest"), COUNT),
    **dict.fromkeys(("first_radius", "reach", "lr", "growth"), POSITIVE),
    "regularization": (-1e-9, math.nan),
    "momentum": (-0.1, 1.0, math.nan),
    "rcond": (-1e-9, 1.0, math.nan),
    "shrink": (0.0, 1.0, math.nan),
    "decrease": (0.0, 0.5, math.nan),
    "curvature": (0.0, 1.0, math.nan),
}
WHOLE = {field for field, values in RANGES.items() if any(type(v) is int for v in values)}
OWN = [(name, field) for name, fields in FIELDS.items() for field in sorted(fields & {*RANGES})]


def test_the_tables_reach_every_solver():
    # (two are what the others have in common)
    assert len(ITERATIVE) == 34 and "TorchOptimizer" in ITERATIVE
    assert {field for _, field in OWN} == set(RANGES)


@pytest.mark.parametrize(("name", "field"), OWN)
def test_ranges(name, field):
    for value in RANGES[field]:
        kind = int if field in WHOLE else float
        error = ValueError if type(value) is kind or value == 0 else TypeError
        with pytest.raises(error, match=f"{name} has {field}=.*: pass ") as caught:
            made(name, **{field: value})
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ITERATIVE)
def test_what_is_at_the_end_of_a_range_is_taken(name):
    assert made(name, rtol=None, atol=0, max_steps=0).rtol is None
    given = {"rtol": np.float32(1e-3), "atol": np.float64(0), "max_steps": np.int64(3)}
    assert all(getattr(made(name, **given), field) == value for field, value in given.items())
    ends = {"Anderson": {"window": 1, "damping": 1, "regularization": 0, "growth": 0.5}}
    ends |= {"Newton": {"halvings": 0}, "Bisection": {"expansions": 0}, "GMRES": {"restart": 1}}
    ends |= {"GradientDescent": {"momentum": 0}}
    own = ends.get(name, {})
    assert all(getattr(made(name, **own), field) == value for field, value in own.items())
    assert ims.SVD(rcond=0).rcond == 0


@pytest.mark.parametrize("name", ["Newton", "Dogleg", "LevenbergMarquardt", "GaussNewton"])
def test_a_linear_solver_that_is_none(name):
    wanted = r"as LU\(\)" if name == "Newton" else r"as CG\(\)"
    for value in (ims.LU, "LU", 3):
        with pytest.raises(TypeError, match=f"linear_solver of {name} .*{wanted}"):
            made(name, linear_solver=value)
    made(name, linear_solver=ims.GMRES())
