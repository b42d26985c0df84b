"""Two and four ranks of torchrun, with gloo, find what one process finds, gradients included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.scale_out.checks import CHECKS, LANES, LARGE, NEWER, ROWS, Alone, resumed

FOLDER = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)


def run(ranks, folder, which):
    """Return what the checks found on so many ranks."""
    paths = os.pathsep.join(str(FOLDER.parents[i]) for i in range(2))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    module = ["-m", f"{FOLDER.name}.worker", folder, which]
    command = [*launch, f"--nproc-per-node={ranks}", *module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / f"{which}{ranks}.pt", weights_only=True)


def compare(found, expected, where):
    """Compare a check with that of one process."""
    assert isinstance(found, dict), f"{where}: {found}"
    for name in expected.keys() - {"iterations", "lies"}:
        for got, alone in zip(*(t[name] for t in (found, expected)), strict=True):
            assert got is not None, f"{where}: no {name}"
            # sums of a few numbers in another order, solutions to 4e-11
            rtol = 8 * torch.finfo(alone.dtype).eps if alone.dtype == torch.float32 else 1e-9
            close = {"rtol": rtol, "atol": 1e-11, "equal_nan": True}
            torch.testing.assert_close(got, alone.detach(), msg=where, **close)
    if "iterations" in found:
        # two steps of a hundred, or one where there are fewer
        steps, alone = int(found["iterations"]), int(expected["iterations"])
        assert abs(steps - alone) <= max(1, 0.02 * alone), where


def of_one_failure(outcomes, together, what):
    """Tell whether the last rank failed, and whether the others did with it."""
    *others, last = outcomes
    assert last.startswith(f"ConvergenceError: {what} of") and "failed in 1 of 2 problems" in last
    for outcome in others:
        assert (f"failed on other ranks (problems: 1 on rank {len(others)})" in outcome) is together
        assert bool(outcome) is together


@pytest.mark.slow
def test_ranks_find_what_one_process_finds(tmp_path):
    alone = {name: check(Alone()) for name, check in CHECKS.items()}
    training = resumed(Alone())
    for ranks in (2, 4):  # the training of two goes on with four
        found = run(ranks, tmp_path, "checks")
        assert alone.keys() - set(NEWER) <= found.keys()
        for name, expected in alone.items():
            if name in NEWER and name not in found:
                continue
            compare(found[name], expected, f"{name} on {ranks} ranks")
        for name in {*ROWS, *LANES} & found.keys():
            # gradients of what is sharded stay sharded, those of what is not are added up
            assert not any("Partial" in lies for lies in found[name]["lies"]), name
            # (torch 2.8 gathers some)
            assert "Shard(dim=" in found[name]["lies"][0] or "Newton" not in found, name
        of_one_failure(found["alone"], False, "root")
        of_one_failure(found["together"], True, "root")
        of_one_failure(found["alone, backward"], False, "adjoint of root")
        of_one_failure(found["together, backward"], True, "adjoint of root")
        of_one_failure(found["together, without DTensors"], True, "root")
        for name in ("warn", "mask", "mask, ranks without lanes"):
            assert found[name] == [""] * ranks, name
        failed, *others = found["raise, ranks without lanes"]
        assert "failed in 1 of 1 problems" in failed
        assert all("failed on other ranks (problems: 1 on rank 0)" in other for other in others)
        assert found["nobody waits"] == [*[""] * (ranks - 1), "RuntimeError: CONVERGED"]
        if ranks == 4:
            compare(found["resumed"], training, "resumed on 4 ranks")


@pytest.mark.nightly
def test_a_large_system_on_four_ranks(tmp_path):
    found = run(4, tmp_path, "large")["large"]
    compare(found, LARGE(Alone()), "large")
    assert found["value"].numel() == 250_000 and int(found["iterations"]) > 100
