"""What all methods have in common: tasks that fail, chunks, loops, empty and unfit batches."""

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
each_method = pytest.mark.parametrize("name", METHODS)


def arguments_of(name, tasks=4):
    """R2D2's model ends before the last layer."""
    model, criterion, theta, supports, queries = curves(seed=2, tasks=tasks)
    if name == "R2D2":
        first = {"0.weight": theta["0.weight"], "0.bias": theta["0.bias"]}

        def features(theta, x):
            return torch.tanh(F.linear(x, theta["0.weight"], theta["0.bias"]))

        return features, criterion, METHODS[name].extend(first), supports, queries
    return model, criterion, theta, supports, queries


def chosen(arguments, tasks):
    *shared, supports, queries = arguments
    return *shared, *(tuple(t[tasks] for t in data) for data in (supports, queries))


@each_method
def test_the_mean_over_tasks_is_that_of_single_tasks(name):
    arguments = arguments_of(name)
    got = METHODS[name].meta_gradient(*arguments)
    alone = [METHODS[name].meta_gradient(*chosen(arguments, [i])) for i in range(4)]
    mean = sum(ravel(a.gradient) for a in alone) / 4
    torch.testing.assert_close(ravel(got.gradient), mean, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(got.loss, torch.cat([a.loss for a in alone]))
    assert got.loss.shape == got.left_out.shape == got.inner_residual.shape == (4,)
    assert not got.left_out.any()


@each_method
@pytest.mark.parametrize("tasks_at_once", [1, 3, 4, 9])
def test_chunks_change_nothing(name, tasks_at_once):
    arguments = arguments_of(name)
    got = METHODS[name].meta_gradient(*arguments, tasks_at_once=tasks_at_once)
    # where a solver stops may differ by a step
    assert_same(got, METHODS[name].meta_gradient(*arguments), rtol=1e-7, atol=1e-8)


@each_method
def test_the_loop_gives_what_vmap_gives(name):
    arguments = arguments_of(name)
    got = METHODS[name].meta_gradient(*arguments, batching=imaml.Batching.LOOP)
    assert_same(got, METHODS[name].meta_gradient(*arguments), rtol=1e-7, atol=1e-8)


@each_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["support x", "support y", "query x", "query y"])
@pytest.mark.parametrize("tasks_at_once", [None, 2])
def test_a_task_with_nan_is_left_out_and_changes_nothing_else(name, bad, where, tasks_at_once):
    arguments = arguments_of(name)
    *shared, supports, queries = tree_map(torch.clone, arguments[2:])
    data = {"support": supports, "query": queries}[where.split()[0]]
    data["xy".index(where[-1])][1, 2] = bad
    if bad == float("inf") and where[-1] == "x":
        return  # tanh(inf) = 1, which is a task like any other
    got = METHODS[name].meta_gradient(
        *arguments[:2], *shared, supports, queries, tasks_at_once=tasks_at_once
    )
    others = [0, 2, 3]
    expected = METHODS[name].meta_gradient(*chosen(arguments, others))
    assert got.left_out.tolist() == [False, True, False, False]
    assert got.loss.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(got.gradient, expected.gradient, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(got.loss[others], expected.loss)


@each_method
def test_where_every_task_is_left_out_the_gradient_is_zero(name):
    model, criterion, theta, supports, queries = arguments_of(name)
    queries = (queries[0], queries[1] * torch.nan)
    got = METHODS[name].meta_gradient(model, criterion, theta, supports, queries)
    assert got.left_out.all() and got.loss.isnan().all()
    assert (ravel(got.gradient) == 0).all()


@each_method
def test_no_tasks(name):
    arguments = arguments_of(name)
    got = METHODS[name].meta_gradient(*chosen(arguments, []))
    assert (ravel(got.gradient) == 0).all()
    assert [t.shape for t in got[1:]] == 4 * [(0,)]
    assert got.left_out.dtype == torch.bool


@each_method
def test_the_numbers_of_tasks_must_agree(name):
    model, criterion, theta, (x, y), queries = arguments_of(name)
    for unfit in ((x[:3], y), (x[:3], y[:3])):
        with pytest.raises(ValueError, match="first dimension"):
            METHODS[name].meta_gradient(model, criterion, theta, unfit, queries)
    with pytest.raises(ValueError, match="first dimension"):
        METHODS[name].meta_gradient(model, criterion, theta, (), ())
    with pytest.raises(ValueError, match="first dimension"):
        METHODS[name].meta_gradient(model, criterion, theta, (x, torch.tensor(1.0)), queries)


@each_method
@pytest.mark.parametrize("tasks_at_once", [0, -1, 1.5])
def test_tasks_at_once_must_be_positive(name, tasks_at_once):
    with pytest.raises(ValueError, match="tasks_at_once"):
        METHODS[name].meta_gradient(*arguments_of(name), tasks_at_once=tasks_at_once)


@each_method
def test_parameters_that_require_gradients_are_left_alone(name):
    model, criterion, theta, *data = arguments_of(name)
    expected = METHODS[name].meta_gradient(model, criterion, theta, *data)
    trained = {key: value.clone().requires_grad_() for key, value in theta.items()}
    got = METHODS[name].meta_gradient(model, criterion, trained, *data)
    assert_same(got, expected)
    assert all(value.grad is None for value in trained.values())
    assert not any(t.requires_grad for t in [ravel(got.gradient), *got[1:]])


@each_method
def test_predictors_have_the_loss_that_is_reported(name):
    model, criterion, theta, supports, queries = arguments_of(name)

    def task(support, query):
        x, y = query
        return criterion(METHODS[name].adapt(model, criterion, theta, support)(x), y)

    losses = vmap(task)(supports, queries)
    looped = torch.stack([task(one(supports, i), one(queries, i)) for i in range(4)])
    torch.testing.assert_close(losses, looped, rtol=1e-7, atol=1e-9)
    reported = METHODS[name].meta_gradient(model, criterion, theta, supports, queries).loss
    if "Reptile" in name:  # there, the query was seen
        assert (reported < losses).any()
    else:
        torch.testing.assert_close(losses, reported, rtol=1e-7, atol=1e-9)


@each_method
def test_methods_are_values(name):
    method = METHODS[name]
    with pytest.raises(AttributeError):
        method.lr = 3
    assert type(method)(**{f: getattr(method, f) for f in method.__dataclass_fields__}) == method


@each_method
def test_descending_lowers_the_query_loss(name):
    model, criterion, theta, *data = arguments_of(name)
    first = METHODS[name].meta_gradient(model, criterion, theta, *data)
    size = ravel(first.gradient).norm()
    moved = tree_map(lambda t, g: t - 1e-3 * g / size, theta, first.gradient)
    then = METHODS[name].meta_gradient(model, criterion, moved, *data)
    if "own" not in name:  # there, phi is theta, which solves no task's equation
        assert then.loss.mean() < first.loss.mean()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "R2D2"])
def test_theta_may_be_a_single_tensor(name):
    def model(theta, x):
        return x @ theta

    _, criterion, _, supports, queries = curves()
    got = METHODS[name].meta_gradient(
        model, criterion, torch.zeros(1, 1, dtype=torch.float64), supports, queries
    )
    assert got.gradient.shape == (1, 1)


@pytest.mark.parametrize("name", [name for name in METHODS if "Reptile" not in name])
def test_a_loss_without_theta_is_refused(name):
    model, criterion, theta, *data = arguments_of(name)

    def detaching(out, y):
        return criterion(out.detach(), y)

    with pytest.raises(ValueError, match="does not depend on theta"):
        METHODS[name].meta_gradient(model, detaching, theta, *data)
