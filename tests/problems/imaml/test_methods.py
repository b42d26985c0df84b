"""What all methods have in common: a table of methods, each of which passes every check below."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap
from torch.utils._pytree import tree_map

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from tests.problems.imaml.meta_tasks import assert_same, curves, one, ravel

EXACT = ims.ImplicitAdjoint(ims.CG())
METHODS = {
    "iMAML": imaml.Imaml(3.0),
    "iMAML, exact": imaml.Imaml(3.0, ims.NewtonCG(), EXACT),
    "iMAML, damped": imaml.Imaml(3.0, damping=0.1),
    "iMAML, own solver": imaml.Imaml(
        0.5, lambda objective, theta: theta, ims.ImplicitAdjoint(ims.GMRES())
    ),
    "iMAML-HF": imaml.imaml_hf(3.0),
    "MAML": imaml.Maml(0.1, 3),
    "MAML, checkpointed": imaml.Maml(0.1, 5, checkpoint=2),
    "FOMAML": imaml.FirstOrderMaml(0.1, 3),
    "Reptile": imaml.Reptile(0.1, 3),
    "Reptile, minibatches": imaml.Reptile(0.1, 5, minibatch=3),
    "R2D2": imaml.R2D2(),
}
TASKS = 4


def features(theta, x):
    return torch.tanh(F.linear(x, theta["0.weight"], theta["0.bias"]))


class Case:
    """A method, and a batch that it learns from; R2D2's model ends before the last layer."""

    def __init__(self, name):
        self.name, self.method = name, METHODS[name]
        names = ("model", "criterion", "theta", "supports", "queries")
        self.given = dict(zip(names, curves(seed=2, tasks=TASKS), strict=True))
        if name == "R2D2":
            theta = {key: self.given["theta"][key] for key in ("0.weight", "0.bias")}
            self.given |= {"model": features, "theta": self.method.extend(theta)}

    def run(self, tasks=None, changes=(), **options):
        """Return the meta-gradient, of some of the tasks, with other arguments."""
        given = self.given | dict(changes)
        if tasks is not None:
            given |= {key: one(given[key], tasks) for key in ("supports", "queries")}
        return self.method.meta_gradient(**given, **options)

    @functools.cached_property
    def whole(self):
        return self.run()


@pytest.fixture(scope="module", params=METHODS)
def case(request):
    return Case(request.param)


def test_the_mean_over_tasks_is_that_of_single_tasks(case):
    alone = [case.run([i]) for i in range(TASKS)]
    mean = sum(ravel(a.gradient) for a in alone) / TASKS
    # where a solver stops may differ by a step
    torch.testing.assert_close(ravel(case.whole.gradient), mean, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(case.whole.loss, torch.cat([a.loss for a in alone]))
    for column in case.whole[1:]:
        assert column.shape == (TASKS,)
    assert not case.whole.left_out.any()


@pytest.mark.parametrize(
    "options",
    [{"batching": imaml.Batching.LOOP}, *({"tasks_at_once": n} for n in (1, 3, 4, 9))],
    ids=str,
)
def test_chunks_and_the_loop_change_nothing(case, options):
    # where a solver stops may differ by a step
    assert_same(case.run(**options), case.whole, rtol=1e-7, atol=1e-8)


# tanh(inf) = 1, which is a task like any other
WHERE = [("supports", 0), ("supports", 1), ("queries", 0), ("queries", 1)]
HARM = [(torch.nan, *where) for where in WHERE] + [(torch.inf, *where) for where in WHERE[1::2]]


@pytest.mark.filterwarnings("ignore:.* tasks so far")
def test_a_task_with_nan_is_left_out_and_changes_nothing_else(case):
    others = [0, 2, 3]
    expected = case.run(others)
    for bad, part, number in HARM:
        data = tuple(map(torch.clone, case.given[part]))
        data[number][1, 2] = bad
        for tasks_at_once in (None, 2):
            got = case.run(changes={part: data}, tasks_at_once=tasks_at_once)
            assert got.left_out.tolist() == [False, True, False, False], (bad, part, number)
            assert got.loss.isnan().tolist() == [False, True, False, False]
            ends = torch.maximum(got.inner_status, got.adjoint_status)
            assert (ends > ims.Status.BUDGET).tolist() == [False, True, False, False]
            # where a solver stops may differ by a step
            torch.testing.assert_close(got.gradient, expected.gradient, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(got.loss[others], expected.loss)


@pytest.mark.filterwarnings("ignore:.* tasks so far")
def test_without_usable_tasks_the_gradient_is_zero(case):
    x, y = case.given["queries"]
    got = case.run(changes={"queries": (x, y * torch.nan)})
    assert got.left_out.all() and got.loss.isnan().all()
    none = case.run([])
    assert [t.shape for t in none[1:]] == 6 * [(0,)] and none.left_out.dtype == torch.bool
    assert (ravel(got.gradient) == 0).all() and (ravel(none.gradient) == 0).all()


def test_parameters_that_require_gradients_are_left_alone(case):
    trained = {key: value.clone().requires_grad_() for key, value in case.given["theta"].items()}
    got = case.run(changes={"theta": trained})
    assert_same(got, case.whole)
    assert all(value.grad is None for value in trained.values())
    assert not any(t.requires_grad for t in [ravel(got.gradient), *got[1:]])


def test_a_parameter_that_is_not_used_has_a_gradient_of_zero(case):
    def without(theta, x):
        return case.given["model"]({key: theta[key] for key in theta if key != "unused"}, x)

    theta = {**case.given["theta"], "unused": torch.ones(2).double()}
    gradient = case.run(changes={"theta": theta, "model": without}).gradient
    assert (gradient.pop("unused") == 0).all()
    torch.testing.assert_close(gradient, case.whole.gradient, rtol=1e-7, atol=1e-9)


def test_float32_stays_float32(case):
    low = {
        key: tree_map(lambda t: t.float(), case.given[key])
        for key in ("theta", "supports", "queries")
    }
    got = case.run(changes=low)
    assert ravel(got.gradient).dtype == got.loss.dtype == got.inner_residual.dtype == torch.float32
    # eps = 1.2e-7 times condition numbers below 1,000
    expected = ravel(case.whole.gradient).float()
    torch.testing.assert_close(ravel(got.gradient), expected, rtol=1e-4, atol=1e-4)


def test_predictors_have_the_loss_that_is_reported(case):
    model, criterion, theta, supports, queries = case.given.values()

    def task(support, query):
        x, y = query
        return criterion(case.method.adapt(model, criterion, theta, support)(x), y)

    losses = vmap(task)(supports, queries)
    looped = torch.stack([task(one(supports, i), one(queries, i)) for i in range(TASKS)])
    # where a solver stops may differ by a step
    torch.testing.assert_close(losses, looped, rtol=1e-7, atol=1e-9)
    if "Reptile" in case.name:  # there, the query was seen
        assert (case.whole.loss < losses).any()
    else:
        torch.testing.assert_close(losses, case.whole.loss, rtol=1e-7, atol=1e-9)


def test_methods_are_values(case):
    method = case.method
    with pytest.raises(AttributeError):
        method.lr = 3
    assert type(method)(**{f: getattr(method, f) for f in method.__dataclass_fields__}) == method


def test_theta_may_be_a_single_tensor(case):
    theta = torch.zeros(1, 1, dtype=torch.float64)
    if case.name != "R2D2":
        got = case.run(changes={"model": lambda theta, x: x @ theta, "theta": theta})
        assert got.gradient.shape == (1, 1)
