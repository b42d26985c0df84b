"""The folder of a run: a lock, checkpoints with checksums, files that are whole or not there."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import filelock
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Record = TypeVar("Record")

# The first bytes of a checkpoint; behind them, the checksum of the rest and a line feed.
MARK = b"implicit-solvers checkpoint sha256 "
AGAIN = "delete it, or pass --overwrite to start again"


class RunError(ValueError):
    """What a run cannot do; the message says why, and what helps."""


class InterruptedRunError(Exception):
    """A run was interrupted from the keyboard; the message says how to go on."""


# ---- Files ----


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is whole whenever it is there; `RunError` if the disk is full."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(
            f"{path} cannot be written ({error.strerror or error}): make room for it, or pass "
            "another --out"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Return what `write_json` wrote; to read an entry that it has not is a `RunError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is no JSON ({error}): delete it") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no table: delete it")
    return _stored(content, path)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of tensors, numbers, strings, lists and dictionaries, with a checksum."""
    file = io.BytesIO()
    torch.save(_plain(content), file)
    payload = file.getvalue()
    write_whole(path, MARK + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `write_checkpoint` wrote; to read an entry that it has not is a `RunError`.

    It is one too if a bit of the file has changed, or if it is another file.
    """
    first, _, payload = path.read_bytes().partition(b"\n")
    try:
        if not first.startswith(MARK):
            raise ValueError("it does not begin as one")
        if first != MARK + hashlib.sha256(payload).hexdigest().encode():
            raise ValueError("its checksum says that it is damaged")
        return _stored(dict(torch.load(io.BytesIO(payload), weights_only=True)), path)
    except Exception as error:  # torch.load raises whatever the bytes make it raise
        raise RunError(f"{path} is no checkpoint of this command ({error}): {AGAIN}") from error


class _Stored(dict[Any, Any]):
    """A table that was read from a file, which it names where an entry is missing."""

    path: Path

    def __missing__(self, key: object) -> Any:
        raise RunError(f"{self.path} has no entry {key!r}: {AGAIN}")


def _stored(value: Any, path: Path) -> Any:
    if isinstance(value, list):
        return [_stored(entry, path) for entry in value]
    if not isinstance(value, dict):
        return value
    table = _Stored({key: _stored(entry, path) for key, entry in value.items()})
    table.path = path
    return table


def _plain(value: Any) -> Any:
    """Return builtin containers, as `torch.load` reads them safely, with tensors on the CPU."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.cpu() if isinstance(value, torch.Tensor) else value


def record(kind: type[Record], table: Mapping[str, Any]) -> Record:
    """Return a dataclass with all its fields from a table that was read from a file."""
    return kind(**{one.name: table[one.name] for one in fields(kind)})  # type: ignore[arg-type]


@contextlib.contextmanager
def restoring(table: Mapping[str, Any]) -> Iterator[None]:
    """Say that a file does not fit, where the table that was read from it cannot be loaded."""
    try:
        yield
    except RunError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        path, first = getattr(table, "path", "a checkpoint"), str(error).partition("\n")[0]
        raise RunError(
            f"{path} does not fit this command ({type(error).__name__}: {first}): {AGAIN}"
        ) from error


def _differences(written: Mapping[str, Any], own: Mapping[str, Any], name: str = "") -> list[str]:
    found = []
    for key in sorted(written.keys() | own.keys()):
        before, now = written.get(key), own.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += _differences(before, now, f"{name}{key}.")
        elif before != now:
            found.append(f"{name}{key} {before} where this run has {now}")
    return found


def _refuse_others(path: Path, written: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    differences = _differences(written, own)
    if differences:
        raise RunError(
            f"{path} was written with {', '.join(differences)}: pass the same options, another "
            "--out, or --overwrite to start again"
        )


# ---- A run ----


class Checkpoint:
    """Where a run stands, in the file ``path``; one of another configuration is refused.

    ``content`` is what was read: None if there is no file, or the run does not ``resume``. Only the
    process that ``writes`` saves. Beside what it is given it saves the ``seconds`` of all so far.
    """

    def __init__(
        self,
        path: Path,
        configuration: Mapping[str, Any],
        *,
        resume: bool = False,
        writes: bool = True,
        seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.path, self.configuration = path, json.loads(json.dumps(configuration))
        self.writes, self.seconds = writes, seconds
        self.content: dict[str, Any] | None = None
        if resume and path.exists():
            self.content = read_checkpoint(path)
            _refuse_others(path, self.content["configuration"], self.configuration)

    def save(self, **content: Any) -> None:
        """Write the file."""
        if self.writes:
            common = {"configuration": self.configuration, "seconds": self.seconds()}
            write_checkpoint(self.path, {**content, **common})


class RunFolder:
    """The folder of a run, locked from ``with`` on until the run has ended.

    ``configuration``, what the results depend on, becomes ``config.json``. A folder with results is
    refused, unless the run is to ``resume`` them, which must be of the same configuration, or to
    ``overwrite`` them; a command that ``keeps`` always goes on, and has no option ``--resume``. A
    process that is not the one that ``writes`` neither locks nor looks. ``started`` is when the
    command began, by `time.perf_counter`.
    """

    def __init__(
        self,
        path: Path,
        configuration: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        keeps: bool = False,
        writes: bool = True,
        started: float | None = None,
        console: Console | None = None,
    ) -> None:
        self.path, self.configuration = path, json.loads(json.dumps(configuration))
        self.overwrite, self.keeps, self.writes = overwrite, keeps, writes
        self.resume = resume or (keeps and not overwrite)
        self.started = time.perf_counter() if started is None else started
        self.before = 0.0  # seconds of the processes that this one goes on from
        self.console = console if console is not None and writes else Console(quiet=True)
        self._lock, self._begins = filelock.FileLock(path / ".lock", timeout=0), False

    @classmethod
    def of(
        cls, arguments: argparse.Namespace, configuration: Mapping[str, Any], **options: Any
    ) -> RunFolder:
        """Return the folder that the options of a command name."""
        given = {"resume": getattr(arguments, "resume", False), "overwrite": arguments.overwrite}
        given |= {"started": arguments.started, "console": Console()}
        return cls(arguments.out, configuration, **{**given, **options})

    def __enter__(self) -> RunFolder:
        if not self.writes:
            return self
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise RunError(
                f"another run is at work in {self.path}: wait until it has ended, or pass another "
                "--out"
            ) from error
        try:
            self._look()
            self._begins = not (self.path / "config.json").exists()
            write_json(self.path / "config.json", self.configuration)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()
        if isinstance(error, (KeyboardInterrupt, InterruptedRunError)):
            advice = "the same command goes on"
            if not self.keeps:
                advice = "there is no checkpoint yet, the same command begins again"
                if self._checkpoints():
                    advice = "the same command with --resume goes on"
            raise InterruptedRunError(f"interrupted: {advice}") from error

    def _checkpoints(self) -> list[Path]:
        return sorted(self.path.glob("checkpoint*.pt"))

    def _look(self) -> None:
        """Refuse to mix with, or to replace, what is there unasked."""
        config, metrics = self.path / "config.json", self.path / "metrics.json"
        results = [path for path in [*self._checkpoints(), metrics] if path.exists()]
        if self.resume:
            if config.exists():
                # another task of a table is no other run
                written = read_json(config)
                common = written.keys() & self.configuration.keys()
                own = {key: self.configuration[key] for key in common}
                _refuse_others(config, {key: written[key] for key in common}, own)
        elif self.overwrite:
            for path in results:
                path.unlink()
        elif results or (config.exists() and read_json(config) != self.configuration):
            raise RunError(
                f"{self.path} has {(results or [config])[0].name} of an earlier run: pass --resume "
                "to go on with it, --overwrite to replace it, or another --out"
            )

    def checkpoint(self, name: str = "checkpoint.pt", **configuration: Any) -> Checkpoint:
        """Return a checkpoint, of the configuration of the folder or of another one."""
        own = configuration or self.configuration
        options: dict[str, Any] = {"resume": self.resume, "writes": self.writes}
        try:
            found = Checkpoint(self.path / name, own, seconds=self.seconds, **options)
            if found.content is not None:
                self.before = max(self.before, found.content["seconds"])
            return found
        except RunError:
            if self._begins:
                # the checkpoint is another run's: this configuration was never the folder's
                (self.path / "config.json").unlink(missing_ok=True)
            raise

    def seconds(self) -> float:
        """Return the seconds that all took so far, in earlier processes too."""
        return self.before + time.perf_counter() - self.started

    def progress(self) -> Progress:
        """Return bars with a description, counts, the time left, and the field ``note``."""
        return Progress(
            TextColumn("{task.description:<16}"),
            *(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )

    def collect(self, name: str, rows: Iterable[Record], total: int, done: int = 0) -> list[Record]:
        """Return the rows, and show how many of ``total`` there are already."""
        with self.progress() as progress:
            return list(progress.track(rows, total, done, progress.add_task(name, note="")))

    def finish(self, metrics: Mapping[str, Any], **timing: Any) -> None:
        """Write ``metrics.json``, with the seconds that all took, and say where the results are."""
        total = self.seconds()
        content = {**metrics, "timing": {**timing, "total": total}}
        write_json(self.path / "metrics.json", content)
        self.console.print(f"{total:.0f} s. Results are in {self.path}.", soft_wrap=True)
