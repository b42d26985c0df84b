"""A side that needs an environment of its own: a process that answers questions, one a line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Worker", "in_turns", "seconds_of", "serve"]


class Worker:
    """A script in another interpreter, run with ``--serve NAME``, that `serve`\\ s."""

    def __init__(self, python: str | Path, script: str, name: str) -> None:
        self.process = subprocess.Popen(
            [str(python), "-W", "ignore", script, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name = name

    def ask(self, question: str) -> Any:
        """Return the answer, or end the program if the other side has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"{self.name} ended before it answered: see its error above")
        return json.loads(line)

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(answers: Mapping[str, Callable[[], Any]]) -> None:
    """Answer each line on the standard input by calling the function of that name."""
    for line in sys.stdin:
        print(json.dumps(answers[line.strip()]()), flush=True)


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def in_turns(workers: Mapping[str, Worker], rounds: int) -> dict[str, list[float]]:
    """Return what each answers to ``seconds`` in every round, the first of them not counted.

    Every other round goes through the sides backwards.
    """
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(rounds + 1):
        for name in list(workers)[:: 1 if turn % 2 else -1]:
            answer = workers[name].ask("seconds")
            if turn:
                seconds[name].append(answer)
    return seconds
