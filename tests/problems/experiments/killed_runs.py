"""Kill commands again and again, and resume them.

``python killed_runs.py FOLDER SEED NAME KILLS FILE AGAIN LINE...``, with five arguments for each
command, forks a process for each run, so that all share the seconds that torch takes to start. The
first kill of a command comes as soon as there is a file like ``FILE``, the others at random
moments; then the command runs with ``AGAIN``. It prints, as JSON, what each kill left behind: how
far the checkpoint was (None: there was none). The runs are in ``FOLDER/NAME-0``, ...
"""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.experiments.data import task_sources
from implicit_solvers.problems.experiments.ernn import gradients
from implicit_solvers.problems.experiments.harness.run_folder import read_checkpoint


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


def killed(child, moment, out, file):
    """Return whether the run was still there to be killed."""
    end = time.perf_counter() + moment
    while time.perf_counter() < end and not (file and any(out.rglob(file))):
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def done_in(out):
    """Return how many meta-steps, trainings or measurements the checkpoints in a folder hold."""
    contents = [read_checkpoint(path) for path in sorted(out.rglob("checkpoint*.pt"))]
    if not contents:
        return None
    parts = [dict(c).get("results", dict(c).get("measurements")) for c in contents]
    history = [c["history"]["loss"] for c in contents if "history" in c]
    return sum(len(part) for part in [*history, *parts] if part is not None)


def kill_and_resume(name, kills, file, again, line, folder, moments):
    command, longest, left = [*line.split(), "--out"], 100.0, []
    if kills > 1:
        with contextlib.redirect_stdout(sys.stderr):
            main([*command, str(folder / f"{name}-warm")])  # the first time in a process is slow
        begin = time.perf_counter()
        os.waitpid(start([*command, str(folder / f"{name}-whole")]), 0)
        longest = time.perf_counter() - begin
    while len(left) < kills:
        out = folder / f"{name}-{len(left)}"
        moment = moments.uniform(0, longest) if left else 100.0
        if not killed(start([*command, str(out)]), moment, out, "" if left else file):
            shutil.rmtree(out)  # it was faster than the first one
            continue
        left.append(done_in(out))
        status = os.waitpid(start([*command, str(out), *again.split()]), 0)[1]
        if status != 0:
            sys.exit(f"a run of {name} ended with {status}")
    return left


if __name__ == "__main__":
    task_sources.load_glyphs = functools.cache(task_sources.load_glyphs)
    task_sources.load_glyphs()
    gradients.STEPS = (1, 3)
    folder, moments, rows = Path(sys.argv[1]), random.Random(int(sys.argv[2])), iter(sys.argv[3:])
    left = {
        name: kill_and_resume(name, int(kills), *texts, folder, moments)
        for name, kills, *texts in zip(rows, rows, rows, rows, rows, strict=True)
    }
    print(json.dumps(left))
