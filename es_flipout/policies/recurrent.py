"""Recurrent policies: a GRU or LSTM cell between an encoder and the action head.

The caller keeps the state, `forward(observations, state) -> (actions, state)`: each env has its own and
starts every episode from `initial_state`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import gymnasium as gym
import torch
from torch import Tensor, nn
from typing_extensions import override

from es_flipout.choices import (
    ACTION_BOUNDS,
    ACTIVATION,
    HIDDEN_SIZES,
    INITIALIZATION,
    NORMALIZE_OBSERVATIONS,
    OBSERVATION_CLIP,
    RECURRENT_SIZE,
    ActionBounds,
    Activation,
    Initialization,
)
from es_flipout.policies.heads import make_action_head
from es_flipout.policies.initialization import fill
from es_flipout.policies.mlp import hidden_layers, output_layer
from es_flipout.policies.observations import make_normalizer, vector_box

State = TypeVar("State", Tensor, tuple[Tensor, Tensor])


class RecurrentPolicy(nn.Module, Generic[State], ABC):
    """Normalizer, encoder, cell, output layer and action head, in this order.

    Attributes:
        row_wise: declares that forward treats all leading dimensions as independent rows.
        normalizer: standardizes observations; None if they are used as they are.
        state_size: width H of the state.
    """

    row_wise: ClassVar[bool] = True
    cell_class: ClassVar[type[nn.GRUCell | nn.LSTMCell]]

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        hidden_sizes: Sequence[int] = HIDDEN_SIZES,
        recurrent_size: int = RECURRENT_SIZE,
        activation: Activation = ACTIVATION,
        init: Initialization = INITIALIZATION,
        action_bounds: ActionBounds = ACTION_BOUNDS,
        normalize_observations: bool = NORMALIZE_OBSERVATIONS,
        observation_clip: float = OBSERVATION_CLIP,
        generator: torch.Generator | None = None,
    ) -> None:
        """Creates the policy.

        Args:
            observation_space: a single environment's observations, a Box of shape (O,).
            action_space: a single environment's actions: a Box of shape (A,), Discrete or MultiDiscrete.
            hidden_sizes: widths of the fully connected layers before the cell.
            recurrent_size: width H of the cell.
            activation: nonlinearity after each fully connected layer.
            init: initial weights, drawn for each gate separately; see `initialization`.
            action_bounds: how outputs become actions of a Box, see `BoxActions`.
            normalize_observations: whether observations are standardized by running moments.
            observation_clip: bound on a standardized observation.
            generator: source of the initial weights.

        Raises:
            ValueError: if a space is not supported.
        """
        super().__init__()
        observations = vector_box(observation_space)
        head = make_action_head(action_space, action_bounds)
        self.normalizer = make_normalizer(observations, normalize_observations, observation_clip)
        sizes = [observations.shape[0], *hidden_sizes]
        self.encoder = nn.Sequential(*hidden_layers(sizes[0], sizes[1:], activation, init, generator))
        self.state_size = recurrent_size
        self.cell = self.cell_class(sizes[-1], recurrent_size)
        self._initialize_cell(init, generator)
        self.output = output_layer(recurrent_size, head.num_outputs, init, generator)
        self.head = head

    def _initialize_cell(self, init: Initialization, generator: torch.Generator | None) -> None:
        for weight in (self.cell.weight_ih, self.cell.weight_hh):
            for gate in torch.split(weight.detach(), self.state_size):
                fill(gate, init, 1.0, generator)
        for bias in (self.cell.bias_ih, self.cell.bias_hh):
            nn.init.zeros_(bias)

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Returns the state of `batch_size` new episodes, each tensor [batch_size, H]."""

    @abstractmethod
    def _advance(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the cell's output [..., H] and the next state, given its input [..., I]."""

    def forward(self, observations: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns actions [N, ...] and the next state, for observations [N, O] and a state [N, H]."""
        if self.normalizer is not None:
            observations = self.normalizer(observations)
        hidden, state = self._advance(self.encoder(observations), state)
        return self.head(self.output(hidden)), state

    def _zeros(self, batch_size: int) -> Tensor:
        return self.output.weight.new_zeros(batch_size, self.state_size)


def _rows(values: Tensor) -> Tensor:
    """Returns values [..., F] as [N, F], the shape that a cell takes."""
    return values.reshape(-1, values.shape[-1])


class GRUPolicy(RecurrentPolicy[Tensor]):
    """A recurrent policy with a gated recurrent unit (Cho et al., 2014, arXiv 1406.1078)."""

    cell_class = nn.GRUCell

    @override
    def initial_state(self, batch_size: int) -> Tensor:
        return self._zeros(batch_size)

    @override
    def _advance(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden: Tensor = self.cell(_rows(features), _rows(state)).reshape(state.shape)
        return hidden, hidden


class LSTMPolicy(RecurrentPolicy[tuple[Tensor, Tensor]]):
    """A recurrent policy with a long short-term memory (Hochreiter and Schmidhuber, 1997).

    Its state is (h, c): the cell's output and its memory. The forget gate starts with a bias of 1, so that
    the cell remembers (Jozefowicz, Zaremba and Sutskever, 2015).
    """

    cell_class = nn.LSTMCell

    @override
    def _initialize_cell(self, init: Initialization, generator: torch.Generator | None) -> None:
        super()._initialize_cell(init, generator)
        # The gates' order is input, forget, cell, output.
        nn.init.ones_(self.cell.bias_ih.detach()[self.state_size : 2 * self.state_size])

    @override
    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        return self._zeros(batch_size), self._zeros(batch_size)

    @override
    def _advance(
        self, features: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        shape = state[0].shape
        hidden, cell = self.cell(_rows(features), (_rows(state[0]), _rows(state[1])))
        return hidden.reshape(shape), (hidden.reshape(shape), cell.reshape(shape))
