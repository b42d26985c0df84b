"""``implicit-solvers check``: the derivatives of a user's own equation against differences.

It knows no experiment, and no problem of the library's.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor, nn

import implicit_solvers as ims
from implicit_solvers.testing.check import check_implicit_gradients

__all__ = ["add_arguments", "run"]

LAYERS = (ims.nn.Root, ims.nn.FixedPoint, ims.nn.Minimize)
KINDS = ("root", "fixed_point", "minimize", "least_squares", "layer")
DTYPES = {"float64": torch.float64, "float32": torch.float32}
# The shapes that are tried for a function's arguments, all of them alike.
SHAPES: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (4,), (3, 3), (2, 2))

DESCRIPTION = """\
Solve an equation of your own, and compare every derivative of its solution with central
differences: reverse and forward mode, double backward, vmap, captured tensors; look at the
residual, the conditioning, other starts, and what a failed problem does to the others. The table
names the likely cause of each failure.
"""

EPILOG = """\
values, for --z0 and --args:
  0.5                 a number: a 0-d tensor
  "[1, 2.5]"          a list, nested for matrices: a tensor
  shape=3,2           a tensor of that shape, drawn between 0.1 and 0.9; shape= is 0-d
  python=3            a Python value, passed as it is
what is left out is drawn from the function's signature: a default that is no tensor is kept, every
other argument and the start are drawn between 0.1 and 0.9, all of one shape if the function takes
one of 0-d, (3,), (2,), (4,), (3, 3), (2, 2), else with 0-d arguments, else with arguments of one of
these. What was drawn is printed.

exit status:
  0  every comparison agreed (there may be warnings)
  1  at least one failed
  2  the command could not be understood: no such file, no such name, wrong arguments

examples:
  implicit-solvers check kepler.py:kepler --z0 0.5 --args 0.5 0.3
  implicit-solvers check model.py:cell --kind fixed_point --z0 shape=4,3 --args shape=4,3 \\
      --batch-dims 1 --in-dims 0
  implicit-solvers check model.py:layer --kind layer --args shape=3 --json
"""


class UsageError(ValueError):
    """What was asked for cannot be done; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("target", metavar="FILE.py:NAME", help="the function or module to check")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="root",
        help="what the function is: fn(z, *args) of an equation, or layer(*args); "
        "modules of implicit_solvers.nn are layers (default: root)",
    )
    parser.add_argument("--z0", metavar="VALUE", help="the start")
    parser.add_argument("--args", nargs="*", metavar="VALUE", help="the arguments after z")
    parser.add_argument("--batch-dims", type=int, default=0, metavar="K", help="lanes of z0")
    parser.add_argument(
        "--in-dims",
        nargs="*",
        choices=("0", "none"),
        help="with --batch-dims: for each argument, 0 if it has the batch, else none",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float64", help="the precision (default: float64)"
    )
    parser.add_argument(
        "--order", type=int, choices=(1, 2, 3), default=2, help="highest derivative (default: 2)"
    )
    parser.add_argument("--no-forward", action="store_true", help="leave forward mode out")
    parser.add_argument("--no-vmap", action="store_true", help="leave vmap out")
    parser.add_argument(
        "--starts", type=int, default=4, metavar="N", help="other starts to try (default: 4)"
    )
    parser.add_argument("--unique", action="store_true", help="another root is a failure")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and return the exit status."""
    try:
        target, z0, args, drawn = _prepare(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options: dict[str, Any] = {}
    if arguments.batch_dims:
        options["batch_dims"] = arguments.batch_dims
    if arguments.in_dims is not None:
        options["in_dims"] = tuple(0 if dim == "0" else None for dim in arguments.in_dims)
    if drawn and not arguments.json:
        for line in drawn:
            print(line)
        print()
    try:
        report = check_implicit_gradients(
            target,
            z0,
            args,
            kind="root" if arguments.kind == "layer" else arguments.kind,
            double=arguments.dtype == "float64",
            order=arguments.order,
            forward=not arguments.no_forward,
            vmap=not arguments.no_vmap,
            starts=arguments.starts,
            unique=arguments.unique,
            seed=arguments.seed,
            **options,
        )
    except (TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.to_json() if arguments.json else report)
    return 0 if report.passed else 1


def _prepare(arguments: argparse.Namespace) -> tuple[Any, Any, tuple[Any, ...], list[str]]:
    """Return the function, the start, the arguments, and what of these was drawn."""
    target = _load(arguments.target)
    layer = arguments.kind == "layer" or isinstance(target, LAYERS)
    if layer and arguments.z0 is not None:
        raise UsageError("--z0 was given for a layer, which chooses its own start: leave it out")
    if arguments.in_dims is not None and not arguments.batch_dims:
        raise UsageError("--in-dims was given without --batch-dims, the number of batch dimensions")
    if arguments.starts < 0:
        raise UsageError(f"--starts is {arguments.starts}: pass 0 or more")
    generator = Generator().manual_seed(arguments.seed)
    dtype = DTYPES[arguments.dtype]
    z0 = None if arguments.z0 is None else _value(arguments.z0, "--z0", dtype, generator)
    args = None
    if arguments.args is not None:
        args = tuple(
            _value(text, f"--args, value {i + 1}", dtype, generator)
            for i, text in enumerate(arguments.args)
        )
        _check_count(target, args, layer)
    if args is not None and (layer or z0 is not None):
        return target, z0, args, []
    kind = "layer" if layer else arguments.kind
    z0, args = _draw(target, z0, args, kind, dtype, generator)
    return target, z0, args, _describe(z0, args, arguments)


def _load(text: str) -> Any:
    path, separator, name = text.rpartition(":")
    if not separator or not path.endswith(".py") or not name:
        raise UsageError(f"{text!r} names no function: write path/to/file.py:name")
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"there is no file {path}")
    module = _execute(file)
    if not hasattr(module, name):
        known = [n for n, v in vars(module).items() if _is_own(v, module)]
        raise UsageError(
            f"{path} defines no {name}" + (f"; it defines {', '.join(known)}" if known else "")
        )
    target = getattr(module, name)
    if isinstance(target, type):
        raise UsageError(f"{name} is a class: name an instance of it")
    if not callable(target):
        raise UsageError(f"{name} is a {type(target).__name__}: name a function or a module")
    return target


def _is_own(value: Any, module: ModuleType) -> bool:
    if isinstance(value, nn.Module):
        return True
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _execute(file: Path) -> ModuleType:
    """Run a user's file as a module; what it prints goes to the standard error."""
    spec = importlib.util.spec_from_file_location(f"checked_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _importable_from(file.resolve().parent), contextlib.redirect_stdout(sys.stderr):
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UsageError(
                f"{file} raised {type(error).__name__} when it was run: {error}"
            ) from error
    return module


@contextlib.contextmanager
def _importable_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _value(text: str, option: str, dtype: torch.dtype, generator: Generator) -> Any:
    """Read a value from the command line."""
    if text.startswith("shape="):
        sizes = [part for part in text.removeprefix("shape=").split(",") if part.strip()]
        if not all(part.strip().isdigit() for part in sizes):
            raise UsageError(f"{option} is {text!r}: write a shape as shape=3,2")
        return _uniform(tuple(int(part) for part in sizes), dtype, generator)
    plain = text.removeprefix("python=")
    try:
        read = ast.literal_eval(plain)
        if plain != text:
            return read
        return torch.tensor(read, dtype=dtype)
    except (ValueError, SyntaxError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"{option} is {text!r}: write a number, a list, shape=3,2, or python=value"
        ) from error


def _uniform(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    drawn = 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return drawn.round(decimals=4).to(dtype)  # what is printed can be given again


def _signature(target: Any) -> inspect.Signature | None:
    if isinstance(target, LAYERS):
        target = target.cell
    if isinstance(target, nn.Module):
        target = target.forward
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None


def _check_count(target: Any, args: tuple[Any, ...], layer: bool) -> None:
    signature = _signature(target)
    if signature is None:
        return
    leading = 1 if not layer or isinstance(target, LAYERS) else 0
    try:
        signature.bind(*(None,) * leading, *args)
    except TypeError as error:
        raise UsageError(
            f"--args has {len(args)} values, and the function takes {signature}: {error}"
        ) from error


def _draw(
    target: Any,
    z0: Any,
    args: tuple[Any, ...] | None,
    kind: str,
    dtype: torch.dtype,
    generator: Generator,
) -> tuple[Any, tuple[Any, ...]]:
    """Draw what was not given, in the first shapes that the function takes."""
    layer = kind == "layer"
    wanted = _arguments_to_draw(target, layer) if args is None else list(args)
    reason = ""
    for start_shape, shape in _shapes(z0, args, layer):
        drawn = tuple(_uniform(shape, dtype, generator) if v is DRAW else v for v in wanted)
        start = z0 if z0 is not None or layer else _uniform(start_shape, dtype, generator)
        try:
            with torch.no_grad():
                out = target(*drawn) if layer else target(_fresh(start), *map(_fresh, drawn))
        except Exception as error:
            reason = reason or f"{type(error).__name__} of shape {shape}: {error}"
            continue
        if layer or _fits(out, start, kind):
            return start, drawn
        reason = reason or f"with arguments of shape {shape} it returned what does not fit z"
    raise UsageError(f"no shape was found that the function takes; give --z0 and --args ({reason})")


def _shapes(
    z0: Any, args: tuple[Any, ...] | None, layer: bool
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield shapes of z and of the arguments to try: alike first, then 0-d arguments, then all."""
    if isinstance(z0, Tensor):
        of_z: Sequence[tuple[int, ...]] = (tuple(z0.shape),)
    elif args is not None:
        given = [tuple(t.shape) for t in args if isinstance(t, Tensor)]
        of_z = tuple(dict.fromkeys([*given, *SHAPES]))
    else:
        of_z = SHAPES
    pairs = [(z, z) for z in of_z] + [(z, ()) for z in of_z]
    pairs += [(z, shape) for z in of_z for shape in SHAPES]
    yield from dict.fromkeys(((), shape) for shape in SHAPES) if layer else dict.fromkeys(pairs)


def _fits(out: Any, z: Any, kind: str) -> bool:
    if not isinstance(out, Tensor):
        return not isinstance(z, Tensor) or kind == "least_squares"
    if kind == "minimize":
        return out.dim() == 0
    return kind == "least_squares" or out.shape == z.shape


def _fresh(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class _Draw:
    """The type of `DRAW`: an argument to be drawn."""


DRAW = _Draw()


def _arguments_to_draw(target: Any, layer: bool) -> list[Any]:
    """Return for each argument of the function its default, or `DRAW`."""
    signature = _signature(target)
    if signature is None:
        raise UsageError("the function has no signature to draw arguments from: give --args")
    parameters = list(signature.parameters.values())
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        raise UsageError("the function takes any number of arguments (*args): give --args")
    positional = [
        p
        for p in parameters
        if p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    if not layer or isinstance(target, LAYERS):
        positional = positional[1:]
    return [
        DRAW if p.default is inspect.Parameter.empty or isinstance(p.default, Tensor) else p.default
        for p in positional
    ]


def _describe(z0: Any, args: Sequence[Any], arguments: argparse.Namespace) -> list[str]:
    lines = []
    if arguments.z0 is None and z0 is not None:
        lines.append(f"drawn: --z0 {_written(z0)}")
    if arguments.args is None:
        lines.append(f"drawn: --args {' '.join(_written(value) for value in args)}")
    return lines


def _written(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"python={value!r}"
    text = str(_rounded(value.tolist()))
    return f'"{text}"' if value.dim() else text


def _rounded(value: Any) -> Any:
    return [_rounded(entry) for entry in value] if isinstance(value, list) else round(value, 4)
