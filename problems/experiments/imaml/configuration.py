"""What the results of a meta-learning run depend on, and where its options come from."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.harness import option

LABELS = {
    "imaml-gd": "iMAML, gradient descent",
    "imaml-hf": "iMAML, Hessian-free",
    "maml": "MAML",
    "fomaml": "first-order MAML",
    "reptile": "Reptile",
    "r2d2": "R2D2",
}
METHODS = tuple(LABELS)
FOLDERS = ("omniglot", "mini-imagenet")


def _data(text: str) -> str:
    kind, _, folder = text.partition(":")
    if (kind in FOLDERS and folder) or text in ("glyphs", "sinusoid"):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is no data: pass glyphs, sinusoid, omniglot:FOLDER or mini-imagenet:FOLDER"
    )


@dataclass(frozen=True)
class Configuration:
    """The numbers behind a run.

    Examples
    --------
    >>> configuration = Configuration(data="omniglot:/data/omniglot")
    >>> configuration.kind, configuration.folder.name
    ('omniglot', 'omniglot')
    """

    method: str = option("imaml-gd", "how it learns", choices=METHODS)
    data: str = option(
        "glyphs",
        "glyphs, sinusoid, omniglot:FOLDER or mini-imagenet:FOLDER",
        read=_data,
        metavar="DATA",
    )
    ways: int = option(5, "classes in a task")
    shots: int = option(1, "examples of each class (points of a sine wave) to learn from")
    queries: int = option(10, "examples of each class to be judged by")
    steps: int = option(160, "meta-steps of Adam")
    meta_batch: int = option(8, "tasks in a meta-step")
    seed: int = option(
        0, "of the weights, the tasks, and the glyphs' instances", read=harness.WHOLE
    )
    class_seed: int = option(
        0, "of the split into classes to learn from, to validate and to test on", read=harness.WHOLE
    )
    inner_steps: int = option(16, "gradient steps of a task")
    inner_lr: float = option(0.1, "their length")
    strength: float = option(2.0, "of iMAML's regularization towards the meta-parameters, lambda")
    damping: float = option(
        0.0,
        "share of the strength that is added to iMAML's linear systems",
        read=harness.number(float, 0, closed=True),
    )
    newton_steps: int = option(3, "steps of imaml-hf in a task")
    adjoint_steps: int = option(
        5, "steps of CG in iMAML's meta-gradient, and in each step of imaml-hf"
    )
    ridge: float = option(1.0, "of R2D2, where its learning begins")
    scale: float = option(10.0, "of R2D2's outputs, where its learning begins")
    lr: float = option(2e-3, "highest rate of Adam")
    convolution_lr: float = option(2e-2, "highest rate of Adam for convolutions")
    width: int = option(32, "channels of the network; hidden units for sine waves")
    side: int = option(28, "pixels along the side of an image")
    normalization: str = option(
        "batch",
        "by the statistics of a batch, as in the paper, or of groups of channels",
        choices=("batch", "group"),
    )
    pooling: bool = option(False, "halve images by the largest of 2 by 2 pixels, not by strides")
    instances: int = option(20, "drawings of each glyph")
    split: str = option(
        "characters",
        "of Omniglot: all characters at random, or the alphabets of the release",
        choices=("characters", "alphabets"),
    )
    batching: str = option(
        "vmap",
        "tasks together, or one after the other; auto measures which is faster here",
        choices=("vmap", "loop", "auto"),
    )
    validations: int = option(8, "points of the learning curve")
    validation_tasks: int = option(40, "tasks of the learning curve")
    evaluation_tasks: int = option(600, "tasks of the final score; 0: none", read=harness.WHOLE)

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


FIELDS = {field.name: field for field in fields(Configuration)}


def add_configuration(
    parser: argparse.ArgumentParser,
    leave_out: Collection[str] = (),
    shown: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Declare an option for each number, ``--size`` and ``--config``; None where not given."""
    harness.add_options(parser, Configuration, leave_out=leave_out, shown=shown, unset=True)
    text = (
        "paper: 64 channels, 60,000 meta-steps of 32 tasks (16 of more than five ways), 16 inner "
        "steps (25): weeks on a CPU (small)"
    )
    parser.add_argument("--size", choices=("small", "paper"), help=text)
    text = "JSON or TOML with these options, which the command line overrides"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)


def given_options(arguments: argparse.Namespace, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Return the options of the file, overridden by those of the command line."""
    options = read_options(arguments.config) if arguments.config else {}
    unfit = sorted(options.keys() & set(leave_out))
    if unfit:
        raise ValueError(f"{arguments.config} has {', '.join(unfit)}, which the table varies")
    names = ["size", *(name for name in FIELDS if name not in leave_out)]
    given = {name: getattr(arguments, name, None) for name in names}
    return options | {name: value for name, value in given.items() if value is not None}


def configuration_from(options: Mapping[str, Any]) -> Configuration:
    """Return the configuration of some options; the data and the size decide the others.

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

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "run.toml"
    ...     lines = 'method = "maml"' + chr(10) + "meta-batch = 4"
    ...     _ = path.write_text(lines, encoding="utf-8")
    ...     read_options(path)
    {'method': 'maml', 'meta_batch': 4}
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a table of options, not {type(content).__name__}")
    options = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name == "size" and value in ("small", "paper"):
            options[name] = value
        elif name not in FIELDS:
            raise ValueError(f"{path} has the unknown option {key}: --help lists the options")
        else:
            options[name] = _checked(path, name, value)
    return options


def _checked(path: Path, name: str, value: Any) -> Any:
    about = FIELDS[name]
    choices, truth = about.metadata["choices"], isinstance(harness.default_of(about), bool)
    if isinstance(value, bool) or truth:
        if isinstance(value, bool) and truth:
            return value
        kind = "true or false" if truth else "no truth value"
        raise ValueError(f"{path}: {name} = {value!r} must be {kind}")
    if choices is not None:
        if value not in choices:
            raise ValueError(f"{path}: {name} = {value!r} is none of {', '.join(choices)}")
        return value
    try:
        return harness.reader_of(about)(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{path}: {name} = {value!r} is unfit ({error})") from error
