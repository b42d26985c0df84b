"""Solves that fail on one rank: what becomes of them on each."""

import warnings

import torch
import torch.distributed as dist

import implicit_solvers as ims


def outcomes(here, call):
    """Return what became of a call on each rank: "", or the error."""
    try:
        call()
        outcome = ""
    except (ValueError, TypeError, RuntimeError) as error:
        outcome = f"{type(error).__name__}: {error}"
    everybody = [None] * here.ranks
    dist.all_gather_object(everybody, outcome)
    return everybody


def of_failures(sync_failures, backward=False):
    """Return what becomes of a batch whose last lane has no root, or no derivative."""

    def check(here):
        a = torch.ones(2 * here.ranks, dtype=torch.float64)
        a[-1] = 0.0 if backward else -1.0
        a = here.shard(a)
        how = {"batch_dims": 1, "in_dims": 0, "sync_failures": sync_failures}
        if backward:
            # at its root, a budget cannot tell that the Jacobian is singular
            how["solver"] = ims.Newton(max_steps=1, rtol=None)

        def call():
            z0 = torch.ones_like(a) if not backward else a.detach()
            value = ims.root(lambda z, a: z**2 - a, z0, (a,), **how).value
            if backward:
                value.to_local().sum().backward()

        return outcomes(here, call)

    return check


def of_ranks_without_dtensors(here):
    a = torch.tensor([4.0, -1.0 if here.rank == here.ranks - 1 else 1.0])
    how = {"batch_dims": 1, "in_dims": 0, "sync_failures": dist.group.WORLD}
    return outcomes(here, lambda: ims.root(lambda z, a: z**2 - a, torch.ones(2), (a,), **how))


def of_policy(on_failure, count):
    """Return what becomes of solves that go on where lanes of the first rank fail."""

    def check(here):
        a = torch.ones(count or here.ranks, dtype=torch.float64)
        a[0] = -1.0
        a, how = here.shard(a), {"batch_dims": 1, "in_dims": 0, "sync_failures": True}

        def call():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ims.ConvergenceWarning)
                z0 = torch.ones_like(a)
                sol = ims.root(lambda z, a: z**2 - a, z0, (a,), on_failure=on_failure, **how)
                sol.value.to_local().sum().backward()
            expected = 0.0 if here.rank == 0 else 0.5  # (half of 1 / z)
            assert (a.grad.to_local() == expected).all()

        return outcomes(here, call)

    return check


def of_one_rank(here):
    """Return how lanes of the last rank end while the others do not even call the solver."""
    a = here.shard(torch.arange(1.0, 1.0 + here.ranks, dtype=torch.float64))

    def call():
        if here.rank == here.ranks - 1:
            how = {"batch_dims": 1, "in_dims": 0}
            sol = ims.root(lambda z, a: z**2 - a, torch.ones_like(a), (a,), **how)
            raise RuntimeError(sol.status_names()[0])

    return outcomes(here, call)


FAILURES = {
    "alone": of_failures(False),
    "together": of_failures(True),
    "alone, backward": of_failures(False, backward=True),
    "together, backward": of_failures(True, backward=True),
    "together, without DTensors": of_ranks_without_dtensors,
    "nobody waits": of_one_rank,
    "warn": of_policy("warn", None),
    "mask": of_policy("mask", None),
    "mask, ranks without lanes": of_policy("mask", 1),
    "raise, ranks without lanes": of_policy("raise", 1),
}
