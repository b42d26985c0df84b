"""Reading the grids of reference values, and comparing with them."""

from pathlib import Path

import numpy as np
import torch

# the bounds that the docstrings state, all relative
VALUE, SLOPE, SECOND = 1e-12, 1e-9, 1e-9


def grid(name):
    """Return the columns of a grid as tensors."""
    with np.load(Path(__file__).parent / "grids" / f"{name}.npz") as table:
        return {key: torch.from_numpy(table[key]) for key in table.files}


def worst(ours, reference, scale=None):
    """Return the largest error relative to ``scale``, by default the reference itself."""
    ours, scale = ours.detach(), reference.abs() if scale is None else scale
    assert ours.shape == reference.shape and not ours.isnan().any()
    # where the exact value is 0, 0 / 0 stands for no error
    return float(((ours - reference).abs() / scale).nan_to_num(0.0, posinf=torch.inf).max())


def leaves(*tensors):
    """Return copies that record gradients."""
    return [t.clone().requires_grad_() for t in tensors]
