"""Run a command whole, then again and again with a kill at a random moment and ``--resume``.

``python killed_runs.py FOLDER KILLS SEED ARGUMENTS...`` forks a process for each run, so that all
share the seconds that torch takes to start. It prints, as JSON, the meta-steps in the checkpoint
that each kill left behind (None: there was none). The runs are in ``FOLDER/whole`` and
``FOLDER/0``, ``FOLDER/1``, ...
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401
import torch

from implicit_solvers.problems.__main__ import main


def start(arguments):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                status = main(arguments)
        finally:
            os._exit(status)
    return child


def finish(child):
    status = os.waitpid(child, 0)[1]
    if status != 0:
        sys.exit(f"a run ended with {status}")


def kill_at(moment, arguments):
    """Return whether the run was still there to be killed."""
    child = start(arguments)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def steps_in(checkpoint):
    if not checkpoint.exists():
        return None
    return len(torch.load(checkpoint, weights_only=True)["history"]["loss"])


if __name__ == "__main__":
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    command = ["imaml", *sys.argv[4:], "--out"]
    main([*command, str(folder / "warm")])
    begin = time.perf_counter()
    finish(start([*command, str(folder / "whole")]))
    longest = time.perf_counter() - begin
    moments = random.Random(seed)
    left = []
    while len(left) < kills:
        out = folder / str(len(left))
        if not kill_at(moments.uniform(0, longest), [*command, str(out)]):
            shutil.rmtree(out)  # it was faster than the first one
            continue
        left.append(steps_in(out / "checkpoint.pt"))
        finish(start([*command, str(out), "--resume"]))
    print(json.dumps(left))
