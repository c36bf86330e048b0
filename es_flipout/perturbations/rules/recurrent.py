"""Recurrent cells and layers: each weight matrix of a cell is a linear map, and follows its rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from es_flipout.perturbations.member_context import MemberContext
from es_flipout.perturbations.perturbed_parameter import (
    PerturbedParameter,
    perturbed,
    require_vmap,
    unsupported,
)
from es_flipout.perturbations.registry import Operation, rule
from es_flipout.perturbations.rules.linear import context_of, linear_rows
from es_flipout.perturbations.torch_modes import tracked

State = tuple[Tensor, ...]
Weights = Sequence[Tensor | None]
"""Of a cell: w_ih, w_hh, b_ih, b_hh and, if its output is projected, w_hr."""
Cell = Callable[[Tensor, State, Weights], State]
"""From the inputs' part of the gates [N, ..., gates], state and weights to the new state, h first."""


def _sigmoid(x: Tensor) -> Tensor:
    if tracked(x):
        return torch.sigmoid(x)
    # The rounding of torch.sigmoid depends on an element's place in memory; see policies.ELU.
    return torch.tanh(x * 0.5).mul_(0.5).add_(0.5)


def _from_inputs(inputs: Tensor, weights: Weights) -> Tensor:
    """Returns the inputs' part of the gates of one step or more, [N, ..., gates] for inputs [N, ..., I]."""
    assert weights[0] is not None
    return linear_rows(inputs, weights[0], weights[2])


def _from_hidden(hidden: Tensor, weights: Weights) -> Tensor:
    """Returns the hidden state's part of the gates, [N, ..., gates] for hidden [N, ..., H]."""
    assert weights[1] is not None
    return linear_rows(hidden, weights[1], weights[3])


def lstm_step(from_inputs: Tensor, state: State, weights: Weights) -> State:
    """Returns (h', c') of an LSTM cell, projected if there is a fifth weight."""
    hidden, cell = state
    # Not in place: the hidden state of the first step may lack a dimension of the caller's torch.vmap.
    i, f, g, o = (from_inputs + _from_hidden(hidden, weights)).chunk(4, dim=-1)
    cell = torch.addcmul(_sigmoid(f) * cell, _sigmoid(i), torch.tanh(g))
    hidden = _sigmoid(o) * torch.tanh(cell)
    if len(weights) == 5 and weights[4] is not None:
        hidden = linear_rows(hidden, weights[4], None)
    return hidden, cell


def gru_step(from_inputs: Tensor, state: State, weights: Weights) -> State:
    """Returns (h',) of a gated recurrent unit."""
    (hidden,) = state
    from_hidden = _from_hidden(hidden, weights)
    size = hidden.shape[-1]
    gates = _sigmoid(from_inputs[..., : 2 * size] + from_hidden[..., : 2 * size])
    reset, update = torch.split(gates, size, dim=-1)
    new = torch.tanh(torch.addcmul(from_inputs[..., 2 * size :], reset, from_hidden[..., 2 * size :]))
    return (torch.addcmul(new, update, hidden - new),)


def rnn_step(nonlinearity: Callable[[Tensor], Tensor]) -> Cell:
    """Returns the cell of a plain recurrent network."""

    def step(from_inputs: Tensor, state: State, weights: Weights) -> State:
        return (nonlinearity(from_inputs + _from_hidden(state[0], weights)),)

    return step


def _context(function: Operation, weights: Weights) -> MemberContext:
    """Returns the context of a cell's weights; those that are no parameters must be the same in all rows."""
    context = context_of(weights)
    plain = (w for w in weights if w is not None and not isinstance(w, PerturbedParameter))
    if any(context.varies(weight) for weight in plain):
        raise unsupported(function, perturbed(weights))
    return context


def _register_cell(function: Operation, step: Cell, has_cell_state: bool) -> None:
    @rule(function)
    def cell(
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        weights = (w_ih, w_hh, b_ih, b_hh)
        context = _context(function, weights)
        state = tuple(context.physical(each) for each in (hx if has_cell_state else (hx,)))
        from_inputs = _from_inputs(context.physical(input), weights)
        new = tuple(context.logical(each) for each in step(from_inputs, state, weights))
        return new if has_cell_state else new[0]


def _register_layer(function: Operation, step: Cell, has_cell_state: bool) -> None:
    @rule(function)
    def layer(*args: Any) -> Any:
        if isinstance(args[1], Tensor) and isinstance(args[3], list | tuple):  # data, batch sizes, state, ...
            raise unsupported(function, perturbed(args[3]))
        input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first = args
        context = _context(function, params)
        require_vmap(function, params)
        state = tuple(context.physical(each) for each in (hx if has_cell_state else (hx,)))

        def drop(x: Tensor) -> Tensor:
            return context.physical(F.dropout(context.logical(x), dropout, training=train))

        stack = _Stack(step, params, has_biases, num_layers, bidirectional, drop)
        # Time second; the order of the other dimensions does not matter.
        inputs = context.physical(input)
        time_dim = 2 if batch_first else 1
        outputs, finals = stack.run(inputs.movedim(time_dim, 1), state)
        return (
            context.logical(outputs.movedim(1, time_dim)),
            *(context.logical(each) for each in finals),
        )


class _Stack:
    """The layers and directions of a recurrent network."""

    def __init__(
        self,
        step: Cell,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        bidirectional: bool,
        drop: Callable[[Tensor], Tensor],
    ) -> None:
        self._step = step
        self._num_layers = num_layers
        self._num_directions = 2 if bidirectional else 1
        self._drop = drop
        size = len(params) // (num_layers * self._num_directions)
        cells: list[Weights] = [list(params[start : start + size]) for start in range(0, len(params), size)]
        # Biases may be missing while there is a projection: (w_ih, w_hh, b_ih, b_hh, w_hr).
        self._cells = [cell if has_biases else [*cell[:2], None, None, *cell[2:]] for cell in cells]

    def run(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns outputs [N, T, ..., J] and final states [N, layers * directions, ...].

        Args:
            inputs: [N, T, ..., I].
            state: initial states [N, layers * directions, ...].
        """
        finals: list[State] = []
        for layer in range(self._num_layers):
            if layer:
                inputs = self._drop(inputs)
            outputs = []
            for direction in range(self._num_directions):
                index = layer * self._num_directions + direction
                steps = inputs.flip(1) if direction else inputs
                out, final = self._run_cell(steps, tuple(s[:, index] for s in state), self._cells[index])
                outputs.append(out.flip(1) if direction else out)
                finals.append(final)
            inputs = torch.cat(outputs, dim=-1)
        return inputs, tuple(torch.stack(each, dim=1) for each in zip(*finals, strict=True))

    def _run_cell(self, inputs: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
        outputs = []
        if torch.is_grad_enabled():
            steps: Iterable[Tensor] = _from_inputs(inputs, weights).unbind(1)
        else:  # the rounding of one product for all steps depends on the number of rows
            steps = (_from_inputs(each, weights) for each in inputs.unbind(1))
        for from_inputs in steps:
            state = self._step(from_inputs, state, weights)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state


@rule(torch._cudnn_rnn_flatten_weight)
def flatten_weight(*_: Any) -> None:
    """Does nothing: nn.RNNBase puts its weights side by side in memory for cuDNN, which is not used here."""


for _name, _step, _has_cell_state in (
    ("lstm", lstm_step, True),
    ("gru", gru_step, False),
    ("rnn_tanh", rnn_step(torch.tanh), False),
    ("rnn_relu", rnn_step(torch.relu), False),
):
    _register_cell(getattr(torch, f"{_name}_cell"), _step, _has_cell_state)
    _register_layer(getattr(torch, _name), _step, _has_cell_state)
