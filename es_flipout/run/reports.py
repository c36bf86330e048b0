"""What is reported of a generation, and the generations whose reports wait for a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from es_flipout.rollout import Episodes
from es_flipout.run.metrics import GenerationMetrics, Timing


@dataclass
class Report:
    """What is reported of a generation.

    Attributes:
        metrics: its figures.
        histograms: values whose distribution is of interest, by name, on the CPU.
        state: of the run after it, if that is still needed.
    """

    metrics: GenerationMetrics
    histograms: Mapping[str, Tensor]
    state: dict[str, Any] | None = None

    def saved(self) -> dict[str, Any]:
        """Returns what a checkpoint stores of it, besides the state."""
        return {"metrics": asdict(self.metrics), "histograms": dict(self.histograms)}

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Report:
        """Restores it from what `saved` returned."""
        timing = Timing(**saved["metrics"]["timing"])
        histograms = {name: values.cpu() for name, values in saved["histograms"].items()}
        metrics = GenerationMetrics(**{**saved["metrics"], "timing": timing})
        return cls(metrics, histograms, saved.get("state"))


@dataclass
class Unscored:
    """A generation whose center is being scored, and those after it.

    Attributes:
        report: of the former, without the score.
        later: of the latter, which are reported in order.
    """

    report: Report
    later: list[Report] = field(default_factory=list)

    @property
    def metrics(self) -> GenerationMetrics:
        """Figures of the generation that is being scored, without the score."""
        return self.report.metrics

    @property
    def state(self) -> dict[str, Any]:
        """State of the run after it."""
        assert self.report.state is not None
        return self.report.state

    def reports(self, episodes: Episodes, best_score: float) -> list[Report]:
        """Returns what is to be reported now that the episodes of the score are there."""
        first = replace(self.report, metrics=self.metrics.scored(episodes))
        return [
            each if each.state is None else replace(each, state={**each.state, "best_score": best_score})
            for each in (first, *self.later)
        ]

    def saved(self) -> dict[str, Any]:
        """Returns what a checkpoint stores of it in addition to the run's state."""
        if not self.later:
            return self.report.saved()  # the run's state is that after this generation
        later = [each.saved() | ({} if each.state is None else {"state": each.state}) for each in self.later]
        return {**self.report.saved(), "state": self.state, "later": later}

    @classmethod
    def of(cls, saved: Mapping[str, Any], state: dict[str, Any]) -> Unscored:
        """Restores it from what `saved` returned and the run's state."""
        first = Report.of({"state": state, **saved})
        return cls(first, [Report.of(each) for each in saved.get("later", ())])
