"""The matrix: every composition of derivatives, of every entry point, for every kind of unknown."""

import pytest
import torch
from torch.func import jacrev, vmap

import implicit_solvers as ims
from tests import cases as table
from tests.cases import CASES, MANY_P, TOLERANCE, P, W, cube, derivative, error, modes, words

cases = pytest.mark.parametrize("case", CASES, ids=str)
THIRD_ORDER = ("root-dict", "minimize-vector", "linear_solve-scalar")


@cases
@pytest.mark.parametrize("mode", modes(0, 1, 2))
def test_mode(case, mode):
    table.assert_agree(case.solve, case.oracle, [mode])


@pytest.mark.parametrize("mode", modes(3, without=["nested_vmap"]))
@pytest.mark.parametrize("case", [c for c in CASES if c.name in THIRD_ORDER], ids=str)
def test_mode_of_third_order(case, mode):
    table.assert_agree(case.solve, case.oracle, [mode])


def masked_root(w, x):
    def f(z, w, x):
        return z + 0.5 * torch.tanh(w @ z) * x.sum() - x

    return ims.root(f, torch.zeros_like(x), (w, x), on_failure="mask").value


def masked_linear_solve(w, x):
    A = ims.MatrixOperator(torch.eye(3, dtype=w.dtype) + w * x.sum())
    return ims.linear_solve(A, x, on_failure="mask").value


CHECKED = {
    **{case.name: (case.solve, P) for case in CASES},
    # where lanes may be left out
    "masked root": (vmap(masked_root, (None, 0)), 0.3 * W, MANY_P[:3]),
    "masked linear_solve": (vmap(masked_linear_solve, (None, 0)), 0.3 * W, MANY_P[:3]),
}


@pytest.mark.parametrize("name", CHECKED)
def test_gradcheck(name):
    table.check_gradients(*CHECKED[name])


@cases
def test_float32(case):
    for of in (
        lambda fn, p, many: fn(p),
        *(lambda fn, p, many, word=word: derivative(word, fn)(p) for word in words(1)),
        lambda fn, p, many: vmap(jacrev(fn))(many),
    ):
        ours = of(case.solve, P.float(), MANY_P.float())
        assert ours.dtype == torch.float32
        assert error(ours.double(), of(case.oracle, P, MANY_P)) < 1e-4


@pytest.mark.gpu
@cases
def test_cuda(case):
    p = P.cuda()
    assert error(case.solve(p).cpu(), case.oracle(P)) < TOLERANCE[0]
    for word in words(1) + words(2):
        for wrapper in (lambda d, p: d(p), lambda d, p: vmap(d)(torch.stack([p, 0.5 * p]))):
            ours = wrapper(derivative(word, cube(case.solve)), p).cpu()
            reference = wrapper(derivative(word, cube(case.oracle)), P)
            assert error(ours, reference) < TOLERANCE[word.count("-") + 1]
