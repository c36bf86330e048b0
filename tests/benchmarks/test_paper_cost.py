"""The cost of perturbed steps: memory is counted right, and the program runs."""

from __future__ import annotations

import torch

from benchmarks.paper import cost
from benchmarks.paper.cost import MEMORY, SECONDS, UNPERTURBED, Case, peak_memory, step_of, table
from es_flipout.cli.results import Results

CPU = torch.device("cpu")


def test_peak_memory_is_the_most_that_is_held_at_once():
    def run() -> None:
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        third = torch.empty(500)
        del second, third

    assert peak_memory(run, CPU) == 4 * 3000


def test_independent_weights_take_more_memory_than_flipout():
    options = cost.parse(["--quick"])
    case = Case(lambda: torch.nn.Linear(300, 200), (300,), "*weight", ("flipout", "independent"))
    flipout, independent = (
        peak_memory(step_of(case, name, 20, options), CPU) for name in ("flipout", "independent")
    )
    weight = 4 * 300 * 200
    assert flipout < 10 * weight < 20 * weight < independent


def test_the_table_has_ratios_within_rounds():
    results = Results({})
    for index, (base, ours) in enumerate([(1.0, 2.0), (2.0, 5.0), (1.0, 3.0)]):
        results.add(index, UNPERTURBED, {SECONDS: base}, case="FC", batch=8)
        results.add(index, "flipout", {SECONDS: ours}, case="FC", batch=8)
    assert table(results).splitlines()[-1] == "| FC, N = 8 | 1,000 | 2.50 (2.00 to 3.00) |"


def test_the_program_measures_every_network(tmp_path, capsys):
    path = tmp_path / "cost.json"
    assert cost.main(["--quick", "--threads", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    results = Results.read(path)
    assert results.column("case") == [
        "FC 8-8",
        "ConvNet 5x5 2-2",
        "nn.LSTM 8, 3 steps",
        "LSTM as a loop 8, 3 steps",
    ]
    for name in results.column("case"):
        own = results.where(case=name)
        assert f"| {name}, N = 4 |" in printed
        assert own.column("contestant")[:4] == [UNPERTURBED, "shared", "flipout", "independent"]
        assert own.spread("flipout", MEMORY).median > 0
        assert len(own.by_round("flipout", SECONDS)) == 2
    assert "local" in results.where(case="FC 8-8").column("contestant")
