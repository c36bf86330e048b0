"""A LoRA adapter of a small transformer, tuned by evolution on a rule that its sampled text should obey.

python -m examples.embedding.lora --steps 40 --generations 40

A character-level transformer learns to write brackets by back-propagation, `([])()[[]]`, for so short a
time that many of its samples are not balanced. Then its weights are frozen, each linear layer of its
blocks gets a low-rank adapter (Hu et al., 2021, arXiv 2106.09685), and FlipoutES tunes the adapters
alone. The score of a member is the share of its samples that are balanced and not written twice:
sampling, a parser and a set, nothing to differentiate.
"""

from __future__ import annotations

import argparse
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from es_flipout import FlipoutES, Population

ALPHABET = "()[]"
START = len(ALPHABET)
"""The token before the first character."""
LENGTH, WIDTH, HEADS, BLOCKS = 10, 24, 2, 2
SAMPLES = 32
"""Texts of a member per generation."""


def balanced_text(length: int, choose: random.Random) -> str:
    """Returns random balanced brackets of an even length."""
    if not length:
        return ""
    inside = 2 * choose.randrange(length // 2)
    left, right = choose.choice(("()", "[]"))
    return left + balanced_text(inside, choose) + right + balanced_text(length - 2 - inside, choose)


def is_balanced(text: str) -> bool:
    opened: list[str] = []
    for character in text:
        if character in "([":
            opened.append(character)
        elif not opened or opened.pop() + character not in ("()", "[]"):
            return False
    return not opened


def score(texts: list[str]) -> float:
    """Returns the share of texts that are balanced, each counted once."""
    return len({text for text in texts if is_balanced(text)}) / len(texts)


def held_out_score(model: Transformer, gumbel: Tensor) -> float:
    """Returns the mean score of groups of `SAMPLES` texts written with the noise [B, LENGTH, 4]."""
    (texts,) = write(model, gumbel)
    groups = [texts[start : start + SAMPLES] for start in range(0, len(texts), SAMPLES)]
    return sum(map(score, groups)) / len(groups)


class LoRA(nn.Module):
    """A frozen linear layer plus a low-rank update, x Wᵀ + b + (x downᵀ) upᵀ; up is zero at first."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


class Block(nn.Module):
    """Causal self-attention and an MLP, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.merge = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(-3, -2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        weights = q @ k.mT / q.shape[-1] ** 0.5
        future = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)
        seen = weights.masked_fill(future, -torch.inf).softmax(dim=-1) @ v
        x = x + self.merge(seen.transpose(-3, -2).flatten(-2))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class Transformer(nn.Module):
    """Logits [..., T, 4] of the next character for tokens [..., T]."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(START + 1, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, START)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.characters(tokens) + self.places[: tokens.shape[-1]]
        return self.head(self.norm(self.blocks(x)))


def add_adapters(model: Transformer, rank: int) -> None:
    """Freezes the model and gives each linear layer of its blocks an adapter, in place."""
    model.requires_grad_(False)
    for block in model.blocks:
        for name in ("qkv", "merge", "widen", "narrow"):
            setattr(block, name, LoRA(getattr(block, name), rank))


@torch.no_grad()
def write(model: Transformer | Population, gumbel: Tensor) -> list[list[str]]:
    """Samples B texts from each of P models, or from one (P = 1).

    Args:
        model: a population of P members, or a transformer.
        gumbel: standard Gumbel noise [B, LENGTH, 4], by which argmax samples; the same for all members.
    """
    members = len(model) if isinstance(model, Population) else 1
    tokens = torch.full((members, len(gumbel), 1), START)
    for place in range(LENGTH):
        logits = model(tokens)[..., -1, :]  # [P, B, 4]
        tokens = torch.cat([tokens, (logits + gumbel[:, place]).argmax(-1, keepdim=True)], dim=-1)
    return [["".join(ALPHABET[token] for token in text[1:]) for text in each] for each in tokens.tolist()]


def learn_by_gradient(model: Transformer, steps: int, seed: int) -> None:
    """Trains by back-propagation to predict the next character of balanced text."""
    choose = random.Random(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        texts = [balanced_text(LENGTH, choose) for _ in range(64)]
        batch = torch.tensor([[START, *map(ALPHABET.index, text)] for text in texts])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train(
    steps: int = 40, generations: int = 40, population_size: int = 64, rank: int = 2, seed: int = 0
) -> tuple[Transformer, float, float]:
    """Returns the model, and its score on new samples before and after evolution."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def gumbel(size: int) -> Tensor:
        return -torch.empty(size, LENGTH, START).exponential_(generator=generator).log()

    model, held_out = Transformer(), gumbel(32 * SAMPLES)
    learn_by_gradient(model, steps, seed)
    before = after = held_out_score(model, held_out)
    print(f"{steps} steps of back-propagation: score {before:.1%}")
    add_adapters(model, rank)
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(adapters, lr=0.02)
    es = FlipoutES(model, population_size=population_size, sigma=0.1, optimizer=optimizer, seed=seed)
    for generation in range(1, generations + 1):
        es.tell([score(texts) for texts in write(es.ask(), gumbel(SAMPLES))])
        if generation % 10 == 0 or generation == generations:
            after = held_out_score(model, held_out)
            print(f"generation {generation:>3}: score {after:.1%}", flush=True)
    return model, before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--generations", type=int, default=40)
    parser.add_argument("--population-size", type=int, default=64)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
