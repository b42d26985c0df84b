"""Layers whose parameters live on two processes: DistributedDataParallel, fully_shard (FSDP2)."""

import copy
import os
import pathlib
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

import implicit_solvers as ims

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()),
        reason="needs torch.distributed with gloo",
    ),
]


class Cell(nn.Module):
    def __init__(self, n=4):
        super().__init__()
        self.inner, self.outer = nn.Linear(n, n), nn.Linear(n, n)
        nn.init.orthogonal_(self.inner.weight, 0.5)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.outer(x))


class Loop(nn.Module):
    """The fixed point by 50 explicit steps: what is left of the start is 0.5**50."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        z = torch.zeros_like(x)
        for _ in range(50):
            z = self.cell(z, x)
        return z


class Residual(Loop):
    def forward(self, z, x):
        return z - self.cell(z, x)


class Closure(Loop):
    """A module whose forward calls the solver."""

    def forward(self, x):
        return ims.fixed_point(lambda z, x: self.cell(z, x), torch.zeros_like(x), (x,)).value


def fixed_point(cell):
    return ims.nn.FixedPoint(cell, batch_dims=1)


def root(cell):
    return ims.nn.Root(Residual(cell), batch_dims=1)


# The layer, and what of it is wrapped, in this order.
RIGHT = {
    "ddp": (fixed_point, ["ddp"]),
    "layer": (fixed_point, ["layer"]),
    "model": (fixed_point, ["model"]),
    "layer and model": (fixed_point, ["layer", "model"]),
    "root": (root, ["layer", "model"]),
    "closure": (Closure, ["layer", "model"]),
}
REFUSED = {
    "cell": (fixed_point, ["cell"]),
    "cell and layer": (fixed_point, ["cell", "layer"]),
    "part of the cell": (fixed_point, ["cell.inner", "layer"]),
    "cell in a closure": (Closure, ["cell", "layer"]),
    "cell of a root": (root, ["cell.cell", "layer"]),
}
CONTROL = {"explicit loop": (Loop, ["cell", "layer"])}
X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)


def build(make, deep):
    """Return a model and the layer in it; where the layer is not alone, a linear one is before."""
    torch.manual_seed(0)
    cell, first = Cell().double(), nn.Linear(4, 4).double()
    layer = make(cell)
    return (nn.Sequential(first, layer) if deep else layer), layer


def gradients(model, x):
    model.zero_grad()
    model(x).pow(2).mean().backward()
    found = [p.grad for p in model.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]


def work(rank, folder):
    """Take the gradients of every configuration, as one of two processes; rank 0 writes them."""
    from torch.distributed.fsdp import fully_shard

    place = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    results = {}
    for name, (make, wrapped) in {**CONTROL, **RIGHT, **REFUSED}.items():
        model, layer = build(make, "model" in wrapped)
        try:
            for what in wrapped:
                if what == "ddp":
                    model = nn.parallel.DistributedDataParallel(model)
                else:
                    fully_shard(
                        {"layer": layer, "model": model}.get(what) or layer.get_submodule(what)
                    )
            # a second pass is where parameters that were not reduced are found
            results[name] = [gradients(model, X.chunk(2)[rank]) for _ in range(2)][-1]
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
        if name == "cell":
            with torch.no_grad():
                results["without gradients"] = model(X)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    checkout = str(pathlib.Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": checkout}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(2)]
    workers = [subprocess.Popen(command, env=environment, **pipes) for command in commands]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    found = torch.load(folder / "results.pt", weights_only=True)
    if isinstance(found["explicit loop"], str):
        pytest.skip(f"torch cannot shard here: {found['explicit loop']}")
    return found


def expected(make, deep):
    """Return the gradients of an explicit loop over the whole batch, in one process."""
    model, layer = build(make, deep)
    loop = layer.cell.cell if make is root else layer.cell
    reference = nn.Sequential(model[0], Loop(loop)) if deep else Loop(loop)
    return gradients(copy.deepcopy(reference), X)


@pytest.mark.parametrize("name", [*CONTROL, *RIGHT])
def test_a_layer_that_is_wrapped_has_the_gradients_of_one_process(results, name):
    make, wrapped = {**CONTROL, **RIGHT}[name]
    # solvers stop at 2e-12 (eps**0.75), and the map contracts by 0.5
    torch.testing.assert_close(
        results[name], expected(make, "model" in wrapped), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_cell_that_is_sharded_by_itself_is_refused(results, name):
    assert isinstance(results[name], str)
    assert "Shard what is around the solve: the layer, not the cell" in results[name]


def test_values_of_a_layer_with_a_sharded_cell_are_right(results):
    values = results["without gradients"]
    # solvers stop at 2e-12 (eps**0.75), and the map contracts by 0.5
    torch.testing.assert_close(values, Loop(build(Loop, False)[1].cell)(X), rtol=1e-10, atol=1e-10)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
