"""``torchrun`` with two processes: the meta-gradient and the metrics of one process."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.experiments.harness.run_folder import read_checkpoint
from tests.problems.experiments.runs import WAVES, metrics_of


def meta_gradient_of(out):
    """Of the first meta-step: Adam's mean of gradients is a tenth of it."""
    state = read_checkpoint(out / "checkpoint.pt")["optimizer"]["state"]
    return torch.cat([entry["exp_avg"].flatten() for entry in state.values()]).double() / 0.1


@pytest.mark.nightly  # (test_distributed has two processes too)
@pytest.mark.skipif(not dist.is_available(), reason="torch has no distributed package")
def test_two_processes_compute_what_one_does(tmp_path):
    # three tasks are two and one; five are scored
    options = ["imaml", *WAVES.split(), "--method", "imaml-gd", "--steps", "1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, "-m", "implicit_solvers.problems", *options]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "two")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as processes:
        assert main([*options, "--out", str(tmp_path / "one")]) == 0
        out, error = processes.communicate(timeout=200)
    assert processes.returncode == 0, error
    assert out.count("imaml-gd: squared error") == 1  # the first process alone reports

    one, two = (meta_gradient_of(tmp_path / name) for name in ("one", "two"))
    assert float((one - two).norm() / one.norm()) <= 1e-6
    one, two = (metrics_of(tmp_path / name) for name in ("one", "two"))
    assert one["score"]["tasks"] == two["score"]["tasks"] == 5
    for key in ("mean", "low", "high"):
        np.testing.assert_allclose(one["score"][key], two["score"][key], rtol=1e-4)
    assert one["tasks_left_out"] == two["tasks_left_out"] == []
    for name in ("loss", "inner_residual", "adjoint_residual"):
        # a residual is a difference of larger numbers
        rtol = 1e-6 if name == "loss" else 1e-4
        np.testing.assert_allclose(one["history"][name], two["history"][name], rtol=rtol)
