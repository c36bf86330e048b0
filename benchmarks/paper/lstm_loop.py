"""An LSTM layer as a loop over time steps, with the parameters of `torch.nn.LSTM`.

    i, f, g, o = x_t W_ih' + h_{t-1} W_hh' + b
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),    h_t = sigmoid(o) tanh(c_t)

A weight that differs between examples rules out cuDNN's kernel, so this is what flipout's time is compared
with, apart from `nn.LSTM` itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LSTMLoop(nn.Module):
    """One layer; input [B, T, I], output [B, T, H], the state before the first step is zero."""

    def __init__(self, inputs: int, hidden: int) -> None:
        """Draws the parameters as `nn.LSTM` does."""
        super().__init__()
        drawn = nn.LSTM(inputs, hidden)
        self.weight_ih, self.weight_hh = drawn.weight_ih_l0, drawn.weight_hh_l0
        self.bias_ih, self.bias_hh = drawn.bias_ih_l0, drawn.bias_hh_l0

    def forward(self, x: Tensor) -> Tensor:
        """Returns h of every step."""
        from_input = F.linear(x, self.weight_ih, self.bias_ih)  # all time steps in one product
        h = c = x.new_zeros(len(x), self.weight_hh.shape[1])
        outputs = []
        for step in from_input.unbind(1):
            i, f, g, o = (step + F.linear(h, self.weight_hh, self.bias_hh)).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1)


class CharacterModel(nn.Module):
    """Scores the next character: tokens [B, T] to logits [B, T, V]."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        """Makes an embedding of width `hidden`, the LSTM and the output layer."""
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.lstm = LSTMLoop(hidden, hidden)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits of what follows each character."""
        logits: Tensor = self.output(self.lstm(self.embedding(tokens)))
        return logits
