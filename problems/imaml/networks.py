"""A ``torch.nn.Module`` as a function of its parameters."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

import implicit_solvers as ims
from implicit_solvers.problems.imaml.method import Model

__all__ = ["functional_model"]


def functional_model(network: nn.Module) -> tuple[Model, dict[str, Tensor]]:
    """Return ``model(parameters, x)`` and the parameters that the network has now, by name.

    The parameters are detached copies, and the model is a copy of the network. Batch normalization
    is transductive: it uses the statistics of the examples at hand (all support, or all query
    examples of one task), as the paper's networks do; under ``vmap`` each task has its own.

    Parameters
    ----------
    network
        Any module, with floating parameters. Its batch normalizations must not track statistics,
        which tasks that are batched cannot share: build them with ``track_running_stats=False``,
        or use ``GroupNorm``.

    Returns
    -------
    model
        ``model(parameters, x)``, a `Model`: what ``network(x)`` returns with those parameters.
    parameters
        A dict of tensors by name, of the shapes and dtypes of the network's. Parameters that are
        frozen, with ``requires_grad=False``, are none: they stay what they are in the model.

    Raises
    ------
    TypeError
        If ``network`` is no ``torch.nn.Module``.
    ValueError
        If a batch or instance normalization tracks statistics.

    Notes
    -----
    Torch (2.8 to 2.15) differentiates batch, instance and layer normalizations with a weight
    wrongly in ``vjp(vmap(grad(...)))``, which products with the Hessians of batched tasks are:
    the model is one of `weights_apart`.

    Examples
    --------
    >>> import torch
    >>> model, theta = functional_model(nn.Linear(3, 2))
    >>> model(theta, torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network is a {type(network).__name__}: pass a torch.nn.Module")
    for name, module in network.named_modules():
        if getattr(module, "track_running_stats", False):
            raise ValueError(
                f"{name or 'the network'} is a {type(module).__name__} that tracks running "
                "statistics, which batched tasks cannot update: pass track_running_stats=False "
                "(each task is normalized by its own examples), or use GroupNorm"
            )
    parameters = {
        name: value.detach().clone()
        for name, value in network.named_parameters()
        if value.requires_grad
    }
    own = copy.deepcopy(network)

    @ims.weights_apart
    def model(parameters: dict[str, Tensor], x: Any) -> Tensor:
        return functional_call(own, parameters, (x,))

    return model, parameters
