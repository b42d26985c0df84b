"""One process of `test_distributed`: ``python distributed_worker.py RANK RANKS FOLDER``."""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F

from implicit_solvers.problems import imaml
from implicit_solvers.problems.imaml.distributed import distributed_meta_gradient

LEARNED = imaml.Imaml(strength=None)
METHODS = {
    "iMAML": LEARNED,
    "iMAML-HF": imaml.imaml_hf(3.0),
    "MAML": imaml.Maml(0.1, 3),
    "FOMAML": imaml.FirstOrderMaml(0.1, 3),
    "Reptile": imaml.Reptile(0.1, 3),
    "R2D2": imaml.R2D2(),
}
BATCHES = {"odd": 5, "fewer tasks than processes": 1, "none": 0}


def model(theta, x):
    return torch.tanh(x * theta["w"] + theta["b"])


def arguments_of(name, tasks):
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, tasks, 8, 1, generator=g, dtype=torch.float64)
    theta = {
        name: torch.randn(4 if name == "R2D2" else 1, generator=g, dtype=torch.float64)
        for name in ("w", "b")
    }
    if name == "iMAML":
        theta = LEARNED.extend(theta, 3.0)
    return model, F.mse_loss, theta, (x[:, :4], y[:, :4]), (x[:, 4:], y[:, 4:])


def results():
    """Return meta-gradients of every method and batch, as dicts of tensors."""
    found = {}
    for name, method in METHODS.items():
        for batch, tasks in BATCHES.items():
            found[name, batch] = distributed_meta_gradient(method, *arguments_of(name, tasks))
    *shared, supports, queries = arguments_of("MAML", 5)
    supports[1][1, 0] = torch.nan
    options = {"tasks_at_once": 2, "batching": imaml.Batching.LOOP}
    found["MAML", "NaN"] = distributed_meta_gradient(
        METHODS["MAML"], *shared, supports, queries, **options
    )
    supports[1][:] = torch.nan
    found["MAML", "all NaN"] = distributed_meta_gradient(
        METHODS["MAML"], *shared, supports, queries
    )
    return {key: value._asdict() for key, value in found.items()}


if __name__ == "__main__":
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    torch.save(results(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
