"""Threads that solve at once: no error, and no gradient of another thread's problem."""

import copy
import sys
import threading
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import implicit_solvers as ims
from implicit_solvers.problems.qp import quadratic_program

D = torch.float64
THREADS = 8
ONE = torch.ones((), dtype=D)


def number(thread, i):
    return torch.tensor(2.0 + thread + i / 100, dtype=D)


def closure(thread, i):
    a = number(thread, i).requires_grad_()
    z = ims.root(lambda z: z**2 - a, ONE).value
    return torch.autograd.grad(z, a)[0], 0.5 / a.sqrt()


def arguments(thread, i):
    a = number(thread, i).requires_grad_()
    z = ims.root(lambda z, a: z**2 - a, ONE, (a,)).value
    return torch.autograd.grad(z, a)[0], 0.5 / a.sqrt()


def transform(thread, i):
    a = number(thread, i)
    return grad(lambda a: ims.root(lambda z: z**2 - a, ONE).value)(a), 0.5 / a.sqrt()


def batch(thread, i):
    a = number(thread, i) + torch.arange(3, dtype=D)
    slopes = vmap(grad(lambda a: ims.root(lambda z: z**2 - a, ONE).value))(a)
    return slopes, 0.5 / a.sqrt()


def nested(thread, i):
    a = number(thread, i).requires_grad_()

    def outer(z):
        inner = ims.root(lambda y: y**2 - a * z, ONE).value  # sqrt(a z)
        return z - inner / 2

    z = ims.root(outer, ONE).value  # a / 4
    return torch.autograd.grad(z, a)[0], 0.25 * ONE


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5, dtype=D))
        self.register_buffer("shift", torch.tensor(1.0, dtype=D))

    def forward(self, z, x):
        return self.w * torch.cos(z) + self.shift * x


def exact(w, x):
    z = torch.zeros((), dtype=D)
    for _ in range(80):
        z = w.detach() * torch.cos(z) + x
    return torch.cos(z) / (1 + w.detach() * torch.sin(z))


def module(thread, i):
    layer, x = ims.nn.FixedPoint(Cell(), init=torch.zeros_like), number(thread, i)
    (g,) = torch.autograd.grad(layer(x), [layer.cell.w])
    return g, exact(layer.cell.w, x)


SHARED = ims.nn.FixedPoint(Cell(), init=torch.zeros_like)


def shared_module(thread, i):
    x = number(thread, i)
    (g,) = torch.autograd.grad(SHARED(x), [SHARED.cell.w])
    return g, exact(SHARED.cell.w, x)


def functional(thread, i):
    layer, x = copy.deepcopy(SHARED), number(thread, i)
    w = torch.tensor(0.1 + 0.05 * thread, dtype=D)

    def value(w):
        return functional_call(layer, {"cell.w": w}, (x,))

    return grad(value)(w), exact(w, x)


def program(thread, i):
    p = number(thread, i).requires_grad_()
    Q, G, h = torch.eye(2, dtype=D), -torch.eye(2, dtype=D), torch.zeros(2, dtype=D)
    x = quadratic_program(Q, torch.stack((-p, p)), G=G, h=h).value.x  # (p, 0)
    return torch.autograd.grad(x.sum(), p)[0], ONE


LOOPS = [closure, arguments, transform, batch, nested, module, shared_module, functional, program]


def run(work, solves):
    errors = []

    def thread(k):
        for i in range(solves // THREADS):
            try:
                found, expected = work(k, i)
                # the adjoint of a contraction or a root of condition 10, solved to eps ** (2 / 3)
                torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-8, atol=1e-8)
            except BaseException as error:
                errors.append(f"{type(error).__name__}: {error}"[:300])

    threads = [threading.Thread(target=thread, args=(k,)) for k in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, f"{len(errors)} of {solves}: {errors[0]}"


@pytest.fixture(params=[None, 1e-5], ids=["default", "often"])
def switches(request):
    before = sys.getswitchinterval()
    if request.param is not None:
        sys.setswitchinterval(request.param)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("work", LOOPS, ids=lambda w: w.__name__)
def test_threads_do_not_meet(work, switches):
    run(work, 112)


def test_all_kinds_at_once(switches):
    run(lambda k, i: LOOPS[(k + i) % len(LOOPS)](k, i), 144)


def test_a_convex_layer_in_each_thread(switches):
    cp = pytest.importorskip("cvxpy")
    from implicit_solvers.problems.convex import ConvexLayer

    x, b = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    layer = ConvexLayer(problem, [b], [x])

    def work(thread, i):
        p = number(thread, i).requires_grad_()
        (found,) = layer(torch.stack((p, -p))).value.variables
        return torch.autograd.grad(found.sum(), p)[0], ONE

    run(work, 48)


compiles = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="compiles from 2.13 on"
)


@compiles
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_a_compiled_solver_in_each_thread(backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    solver = ims.Newton(compile=True)
    squares = eval("lambda z, a: z**2 - a")  # code that is compiled nowhere else

    def work(thread, i):
        a = number(thread, i).requires_grad_()
        z = ims.root(squares, ONE, (a,), solver=solver).value
        return torch.autograd.grad(z, a)[0], 0.5 / a.sqrt()

    run(work, 48)


@compiles
def test_solves_while_another_thread_compiles():
    begun, done = threading.Event(), threading.Event()

    def backend(graph, inputs):
        begun.set()
        done.wait()
        return graph

    code = torch.compile(lambda a: a.cos() + 1, backend=backend, fullgraph=True)
    thread = threading.Thread(target=code, args=(ONE,))
    thread.start()
    try:
        assert begun.wait(60)
        run(lambda k, i: LOOPS[(k + i) % len(LOOPS)](k, i), 72)
    finally:
        done.set()
        thread.join()


def test_the_backward_pass_in_another_thread():
    a = torch.tensor(4.0, dtype=D, requires_grad=True)
    w = torch.tensor(3.0, dtype=D, requires_grad=True)
    with ims.monitor() as log:
        z = ims.root(lambda z, a: w * z**2 - a, ONE, (a,)).value
        found = []
        thread = threading.Thread(target=lambda: found.extend(torch.autograd.grad(z, (a, w))))
        thread.start()
        thread.join()
    z = z.detach()
    torch.testing.assert_close(found[0], 1 / (6 * z))
    torch.testing.assert_close(found[1], -z / 6)
    assert [r.equation for r in log.records] == ["root of <lambda>", "adjoint of root of <lambda>"]


def test_a_monitor_sees_its_own_thread():
    def solve():
        ims.root(lambda z: z - 1, ONE)

    with ims.monitor() as log:
        thread = threading.Thread(target=solve)
        thread.start()
        thread.join()
        assert not log.records
        solve()
    solve()
    assert len(log.records) == 1
