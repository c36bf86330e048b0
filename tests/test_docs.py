"""What README and documentation show is what happens, and what they name exists."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

import es_flipout
from es_flipout.cli.arguments import parse_train

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "benchmarks" / name for name in ("GPU_DEBT.md", "peers/README.md")),
    *(ROOT / "benchmarks" / "paper" / name for name in ("README.md", "peers/README.md")),
]
WITH_CODE = [ROOT / "README.md", ROOT / "docs" / "embedding.md"]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_the_embedding_example() -> None:
    (block,) = [block for page in WITH_CODE for block in code(page) if block.startswith(">>>")]
    example = doctest.DocTestParser().get_doctest(block, {}, "embedding", "embedding.md", None)
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(failed=0, attempted=9)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_whole_programs_run(page: Path) -> None:
    blocks = [block for block in code(page) if re.search(r"^(from|import) es_flipout", block, re.MULTILINE)]
    programs = [block for block in blocks if not block.startswith(">>>")]
    assert any("evaluate(" in block for block in programs)
    for block in programs:
        fewer = block.replace("range(10)", "range(1)").replace("256", "8")
        exec(compile(fewer, page.name, "exec"), {})


@every_page
def test_code_is_python(page: Path) -> None:
    for block in code(page):
        if not block.startswith(">>>"):
            ast.parse(block)


def test_the_recipes_of_noise_on_weights_run() -> None:
    names: dict[str, object] = {}
    for block in code(ROOT / "docs" / "stochastic.md"):
        exec(compile(block, "stochastic.md", "exec"), names)
    mean, spread = names["mean"], names["spread"]
    assert isinstance(mean, Tensor)
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(256))
    assert isinstance(spread, Tensor)
    assert bool((spread > 0).all())


def test_the_page_on_trained_policies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    in_python, with_onnx, _ = code(ROOT / "docs" / "export.md")
    exec(compile(in_python, "export.md", "exec"), {})
    assert float(capsys.readouterr().out.removeprefix("return ")) > 5000
    assert with_onnx == (ROOT / "examples" / "run_onnx.py").read_text()


def test_the_rule_in_contributing_makes_an_operation_usable() -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Parameter(torch.randn(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.kron(self.mix, x)

    population = es_flipout.FlipoutES(Policy(), population_size=4, sigma=0.1).ask()
    x = torch.randn(4, 2, 2)
    with pytest.raises(es_flipout.UnsupportedOperationError):
        population(x)
    (block,) = code(ROOT / "CONTRIBUTING.md")
    exec(compile(block, "CONTRIBUTING.md", "exec"), {})
    dense = torch.stack([population.module(member)(x[member]) for member in range(4)])
    torch.testing.assert_close(population(x), dense)


@every_page
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


@every_page
def test_files_modules_and_configurations_exist(page: Path) -> None:
    text = page.read_text()
    files = re.findall(r"`((?:es_flipout|tests|examples|scripts|benchmarks)/[\w/.]+)`", text)
    files = [name for name in files if not re.search(r"your_|[A-Z]{2}", name)]  # what a reader replaces
    assert not [name for name in files if not (ROOT / name).exists()]
    modules = re.findall(r"python -m ((?:examples|scripts|benchmarks)[\w.]+)", text)
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    configs = re.findall(r"--config (\w+\.yaml)", text)
    configs = [name for name in configs if name not in ("NAME.yaml", "mine.yaml")]
    assert not [name for name in configs if not (ROOT / "configs" / name).exists()]


@every_page
def test_commands_of_es_train_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in re.findall(r"^(?:torchrun .*)?es-train (.*)$", page.read_text(), flags=re.MULTILINE):
        arguments = shlex.split(line, comments=True)
        if {"--help", "--print_config"} & set(arguments) or re.search(r"\bmine\b|[A-Z]{3}|\\$", line):
            continue
        if "--resume" in arguments:  # of a run that is not there
            at = arguments.index("--resume")
            del arguments[at : at + 2]
        if arguments:
            parse_train(arguments)


def test_the_api_reference_lists_the_public_names() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^::: es_flipout\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted(es_flipout.__all__)


def test_changelog_and_citation_are_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == es_flipout.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == es_flipout.__version__
