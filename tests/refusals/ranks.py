"""What unknowns that are spread over ranks do not allow."""

import torch

from tests.refusals.row import alike

# DTensors of torch 2.8 are differentiated once only, which refuses minimization before
TWICE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
SETUP = """
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
if not dist.is_initialized():  # torchrun starts many ranks; here is one
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
z = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
both = distribute_tensor(torch.ones(4), mesh, [Replicate()])
matrix = distribute_tensor(torch.eye(4), mesh, [Shard(0)])
partial = DTensor.from_local(torch.ones(4), mesh, [Partial()])
module = fully_shard(torch.nn.Linear(4, 4))
same, krylov = ims.FunctionOperator(lambda v: v, like=z), ims.Newton(ims.GMRES())
"""
KIND, WRONG = TypeError, ValueError
SPREAD = "and the rows of the unknown are spread over ranks"
# fmt: off
# an exception, words, and calls
TABLE = [
    (WRONG, "a Partial tensor is a sum that is not added up yet; call redistribute(",
     "ims.root(lambda z: z, partial, solver=krylov)",
     "ims.root(lambda z, p: z - p, z, (partial,), solver=krylov)",
     "ims.linear_solve(same, partial)"),
    (WRONG, f"which needs whole vectors or matrices, {SPREAD}: use CG()",
     "ims.root(lambda z: z, z)",
     "ims.linear_solve(same, z, solver=ims.LU())",
     "ims.fixed_point(lambda z: z / 2, z, adjoint=ims.ImplicitAdjoint(ims.LU()))"),
    (WRONG, "solver has a norm, which would see the rows of one rank: leave it out",
     "ims.fixed_point(lambda z: z / 2, z, solver=ims.Anderson(norm=lambda v: v.abs().amax(-1)))"),
    (WRONG, "solver has compile=True, and rows are spread over ranks: leave compile out",
     "ims.fixed_point(lambda z: z / 2, z, solver=ims.Anderson(compile=True))"),
    (WRONG, "unknowns that are spread over ranks take no bounds or constraints: leave it out",
     "ims.minimize(lambda z: (z * z).sum(), z, bounds=(0.0, None))"),
    (WRONG, "unknowns that are spread over ranks take no bracket or starts: leave it out",
     "ims.root(lambda z: z, matrix[:, :1], batch_dims=1, bracket=(-1.0, 1.0))"),
    (WRONG, "unknowns that are spread over ranks take no check: leave it out, or gather",
     "ims.linear_solve(same, z, check=True)",
     "ims.fixed_point(lambda z: z / 2, z, check=True)"),
    (WRONG, "unknowns that are spread over ranks take no UnrolledAdjoint: leave it out, or gather",
     "ims.fixed_point(lambda z: z / 2, z, adjoint=ims.UnrolledAdjoint())"),
    (WRONG, "state it for root, fixed_point or minimize, with a solver of the library",
     "ims.least_squares(lambda z: z, z)",
     "ims.attach(lambda z: z, z)"),
    (WRONG, "which needs the matrix, and rows are spread over ranks: pass a function v -> M v",
     "ims.linear_solve(same, z, preconditioner=ims.Jacobi())"),
    (KIND, f"fn returned a Tensor, {SPREAD}: return a DTensor",
     "ims.fixed_point(lambda z: z.to_local(), z)",
     *(["ims.minimize(lambda z: z.to_local().sum(), z, solver=ims.LBFGS())"] if TWICE else [])),
    (KIND, "z0 has a leaf that is a Tensor and another tensor is a DTensor: make it one too",
     "ims.root(lambda z, a: z, torch.ones(4), (z,))"),
    (WRONG, "which DTensors do not go through: use backward()",
     "torch.func.grad(lambda a: ims.root(lambda z: z - a, z).value.sum())(torch.ones(()))"),
    (WRONG, "shard it alike, or replicate it",
     "ims.root(lambda z, a: z, matrix, (matrix.redistribute(mesh, [Shard(1)]),), batch_dims=1)"),
    (WRONG, "shard all over the same dimension of one mesh",
     "ims.root(lambda z: z, (z, both), solver=krylov)"),
    (WRONG, "put both on one mesh",
     "ims.root(lambda z, a: z, z, (distribute_tensor(torch.ones(4), "
     "init_device_mesh('cpu', (1, 1)), [Shard(0), Replicate()]),), solver=krylov)"),
    (WRONG, "give b the shapes of its products",
     "ims.linear_solve(matrix, distribute_tensor(torch.ones(3), mesh, [Shard(0)]))"),
    (RuntimeError, "under a transform of torch.func, which its hooks do not go through: use",
     "torch.func.grad(lambda x: ims.fixed_point(lambda z: module(z) / 9 + x, x).value.sum())("
     "torch.ones(4))"),
    (KIND, "sync_failures is 'yes': pass True, or the process group",
     "ims.root(lambda z: z, torch.ones(2), sync_failures='yes')"),
]
# fmt: on
ROWS = [row for group in TABLE for row in alike(*group)]
