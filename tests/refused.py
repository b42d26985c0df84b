"""The wrong calls of tests/refusals, made: by their test, and by the documentation's page."""

import importlib
import math
from pathlib import Path

import numpy as np
import torch

import implicit_solvers as ims

FOLDER = Path(__file__).with_name("refusals")
AREAS = [path.stem for path in FOLDER.glob("*.py") if path.stem != "row"]
AREAS.sort(key=lambda name: (name != "first_steps", name))


def area(name):
    """Return the module of an area: its docstring is a title, and it has SETUP and ROWS."""
    return importlib.import_module(f"tests.refusals.{name}")


def names_for(setup):
    """Return the names that the calls of an area may use."""
    # Dynamo switches these checks off, for the whole process, at its first use
    torch.distributions.Distribution.set_default_validate_args(True)
    space = {"torch": torch, "ims": ims, "np": np, "math": math}
    exec(setup, space)
    return space


def left():
    """End what a SETUP has begun for the whole process."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def squeezed(text):
    return " ".join(text.split())
