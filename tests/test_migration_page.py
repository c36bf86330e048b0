"""docs/migrate.md: our examples run, and the settings of other libraries translate as its tables say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from es_flipout import Config, FlipoutES, Independent
from es_flipout.cli.arguments import parse_train

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "migrate.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
OURS = [block for block in BLOCKS if "es_flipout" in block]
THEIRS = [block for block in BLOCKS if "es_flipout" not in block]


def run(block: str, generations: int = 2) -> dict:
    names: dict = {}
    fewer = block.replace("range(10)", f"range({generations})").replace("64", "16")
    exec(compile(fewer, "migrate.md", "exec"), names)
    return names


@pytest.mark.parametrize("block", OURS, ids=["ARS", "EvoTorch", "evosax"])
def test_our_examples_run(block: str) -> None:
    assert run(block)["es"].generation == 2


def test_their_examples_are_python() -> None:
    assert len(THEIRS) == 4
    for block in THEIRS:
        ast.parse(block)


def test_the_yaml_of_rllib_is_a_configuration(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    path = tmp_path / "rllib.yaml"
    path.write_text(text)
    config: Config = parse_train(["--config", str(path)]).config
    assert config.es.weight_decay == yaml.safe_load(text)["es"]["weight_decay"] == 0.005 / 0.02


def test_the_update_is_that_of_ars() -> None:
    translated = run(OURS[0], generations=0)["es"]
    layer = nn.Linear(4, 2, bias=False).double()
    es = FlipoutES(
        layer,
        population_size=translated.population_size,
        sigma=translated.sigma,
        optimizer=torch.optim.SGD(layer.parameters(), lr=translated.optimizer.param_groups[0]["lr"]),
        fitness_shaping=translated.fitness_shaping,
        elite_fraction=translated.elite_fraction,
        perturbation=Independent(),
    )
    population = es.ask()
    before, returns = layer.weight.detach().clone(), torch.randn(16, dtype=torch.float64)
    deltas = torch.stack([population.noise.member(2 * q)["weight"] for q in range(8)])
    es.tell(returns)
    plus, minus = returns[0::2], returns[1::2]
    top = torch.maximum(plus, minus).argsort(descending=True)[:4]
    deviation = torch.cat([plus[top], minus[top]]).std(correction=0)
    step = 0.02 / (4 * deviation) * torch.einsum("q,qji->ji", plus[top] - minus[top], deltas[top])
    torch.testing.assert_close(layer.weight.detach() - before, step, rtol=1e-5, atol=1e-9)


def test_the_yaml_of_the_faq_is_ars(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "faq.md").read_text(), flags=re.DOTALL)
    path = tmp_path / "ars.yaml"
    path.write_text(text)
    config: Config = parse_train(["--config", str(path)]).config
    assert config.es.fitness_shaping == "standardized"
    assert config.es.elite_fraction == 0.5
    assert config.optimizer.lr == pytest.approx(2 * 0.02 * config.es.sigma)


def test_weight_decay_is_that_of_rllib() -> None:
    layer = nn.Linear(4, 2, bias=False).double()
    before, returns = layer.weight.detach().clone(), torch.randn(16)
    es = FlipoutES(
        layer,
        population_size=16,
        sigma=0.02,
        weight_decay=0.25,
        optimizer=torch.optim.SGD(layer.parameters(), lr=0.02),  # times sigma: their gradient's scale
        perturbation=Independent(),
    )
    population = es.ask()
    noise = torch.stack([population.noise.member(2 * q)["weight"] for q in range(8)])
    es.tell(returns)
    ranks = returns.argsort().argsort().double() / 15 - 0.5
    gradient = torch.einsum("q,qji->ji", ranks[0::2] - ranks[1::2], noise) / 16
    torch.testing.assert_close(layer.weight.detach(), before - (-gradient + 0.005 * before))
