"""``check=True``: values read out of tensors, and lanes that mix."""

import warnings

import numpy as np
import pytest
import torch
from torch.func import grad

import implicit_solvers as ims
from implicit_solvers.testing import check_implicit_gradients

D = torch.float64
ONE = torch.ones((), dtype=D)
with warnings.catch_warnings():  # torch warns of it once in a process
    warnings.simplefilter("ignore")
    float(ONE.clone().requires_grad_())

READS = {
    "item()": lambda z, a: z - a.item(),
    "float()": lambda z, a: z - float(a),
    "int()": lambda z, a: z - int(a),
    "tolist()": lambda z, a: z - a.tolist(),
    "torch.tensor()": lambda z, a: z - torch.tensor(a.item(), dtype=D),
    "numpy()": lambda z, a: z - torch.from_numpy(np.atleast_1d(a.detach().numpy()))[0],
}
ORDINARY = {
    "bool()": lambda z, a: z - a if bool(a > 0) else z + a,
    "detach()": lambda z, a: z - a.detach() * a,
    "shape": lambda z, a: z - a * (1 + a.dim()),
}
try:
    grad(lambda a: a * a.tolist())(ONE)
    LISTED = True
except RuntimeError:  # torch 2.8 has no tolist() of a tensor with a gradient of torch.func
    LISTED = False
# numpy() of a tensor that requires grad is an error of torch, and detach() asked for it
READ = [name for name in READS if name != "numpy()"]


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("captured", [False, True], ids=["argument", "captured"])
@pytest.mark.parametrize("transform", [False, True], ids=["plain", "grad"])
def test_a_value_that_is_read_out_is_said(read, captured, transform):
    if read == "tolist()" and transform and not LISTED:
        pytest.skip("refused by torch")
    name = "item()" if read == "torch.tensor()" else read

    def value(a, **options):
        fn = READS[read]
        if captured:
            return ims.root(lambda z: fn(z, a), ONE, **options).value
        return ims.root(fn, ONE, (a,), **options).value

    a = torch.tensor(2.0, dtype=D, requires_grad=not transform)
    run = grad(value) if transform else value
    with pytest.warns(UserWarning, match=rf"by {name.replace('()', '')}"):
        run(a)
    strict = grad(lambda a: value(a, check=True)) if transform else lambda a: value(a, check=True)
    with pytest.raises(ValueError, match="as in torch"):
        strict(a)


@pytest.mark.parametrize("captured", [False, True], ids=["argument", "captured"])
def test_an_operator_that_reads_a_value_out_says_so(captured):
    a, b = torch.tensor(2.0, dtype=D, requires_grad=True), torch.ones(2, dtype=D)
    A = ims.JacobianOperator(lambda z, a: z * a.item() + 0 * a, b, (a,))
    if captured:
        A = ims.FunctionOperator(lambda v: (a.item() + 0 * a) * v, like=b)
    with pytest.warns(UserWarning, match=r"linear_solve with .*Operator reads .* by item\(\)"):
        ims.linear_solve(A, b)
    with pytest.raises(ValueError, match="as in torch"):
        ims.linear_solve(A, b, check=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rough = lambda v: v / a.item() + 0 * a
        ims.linear_solve(
            ims.MatrixOperator(torch.eye(2, dtype=D)), b, solver=ims.GMRES(), preconditioner=rough
        )


@pytest.mark.parametrize("name", ORDINARY)
def test_stop_gradients_and_branches_are_ordinary(name):
    a = torch.tensor(2.0, dtype=D, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ims.root(ORDINARY[name], ONE, (a,), check=True).value.backward()


@pytest.mark.parametrize("read", [name for name in READ if name != "int()"])
def test_the_gradient_check_names_the_operation(read):
    report = check_implicit_gradients(READS[read], ONE, (torch.tensor(2.5, dtype=D),))
    assert not report.passed
    assert ("item()" if read == "torch.tensor()" else read) in report.failures[0].cause


def mean_field(z, x):
    return z - 0.3 * torch.tanh(z.mean(0)) - x


def apart(z, x):
    return z - 0.3 * torch.tanh(z) - x


def mean_field_energy(z, x):
    return ((z - x) ** 2).sum(-1) + z.mean(0).sum() ** 2 / 2


@pytest.mark.parametrize("solve", [ims.root, ims.fixed_point, ims.least_squares])
def test_lanes_that_mix_are_found(solve):
    x = torch.randn(4, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    fn = (lambda z, x: z - mean_field(z, x)) if solve is ims.fixed_point else mean_field
    own = (lambda z, x: z - apart(z, x)) if solve is ims.fixed_point else apart
    options = {"batch_dims": 1, "check": True}
    with pytest.raises(ValueError, match="batch_dims=1 says .* mixes them"):
        solve(fn, torch.zeros(4, 2, dtype=D), (x,), on_failure="mask", **options)
    assert bool(solve(own, torch.zeros(4, 2, dtype=D), (x,), **options).converged.all())


def test_minima_that_mix_are_found():
    x = torch.ones(3, 2, dtype=D)
    with pytest.raises(ValueError, match="mixes them"):
        ims.minimize(mean_field_energy, 0 * x, (x,), batch_dims=1, check=True, on_failure="mask")


def test_a_lane_with_nan_is_no_mixture():
    x = torch.tensor([[1.0], [float("nan")], [2.0]], dtype=D)
    options = {"batch_dims": 1, "in_dims": 0, "check": True, "on_failure": "mask"}
    found = ims.root(apart, torch.zeros(3, 1, dtype=D), (x,), **options)
    assert found.converged.tolist() == [True, False, True]


def test_the_gradient_check_finds_lanes_that_mix():
    x = torch.randn(3, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    report = check_implicit_gradients(mean_field, 0 * x, (x,), batch_dims=1, vmap=False)
    assert any("lanes leak" in cause for cause in report.causes)
    assert check_implicit_gradients(apart, 0 * x, (x,), batch_dims=1, vmap=False).passed
