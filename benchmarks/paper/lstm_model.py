"""Language models of section 4.2 and the noise that regularizes them.

A layer is an `nn.LSTM` with one of four kinds of noise in training. All are evaluated with the mean weights.

    none          no noise
    shared        hidden-to-hidden weights W ∘ (1 + std·ε), or W ∘ mask, one draw per batch of sequences
    flipout       the same, and by flipout a draw for each sequence
    variational   dropout of the hidden state, one mask per sequence (Gal and Ghahramani, 2016,
                  arXiv 1512.05287)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from es_flipout.stochastic import DropConnect, MultiplicativeGaussian, perturbed

METHODS = ("none", "shared", "flipout", "variational")
State = tuple[Tensor, Tensor]
"""Hidden and cell state of all layers, each of shape [layers, batch, units]."""


@dataclass(frozen=True)
class Regularization:
    """What keeps a model from overfitting.

    Attributes:
        method: one of METHODS.
        noise: of the hidden-to-hidden weights, for the methods shared and flipout.
        strength: standard deviation of Gaussian noise, or the probability of dropping a weight or a state.
        dropout: rate of the masks, one per sequence, on inputs and outputs of layers; not for `none`.
        embedding_dropout: probability of dropping a word of the vocabulary for a batch; not for `none`.
    """

    method: str
    noise: Literal["gaussian", "dropconnect"] = "gaussian"
    strength: float = 1.0
    dropout: float = 0.0
    embedding_dropout: float = 0.0


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        units: of a layer.
        layers: number of LSTM layers.
        embedding: length of a word's vector; 0 for characters, which go in as one-hot vectors.
        tied: whether the decoder shares its matrix with the embedding.
    """

    units: int = 1000
    layers: int = 1
    embedding: int = 0
    tied: bool = False


def mask(like: Tensor, shape: tuple[int, ...], rate: float) -> Tensor:
    """Returns a dropout mask of that shape: 0 with probability `rate`, else 1 / (1 - rate)."""
    return like.new_empty(shape).bernoulli_(1 - rate).div_(1 - rate)


class VariationalLSTM(nn.LSTM):
    """One LSTM layer whose hidden state is dropped on its way back, with one mask for all time steps."""

    def __init__(self, inputs: int, units: int, rate: float) -> None:
        super().__init__(inputs, units, batch_first=True)
        self.rate = rate

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the hidden states and the last state.

        Args:
            x: shape [batch, time, inputs].
            state: hidden and cell state, each of shape [1, batch, units].
        """
        if not self.training:
            return super().forward(x, state)
        h, c = state[0][0], state[1][0]
        kept = mask(h, tuple(h.shape), self.rate)
        recurrent = self.weight_hh_l0.t()
        outputs = []
        for from_input in F.linear(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0).unbind(1):
            i, f, g, o = torch.addmm(from_input, h * kept, recurrent).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h[None], c[None])


def initialize(lstm: nn.LSTM) -> None:
    """Makes the matrix of each gate orthogonal, and all biases 0 but that of the forget gate, which is 1."""
    for name, parameter in lstm.named_parameters():
        gates = parameter.data.chunk(4)
        for index, gate in enumerate(gates):
            if name.startswith("weight"):
                nn.init.orthogonal_(gate)
            else:
                gate.fill_(1.0 if index == 1 and name.startswith("bias_ih") else 0.0)


def layer(inputs: int, units: int, regularization: Regularization) -> nn.Module:
    """Returns an LSTM layer, called as a `VariationalLSTM` is.

    Raises:
        ValueError: if there is no such method.
    """
    method, strength = regularization.method, regularization.strength
    if method not in METHODS:
        raise ValueError(f"no method is called {method!r}: use {', '.join(METHODS)}")
    lstm = (
        VariationalLSTM(inputs, units, strength)
        if method == "variational"
        else nn.LSTM(inputs, units, batch_first=True)
    )
    initialize(lstm)
    if method in ("none", "variational"):
        return lstm
    noise = MultiplicativeGaussian
    if regularization.noise == "dropconnect":
        noise = DropConnect
        with torch.no_grad():
            lstm.weight_hh_l0 /= 1 - strength  # so that the mean weights are those of the other methods
    return perturbed(
        lstm,
        noise(strength),
        include="*weight_hh*",
        estimator=method,
        in_dims=(0, (1, 1)),
        out_dims=(0, (1, 1)),
    )


class LanguageModel(nn.Module):
    """The distribution of the next token after each token of a sequence."""

    def __init__(self, vocabulary: int, shape: Shape, regularization: Regularization) -> None:
        super().__init__()
        self.one_hot = shape.embedding == 0
        if self.one_hot:
            self.embedding = nn.Embedding.from_pretrained(torch.eye(vocabulary))
        else:
            self.embedding = nn.Embedding(vocabulary, shape.embedding)
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        inputs = [self.embedding.embedding_dim] + [shape.units] * (shape.layers - 1)
        self.layers = nn.ModuleList(layer(size, shape.units, regularization) for size in inputs)
        self.decoder = nn.Linear(shape.units, vocabulary)
        nn.init.uniform_(self.decoder.weight, -(shape.units**-0.5), shape.units**-0.5)
        nn.init.zeros_(self.decoder.bias)
        if shape.tied:
            self.decoder.weight = self.embedding.weight
        regular = regularization.method != "none"
        self.dropout = regularization.dropout if regular else 0.0
        if regularization.method == "variational":
            self.dropout = regularization.strength
        self.embedding_dropout = regularization.embedding_dropout if regular else 0.0

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns logits of shape [batch, time, vocabulary], and the state after the last token.

        Args:
            tokens: positions in the vocabulary, of shape [batch, time].
            state: that after the tokens before.
        """
        weight = self.embedding.weight
        if self.training and self.embedding_dropout:
            weight = weight * mask(weight, (weight.shape[0], 1), self.embedding_dropout)
        x = F.embedding(tokens, weight)
        if not self.one_hot:
            x = self._drop(x)
        hidden, cells = [], []
        for index, each in enumerate(self.layers):
            x, (h, c) = each(x, (state[0][index, None], state[1][index, None]))
            x = self._drop(x)
            hidden.append(h)
            cells.append(c)
        return self.decoder(x), (torch.cat(hidden), torch.cat(cells))

    def _drop(self, x: Tensor) -> Tensor:
        if not (self.training and self.dropout):
            return x
        return x * mask(x, (x.shape[0], 1, x.shape[2]), self.dropout)
