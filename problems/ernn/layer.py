"""Sequences through layers of cells, with the interface of ``torch.nn.RNN``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

import implicit_solvers as ims
from implicit_solvers.problems.ernn.cell import ERNNCell
from implicit_solvers.problems.ernn.parallel import run_in_parallel
from implicit_solvers.problems.ernn.sequential import run_sequentially
from implicit_solvers.problems.ernn.time_steps import TimeSteps
from implicit_solvers.problems.ernn.validation import check_floating, check_size, check_state
from implicit_solvers.torch_internals import numbers

__all__ = ["ERNN"]


class ERNN(nn.Module):
    r"""A recurrent network of `ERNNCell`, with the interface of ``torch.nn.RNN``.

    .. math:: \phi(U (h_k + a h_{k-1}) + W x_k + \beta) = \gamma (h_k + b h_{k-1}), \quad k \ge 1

    Parameters
    ----------
    input_size, hidden_size
        The numbers of inputs ``I`` and of hidden units ``H``.
    num_layers
        How many layers; each reads the outputs of the one before.
    nonlinearity, bias
        As in `ERNNCell`.
    batch_first
        Whether input and output are ``(B, T, ...)`` and not ``(T, B, ...)``.
    dropout
        The probability with which an output of a layer, the last excepted, is set to zero during
        training.
    bidirectional
        Whether a second cell in each layer reads the sequence from its end.
    **options
        The keywords of `ERNNCell`.

    Attributes
    ----------
    cells
        The cells: of the first layer, forward and, if there is one, backward; of the second; and
        so on.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, at once or in a call; the message names it.
    ConvergenceError
        In a call, or out of ``backward()``, if an equilibrium is not found and the mode's
        ``on_failure`` is ``"raise"``.

    Notes
    -----
    A call takes sequences ``(T, B, I)`` (see ``batch_first``; or a ``PackedSequence``) and states
    ``(layers * directions, B, H)``, in the dtype of the parameters, real and floating, and returns
    ``(T, B, directions * H)`` and the last states. Arguments have the names and the order of
    ``torch.nn.RNN``, of which a model goes on with `ERNN` in its place.

    Source: Kag, Zhang and Saligrama, "RNNs Evolving on an Equilibrium Manifold: A Panacea for
    Vanishing and Exploding Gradients?" (2019).

    Examples
    --------
    >>> rnn = ERNN(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    >>> output, h_n = rnn(torch.randn(5, 7, 3))
    >>> output.shape, h_n.shape
    (torch.Size([5, 7, 8]), torch.Size([4, 5, 4]))
    """

    cell_type: ClassVar[Callable[..., ERNNCell]] = ERNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Any = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        check_size("num_layers", num_layers)
        if isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout={dropout!r} is no probability")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} does nothing with num_layers=1: it acts between layers",
                stacklevel=2,
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        self.directions = 2 if bidirectional else 1
        sizes = [input_size] + [self.directions * hidden_size] * (num_layers - 1)
        options |= {"nonlinearity": nonlinearity, "bias": bias}
        self.cells = nn.ModuleList(
            self.cell_type(size, hidden_size, **options)
            for size in sizes
            for _ in range(self.directions)
        )

    @ims.in_full_precision("input")
    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Return the states of the last layer, and the last state of each layer.

        Parameters
        ----------
        input
            ``(T, B, I)``, ``(B, T, I)`` with ``batch_first``, ``(T, I)``, or a
            ``PackedSequence``.
        hx
            The states before, ``(layers * directions, B, H)``, or without ``B`` if the input has
            none; zero by default.

        Returns
        -------
        output
            Like the input, with ``directions * H`` features.
        h_n
            Like ``hx``.

        Raises
        ------
        TypeError, ValueError
            If a tensor is unfit; the message names it.
        ConvergenceError
            If an equilibrium is not found.
        """
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        check_floating("input", input, self._dtype)
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            shape = "(batch, time, {})" if self.batch_first else "(time, batch, {})"
            raise ValueError(
                f"input has the shape {tuple(input.shape)}: pass {shape.format(self.input_size)}, "
                f"or (time, {self.input_size}) for one sequence"
            )
        single, batch_dim = input.dim() == 2, 0 if self.batch_first else 1
        if single:
            input = input.unsqueeze(batch_dim)
            if hx is not None:
                check_state("hx", hx, (len(self.cells), self.hidden_size), self._dtype)
                hx = hx.unsqueeze(1)
        grid = input.transpose(0, 1) if self.batch_first else input
        time, batch = grid.shape[:2]
        if time == 0:
            raise ValueError(
                f"input has the shape {tuple(input.shape)}, sequences of length 0: leave them out"
            )
        first = self._first(hx, grid, batch)
        rows, h_n = self._layers(grid.flatten(0, 1), first, TimeSteps((batch,) * time))
        output = rows.unflatten(0, (time, batch))
        output = output.transpose(0, 1) if self.batch_first else output
        return (output.squeeze(batch_dim), h_n.squeeze(1)) if single else (output, h_n)

    def _packed(self, input: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        check_floating("input", input.data, self._dtype)
        if input.data.dim() != 2 or input.data.shape[-1] != self.input_size:
            raise ValueError(
                f"input packs data of the shape {tuple(input.data.shape)}: pack (time, batch, "
                f"{self.input_size})"
            )
        sizes = tuple(numbers(input.batch_sizes))
        first = self._first(hx, input.data, sizes[0])
        if input.sorted_indices is not None:
            first = first.index_select(1, input.sorted_indices)
        rows, h_n = self._layers(input.data, first, TimeSteps(sizes))
        if input.unsorted_indices is not None:
            h_n = h_n.index_select(1, input.unsorted_indices)
        return input._replace(data=rows), h_n

    def _first(self, hx: Tensor | None, like: Tensor, batch: int) -> Tensor:
        shape = (len(self.cells), batch, self.hidden_size)
        if hx is None:
            return like.new_zeros(shape)
        check_state("hx", hx, shape, self._dtype)
        return hx

    def _layers(self, rows: Tensor, first: Tensor, steps: TimeSteps) -> tuple[Tensor, Tensor]:
        last = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self.directions):
                place = layer * self.directions + direction
                ordered = steps.reverse(rows) if direction else rows
                out = _run(self._cells[place], ordered, first[place], steps)
                last.append(steps.last(out))
                outputs.append(steps.reverse(out) if direction else out)
            rows = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if self.dropout and layer < self.num_layers - 1:
                rows = dropout(rows, self.dropout, self.training)
        return rows, torch.stack(last)

    @property
    def _cells(self) -> list[ERNNCell]:
        return [cell for cell in self.cells if isinstance(cell, ERNNCell)]

    @property
    def _dtype(self) -> torch.dtype:
        return self._cells[0].weight_dtype

    def margin(self) -> float:
        """Return the smallest margin of the cells, as `ERNNCell.margin`."""
        return min(cell.margin() for cell in self._cells)

    def project_(self, margin: float = 0.05) -> None:
        """Scale the recurrent matrices of all cells, as `ERNNCell.project_`."""
        for cell in self._cells:
            cell.project_(margin)

    def flatten_parameters(self) -> None:
        """Do nothing: ``torch.nn.RNN`` lays its weights out for cuDNN."""

    def extra_repr(self) -> str:
        """Show the options that are not the cells'."""
        names = ("num_layers", "batch_first", "dropout", "bidirectional")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _run(cell: ERNNCell, rows: Tensor, first: Tensor, steps: TimeSteps) -> Tensor:
    run = run_in_parallel if cell.parallel else run_sequentially
    c = cell.coefficients()
    cell.check(c)
    if not cell.masks:
        return run(cell, rows, first, steps, c)
    begun = torch.isfinite(first).all(-1)
    sound = torch.isfinite(rows).all(-1)
    rows = torch.where(sound.unsqueeze(-1), rows, 0.0)
    first = torch.where(begun.unsqueeze(-1), first, 0.0)
    so_far = torch.cumprod(steps.grid(sound).to(first.dtype), 0) * begun
    out = run(cell, rows, first, steps, c)
    return torch.where(steps.rows(so_far).unsqueeze(-1) > 0, out, torch.nan)
