"""What the results of a meta-learning run depend on, and where its options come from."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from implicit_solvers.problems.experiments.harness.options import positive, positive_integer, whole

__all__ = ["Configuration", "add_options", "configuration_from", "read_options"]

METHODS = ("imaml-gd", "imaml-hf", "maml", "fomaml", "reptile", "r2d2")
LABELS = {
    "imaml-gd": "iMAML, gradient descent",
    "imaml-hf": "iMAML, Hessian-free",
    "maml": "MAML",
    "fomaml": "first-order MAML",
    "reptile": "Reptile",
    "r2d2": "R2D2",
}
FOLDERS = ("omniglot", "mini-imagenet")


@dataclass(frozen=True)
class Configuration:
    """The numbers behind a run; `HELP` says what each is.

    Examples
    --------
    >>> configuration = Configuration(data="omniglot:/data/omniglot")
    >>> configuration.kind, configuration.folder.name
    ('omniglot', 'omniglot')
    """

    method: str = "imaml-gd"
    data: str = "glyphs"
    ways: int = 5
    shots: int = 1
    queries: int = 10
    steps: int = 160
    meta_batch: int = 8
    seed: int = 0
    class_seed: int = 0
    inner_steps: int = 16
    inner_lr: float = 0.1
    strength: float = 2.0
    damping: float = 0.0
    newton_steps: int = 3
    adjoint_steps: int = 5
    ridge: float = 1.0
    scale: float = 10.0
    lr: float = 2e-3
    convolution_lr: float = 2e-2
    width: int = 32
    side: int = 28
    normalization: str = "batch"
    pooling: bool = False
    instances: int = 20
    split: str = "characters"
    batching: str = "vmap"
    validations: int = 8
    validation_tasks: int = 40
    evaluation_tasks: int = 600

    @property
    def kind(self) -> str:
        """The kind of data: ``glyphs``, ``sinusoid``, ``omniglot`` or ``mini-imagenet``."""
        return self.data.split(":", 1)[0]

    @property
    def score_name(self) -> str:
        """What is reported: ``"accuracy"`` or ``"squared error"``."""
        return "squared error" if self.kind == "sinusoid" else "accuracy"

    @property
    def folder(self) -> Path:
        """Where the data are, if they are in a folder."""
        return Path(self.data.split(":", 1)[1])


HELP = {
    "method": "how it learns",
    "data": "glyphs, sinusoid, omniglot:FOLDER or mini-imagenet:FOLDER",
    "ways": "classes in a task",
    "shots": "examples of each class (points of a sine wave) to learn from",
    "queries": "and to be judged by",
    "steps": "meta-steps of Adam",
    "meta_batch": "tasks in a meta-step",
    "seed": "of the weights, the tasks, and the glyphs' instances",
    "class_seed": "of the split into classes to learn from, to validate and to test on",
    "inner_steps": "gradient steps of a task",
    "inner_lr": "their length",
    "strength": "of iMAML's regularization towards the meta-parameters, lambda",
    "damping": "share of the strength that is added to iMAML's linear systems",
    "newton_steps": "steps of imaml-hf in a task",
    "adjoint_steps": "steps of CG in iMAML's meta-gradient, and in each step of imaml-hf",
    "ridge": "of R2D2, where its learning begins",
    "scale": "of R2D2's outputs, where its learning begins",
    "lr": "highest rate of Adam",
    "convolution_lr": "and that of convolutions",
    "width": "channels of the network; hidden units for sine waves",
    "side": "pixels along the side of an image",
    "normalization": "by the statistics of a batch, as in the paper, or of groups of channels",
    "pooling": "halve images by the largest of 2 by 2 pixels, not by strides",
    "instances": "drawings of each glyph",
    "split": "of Omniglot: all characters at random, or the alphabets of the release",
    "batching": "tasks together, or one after the other; auto measures which is faster here",
    "validations": "points of the learning curve",
    "validation_tasks": "tasks of the learning curve",
    "evaluation_tasks": "tasks of the final score; 0 for none",
}
CHOICES = {
    "method": METHODS,
    "normalization": ("batch", "group"),
    "split": ("characters", "alphabets"),
    "batching": ("vmap", "loop", "auto"),
}
MAY_BE_ZERO = ("seed", "class_seed", "evaluation_tasks")


def add_options(
    parser: argparse.ArgumentParser,
    leave_out: Collection[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Declare an option for each number; None where it is not given.

    Parameters
    ----------
    parser
        Receives the options, and ``--size`` and ``--config``.
    leave_out
        Numbers that get no option.
    defaults
        What the help shows as a default instead of that of `Configuration`.
    """
    for field in fields(Configuration):
        if field.name in leave_out:
            continue
        option: dict[str, Any] = {"dest": field.name, "default": None}
        option["help"] = f"{HELP[field.name]} ({defaults.get(field.name, field.default)})"
        if isinstance(field.default, bool):
            option["action"] = argparse.BooleanOptionalAction
        elif field.name in CHOICES:
            option["choices"] = CHOICES[field.name]
        else:
            option["type"] = _reader(field.name, field.default)
            option["metavar"] = {int: "N", float: "X", str: "DATA"}[type(field.default)]
        parser.add_argument("--" + field.name.replace("_", "-"), **option)
    parser.add_argument(
        "--size",
        choices=("small", "paper"),
        default=None,
        help="paper: 64 channels, 60,000 meta-steps of 32 tasks (16 of more than five ways), 16 "
        "inner steps (25): weeks on a CPU (small)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="JSON or TOML with these options, which the command line overrides",
    )


def _reader(name: str, default: Any) -> Callable[[str], Any]:
    if name == "data":
        return _data
    if isinstance(default, int):
        return whole if name in MAY_BE_ZERO else positive_integer
    return _not_negative if name == "damping" else positive


def _data(text: str) -> str:
    kind, _, folder = text.partition(":")
    if (kind in FOLDERS and folder) or text in ("glyphs", "sinusoid"):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is no data: pass glyphs, sinusoid, omniglot:FOLDER or mini-imagenet:FOLDER"
    )


def _not_negative(text: str) -> float:
    return 0.0 if float(text) == 0 else positive(text)


def configuration_from(options: Mapping[str, Any]) -> Configuration:
    """Return the configuration of some options; the data and the size decide the others.

    Parameters
    ----------
    options
        By the names of the fields; ``"size"`` may be among them. None stands for the default.

    Raises
    ------
    ValueError
        If ``imaml-gd``'s relatives do not fit the data: one way of classes, say.

    Examples
    --------
    >>> small = configuration_from({"method": "maml", "width": 8})
    >>> small.method, small.width, small.inner_steps
    ('maml', 8, 16)
    >>> paper = configuration_from({"ways": 20, "size": "paper"})
    >>> paper.width, paper.inner_steps, paper.meta_batch, paper.steps
    (64, 25, 16, 60000)
    """
    given = {name: value for name, value in options.items() if value is not None}
    size = given.pop("size", "small")
    if "data" in given and ":" in given["data"]:
        # another working folder must not make another run of it
        kind, folder = given["data"].split(":", 1)
        given["data"] = f"{kind}:{Path(folder).resolve()}"
    kind = given.get("data", Configuration.data).split(":", 1)[0]
    few = given.get("ways", Configuration.ways) <= 5
    defaults: dict[str, Any] = {}
    if kind == "sinusoid":
        defaults = {"ways": 1, "shots": 10, "width": 40, "inner_steps": 10, "lr": 3e-3}
        defaults |= {"inner_lr": 0.02, "strength": 2.0, "meta_batch": 16, "steps": 400}
    elif kind == "mini-imagenet":
        defaults = {"side": 84, "pooling": True, "inner_steps": 10, "strength": 0.5}
    if size == "paper":
        defaults |= {"steps": 60_000, "meta_batch": 32 if few else 16, "batching": "auto"}
        if kind in ("glyphs", "omniglot"):
            defaults |= {"width": 64, "inner_steps": 16 if few else 25}
        elif kind == "mini-imagenet":
            defaults |= {"width": 64, "meta_batch": 4}
    configuration = Configuration(**{**defaults, **given})
    if kind == "sinusoid" and configuration.ways != 1:
        raise ValueError(f"ways={configuration.ways}: sine waves have no classes, leave it out")
    if kind != "sinusoid" and configuration.ways < 2:
        raise ValueError(f"ways={configuration.ways}: a task needs two classes or more")
    if kind == "glyphs" and 28 % configuration.side:
        raise ValueError(f"side={configuration.side}: glyphs have a side of 28, 14, 7 or 4 pixels")
    return configuration


def read_options(path: Path) -> dict[str, Any]:
    """Return the options in a file, checked as the command line's are.

    Parameters
    ----------
    path
        TOML if it ends in ``.toml``, else JSON: a table of options. ``meta-batch`` and
        ``meta_batch`` are the same.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not of that format, names an unknown option, or has an unfit value.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "run.toml"
    ...     _ = path.write_text('method = "maml"' + chr(10) + "meta-batch = 4")
    ...     read_options(path)
    {'method': 'maml', 'meta_batch': 4}
    """
    text = path.read_text()
    try:
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a table of options, not {type(content).__name__}")
    defaults = {field.name: field.default for field in fields(Configuration)}
    options = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name == "size" and value in ("small", "paper"):
            options[name] = value
        elif name not in defaults:
            raise ValueError(f"{path} has the unknown option {key}: --help lists the options")
        else:
            options[name] = _checked(path, name, value, defaults[name])
    return options


def _checked(path: Path, name: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
        kind = "true or false" if isinstance(default, bool) else "no truth value"
        raise ValueError(f"{path}: {name} = {value!r} must be {kind}")
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise ValueError(f"{path}: {name} = {value!r} is none of {', '.join(CHOICES[name])}")
        return value
    try:
        return _reader(name, default)(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{path}: {name} = {value!r} is unfit ({error})") from error
