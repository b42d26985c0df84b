"""The folder of a run: its checkpoint, which is whole whenever it is there, and JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint", "write_json"]


class CheckpointError(ValueError):
    """A checkpoint does not belong to this run."""


def load_checkpoint(path: Path, configuration: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the checkpoint at ``path``, or None if there is none.

    Parameters
    ----------
    path
        Where `save_checkpoint` wrote it.
    configuration
        What this run's results depend on. The checkpoint's entry ``"configuration"`` must equal it.

    Raises
    ------
    CheckpointError
        If it is unreadable, or another configuration wrote it.
    """
    try:
        checkpoint = torch.load(path, weights_only=True)
        written = dict(checkpoint["configuration"])
    except FileNotFoundError:
        return None
    except Exception as error:  # torch.load raises whatever the bytes make it raise
        raise CheckpointError(
            f"{path} is no checkpoint of this command ({error}): delete it, or leave --resume out"
        ) from error
    differences = [
        f"{name} {written.get(name)} where this run has {configuration.get(name)}"
        for name in sorted(configuration.keys() | written.keys())
        if written.get(name) != configuration.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{path} was written with {', '.join(differences)}: pass the same options, or leave "
            "--resume out to start again"
        )
    return checkpoint


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint that is whole whenever it is there.

    Parameters
    ----------
    path
        Where it goes.
    content
        Tensors, numbers, strings, lists and dictionaries; ``"configuration"`` among them.
    """
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")
