"""The fields of a configuration as options of the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

Configuration = TypeVar("Configuration")


def number(
    kind: type[int] | type[float],
    low: float = -math.inf,
    high: float = math.inf,
    *,
    closed: bool = False,
) -> Callable[[str], Any]:
    """Return a reader of finite numbers above ``low``, or from it on, and below ``high``.

    Examples
    --------
    >>> number(int, 0)("3"), number(float, 0, 1, closed=True)("0")
    (3, 0.0)
    """

    def read(text: str) -> int | float:
        value = kind(text)
        if not (math.isfinite(value) and (value > low or (closed and value == low))):
            unfit = "not finite" if math.isinf(low) else f"not above {low:g}"
            if low == 0:
                unfit = "not positive and finite" if kind is float else "not positive"
            if closed and kind is int:
                unfit = "negative"
            raise argparse.ArgumentTypeError(f"{text} is {unfit}")
        if value >= high:
            raise argparse.ArgumentTypeError(f"{text} is not below {high:g}")
        return value

    return read


WHOLE, COUNT = number(int, 0, closed=True), number(int, 0)


def device(text: str) -> str:
    """Return the name of a device that this machine has.

    Examples
    --------
    >>> device("cpu")
    'cpu'
    """
    try:
        torch.zeros(1, device=text).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise argparse.ArgumentTypeError(f"there is no device {text} here ({reason})") from error
    return text


def option(
    default: Any,
    text: str,
    *,
    read: Callable[[str], Any] | None = None,
    choices: Collection[str] | None = None,
    names: tuple[str, ...] = (),
    metavar: str | None = None,
) -> Any:
    """Return a field of a configuration that is an option of the command line.

    ``read`` returns the value of a text; left out, numbers are positive. ``names`` are other names
    of the option. A list takes one value or more.
    """
    about = {"text": text, "read": read, "choices": choices, "names": names, "metavar": metavar}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=about)
    return field(default=default, metadata=about)


def reader_of(about: Field[Any]) -> Callable[[str], Any]:
    """Return what reads the text of an option."""
    default = _first(default_of(about))
    usual = COUNT if isinstance(default, int) else number(float, 0)
    return about.metadata["read"] or (str if isinstance(default, str) else usual)


def default_of(about: Field[Any]) -> Any:
    """Return the default of a field."""
    return about.default_factory() if callable(about.default_factory) else about.default


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def add_options(
    parser: Any,
    configuration: type,
    *,
    only: Collection[str] | None = None,
    leave_out: Collection[str] = (),
    shown: Mapping[str, Any] = MappingProxyType({}),
    names: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    unset: bool = False,
) -> None:
    """Declare an option for each field that `option` made, on a parser or a group.

    ``only`` and ``leave_out`` choose among the fields; ``shown`` is what the help shows as defaults
    instead of theirs; ``names`` are further names; ``unset`` options are None if not given.
    """
    for one in fields(configuration):
        about = one.metadata
        if not about or one.name in leave_out or (only is not None and one.name not in only):
            continue
        default = default_of(one)
        seen = shown.get(one.name, default)
        text = " ".join(map(_text, seen)) if isinstance(seen, list) else _text(seen)
        given: dict[str, Any] = {"dest": one.name, "default": None if unset else default}
        given["help"] = about["text"] + ("" if seen is None else f" ({text})")
        if isinstance(default, bool):
            given["action"] = argparse.BooleanOptionalAction
        else:
            given["choices"] = None if about["choices"] is None else list(about["choices"])
            given["type"] = reader_of(one)
            kind = {int: "N", float: "X", str: "NAME"}.get(type(_first(default)), "N")
            given["metavar"] = about["metavar"] or kind
            if isinstance(default, list):
                given["nargs"] = "+"
            if about["choices"] is not None:
                given["help"] = f"{given['help']}, of {' '.join(about['choices'])}"
        flags = [one.name.replace("_", "-"), *about["names"], *names.get(one.name, ())]
        flags = [("-" if len(flag) == 1 else "--") + flag for flag in flags]
        parser.add_argument(*flags, **given)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def add_run_options(
    parser: argparse.ArgumentParser,
    out: str,
    *,
    resume: bool = True,
    checkpoint_every: int | None = None,
    unit: str = "epochs",
    threads: bool = False,
    jobs: bool = False,
) -> None:
    """Declare the options of the folder of a run: those that it has, torch's threads, and jobs."""
    add = parser.add_argument
    add("--out", type=Path, default=Path(out), help="folder of the results (%(default)s)")
    either = parser.add_mutually_exclusive_group()
    if resume:
        text = "go on from the checkpoint in that folder"
        either.add_argument("--resume", action="store_true", help=text)
    text = "replace the results in that folder"
    either.add_argument("--overwrite", action="store_true", help=text)
    if checkpoint_every is not None:
        text = f"{unit} from one checkpoint to the next (%(default)s)"
        given: dict[str, Any] = {"type": COUNT, "default": checkpoint_every}
        add("--checkpoint-every", metavar="N", help=text, **given)
    if threads:
        text = "of torch (%(default)s): two are faster on idle cores, much slower on busy ones"
        add("--threads", type=COUNT, default=1, metavar="N", help=text)
    if jobs:
        add("--jobs", type=COUNT, default=1, metavar="N", help="processes (%(default)s)")


def configuration_of(
    arguments: argparse.Namespace, kind: type[Configuration], **changes: Any
) -> Configuration:
    """Return the configuration that options give, with changes; doubles in lists count once."""
    given: dict[str, Any] = {
        one.name: getattr(arguments, one.name)
        for one in fields(kind)  # type: ignore[arg-type]
        if one.metadata and hasattr(arguments, one.name)
    }
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = list(dict.fromkeys(value))
    return kind(**{**given, **changes})
