"""What a monitor saw of sixty equations, two of which have no root."""

import torch

import implicit_solvers as ims

a = torch.linspace(-1, 20, 60, dtype=torch.float64)
with ims.monitor(history=True) as log:
    ims.root(
        lambda z, a: z * z.exp() - a,
        torch.zeros_like(a),
        (a,),
        batch_dims=1,
        in_dims=(0,),
        on_failure="mask",
    )
log.plot()
