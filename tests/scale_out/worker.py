"""Run by torchrun: make all checks as one of its ranks; rank 0 writes what came out."""

import datetime
import os
import sys
import traceback

import torch
import torch.distributed as dist

from implicit_solvers.sharding import twice_differentiable

from .checks import CHECKS, LARGE, NEWER, OnRanks, resumed
from .failures import FAILURES


def main(folder, which):
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    here, found = OnRanks(), {}
    if which == "large":
        checks = {"large": LARGE}
    else:
        checks = {**CHECKS, **FAILURES, "resumed": lambda here: resumed(here, f"{folder}/state")}
    for name in () if twice_differentiable(here.mesh) else NEWER:
        checks.pop(name, None)
    for name, check in checks.items():
        try:
            found[name] = check(here)
        except Exception:
            found[name] = traceback.format_exc()
    if here.rank == 0:
        torch.save(found, f"{folder}/{which}{here.ranks}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    # threads of torch may outlive the interpreter, which ends a process in an abort
    os._exit(0)
