"""The matrix: every composition of derivatives, of every entry point, for every kind of unknown."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap

import implicit_solvers as ims
from tests.cases import CASES, MANY_P, P, W, derivative, words

ORDER_TOLERANCE = {1: 1e-8, 2: 1e-7, 3: 1e-7}
WRAPPERS = {
    "plain": lambda word, L: derivative(word, L)(P),
    "vmap": lambda word, L: vmap(derivative(word, L))(MANY_P),
    "of_vmap": lambda word, L: derivative(word, lambda p: vmap(L)(p).sum())(MANY_P[:2]),
    "nested_vmap": lambda word, L: vmap(vmap(derivative(word, L)))(MANY_P.reshape(2, 2, 3)),
}

cases = pytest.mark.parametrize("case", CASES, ids=str)


def cube(fn):
    """Return a scalar of the solution whose derivatives mix all of its entries."""
    return lambda p: (fn(p).sum() ** 3) + (fn(p) ** 2).sum()


def error(ours, reference):
    return float((ours - reference).abs().max() / reference.abs().max().clamp(min=1e-2))


@cases
def test_value(case):
    assert error(case.solve(P), case.oracle(P)) < 1e-10


@cases
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("word", words(1) + words(2))
def test_word(case, word, wrapper):
    ours = WRAPPERS[wrapper](word, cube(case.solve))
    reference = WRAPPERS[wrapper](word, cube(case.oracle))
    assert error(ours, reference) < ORDER_TOLERANCE[word.count("-") + 1]


@pytest.mark.parametrize("wrapper", ["plain", "vmap", "of_vmap"])
@pytest.mark.parametrize("word", words(3))
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.name in ("root-dict", "minimize-vector", "linear_solve-scalar")],
    ids=str,
)
def test_word_of_third_order(case, word, wrapper):
    ours = WRAPPERS[wrapper](word, cube(case.solve))
    reference = WRAPPERS[wrapper](word, cube(case.oracle))
    assert error(ours, reference) < ORDER_TOLERANCE[3]


@cases
def test_backward_and_create_graph(case):
    p = P.clone().requires_grad_()
    case.solve(p).pow(2).sum().backward()
    reference = grad(lambda p: case.oracle(p).pow(2).sum())(P)
    assert error(p.grad, reference) < 1e-8

    q = P.clone().requires_grad_()
    (first,) = torch.autograd.grad(case.solve(q).pow(2).sum(), q, create_graph=True)
    first.pow(2).sum().backward()
    double = grad(lambda p: grad(lambda p: case.oracle(p).pow(2).sum())(p).pow(2).sum())(P)
    assert error(q.grad, double) < 1e-7


@cases
def test_functional_transforms(case):
    def scalar(fn):
        return lambda p: fn(p).pow(2).sum()

    v = torch.tensor([0.3, -1.0, 0.5], dtype=P.dtype)
    assert error(grad(scalar(case.solve))(P), grad(scalar(case.oracle))(P)) < 1e-8
    assert error(jvp(case.solve, (P,), (v,))[1], jvp(case.oracle, (P,), (v,))[1]) < 1e-8
    ours, pull = vjp(case.solve, P)
    reference, pull_reference = vjp(case.oracle, P)
    assert error(pull(ours)[0], pull_reference(reference)[0]) < 1e-8
    assert error(hessian(scalar(case.solve))(P), hessian(scalar(case.oracle))(P)) < 1e-7
    each = vmap(grad(scalar(case.solve)))(MANY_P)
    assert error(each, vmap(grad(scalar(case.oracle)))(MANY_P)) < 1e-8
    inside = vmap(lambda p: vmap(grad(scalar(case.solve)))(p[None] * MANY_P[:2]))(MANY_P[:2])
    outside = vmap(lambda p: vmap(grad(scalar(case.oracle)))(p[None] * MANY_P[:2]))(MANY_P[:2])
    assert error(inside, outside) < 1e-8


@cases
def test_plain_forward_mode(case):
    v = torch.tensor([0.3, -1.0, 0.5], dtype=P.dtype)
    with forward_ad.dual_level():
        out = case.solve(forward_ad.make_dual(P, v))
        tangent = forward_ad.unpack_dual(out).tangent
    assert error(tangent, jvp(case.oracle, (P,), (v,))[1]) < 1e-8


@cases
def test_gradcheck(case):
    p = P.clone().requires_grad_()
    assert gradcheck(
        case.solve,
        (p,),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(
        case.solve, (p,), check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


def masked_root(w, x):
    def f(z, w, x):
        return z + 0.5 * torch.tanh(w @ z) * x.sum() - x

    return ims.root(f, torch.zeros_like(x), (w, x), on_failure="mask").value


def masked_linear_solve(w, x):
    A = ims.MatrixOperator(torch.eye(3, dtype=w.dtype) + w * x.sum())
    return ims.linear_solve(A, x, on_failure="mask").value


@pytest.mark.parametrize("fn", [masked_root, masked_linear_solve])
def test_gradcheck_where_lanes_may_be_left_out(fn):
    w, x = 0.3 * W, MANY_P[:3].clone()
    inputs = (w.requires_grad_(), x.requires_grad_())
    batched = vmap(fn, (None, 0))
    assert gradcheck(
        batched,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(
        batched, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


@cases
def test_central_differences(case):
    def difference(h):
        steps = h * torch.eye(3, dtype=P.dtype)
        return torch.stack([(case.solve(P + e) - case.solve(P - e)) / (2 * h) for e in steps], -1)

    # Richardson: the error of the difference falls from h^2 to h^4; rounding leaves about 1e-10
    extrapolated = (4 * difference(1e-3) - difference(2e-3)) / 3
    assert error(jacrev(case.solve)(P), extrapolated) < 1e-8


@cases
def test_float32(case):
    p = P.float()
    value = case.solve(p)
    assert value.dtype == torch.float32
    assert error(value.double(), case.oracle(P)) < 1e-4
    for word in words(1):
        ours = derivative(word, case.solve)(p)
        assert ours.dtype == torch.float32
        assert error(ours.double(), derivative(word, case.oracle)(P)) < 1e-4
    batched = vmap(jacrev(case.solve))(MANY_P.float())
    assert error(batched.double(), vmap(jacrev(case.oracle))(MANY_P)) < 1e-4


@pytest.mark.gpu
@cases
def test_cuda(case):
    p = P.cuda()
    assert error(case.solve(p).cpu(), case.oracle(P)) < 1e-10
    for word in words(1) + words(2):
        for wrapper in (lambda d, p: d(p), lambda d, p: vmap(d)(torch.stack([p, 0.5 * p]))):
            ours = wrapper(derivative(word, cube(case.solve)), p).cpu()
            reference = wrapper(derivative(word, cube(case.oracle)), P)
            assert error(ours, reference) < ORDER_TOLERANCE[word.count("-") + 1]
