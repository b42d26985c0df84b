"""SIGKILL at random moments, then ``--resume``: the metrics of an uninterrupted run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.problems.cli.imaml.tiny_runs import WAVES, metrics_of

STEPS, KILLS = 16, 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    script = Path(__file__).with_name("killed_runs.py")
    options = [*WAVES, "--method", "imaml-gd", "--steps", str(STEPS), "--checkpoint-every", "3"]
    command = [sys.executable, str(script), str(tmp_path), str(KILLS), "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout.splitlines()[-1])
    assert len(left) == KILLS
    # kills come in the midst of training, with steps since the last checkpoint to be redone: most
    # of them where the machine is idle, at least one on a busy one, which has slow moments
    assert any(steps is not None and 0 < steps < STEPS for steps in left)
    whole = metrics_of(tmp_path / "whole")
    assert len(whole["history"]["loss"]) == STEPS
    for kill in range(KILLS):
        assert metrics_of(tmp_path / str(kill)) == whole, left[kill]
