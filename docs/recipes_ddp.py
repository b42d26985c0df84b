import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import spectral_norm

import implicit_solvers as ims


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = spectral_norm(nn.Linear(16, 16)), nn.Linear(2, 16)

    def forward(self, z, x):
        return torch.tanh(0.9 * self.inner(z) + self.outer(x))


def loss_of(model, x):
    y = (x[:, :1] * x[:, 1:] > 0).float()
    return nn.functional.binary_cross_entropy_with_logits(model(x), y)


dist.init_process_group("gloo")  # "nccl" on GPUs
torch.manual_seed(0)  # the same start and data in all processes
deq = ims.nn.FixedPoint(Cell(), init=lambda x: x.new_zeros(len(x), 16), batch_dims=1)
model = nn.Sequential(deq, nn.Linear(16, 1))
parallel = DistributedDataParallel(model)
x = torch.randn(128, 2)
own = x.chunk(dist.get_world_size())[dist.get_rank()]

model.eval()  # the gradients are those of one process with all data
loss_of(parallel, own).backward()
whole = torch.autograd.grad(loss_of(model, x), list(model.parameters()))
for parameter, expected in zip(model.parameters(), whole, strict=True):
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)

model.train()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
for _ in range(20):
    optimizer.zero_grad()
    loss = loss_of(parallel, own)
    loss.backward()
    optimizer.step()
print(f"process {os.environ['RANK']}: loss {loss:.3f}")
dist.destroy_process_group()
