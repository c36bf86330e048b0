"""What the ranks of a run agree on: that they have the same state, that they stop, that they are done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from es_flipout.rollout import PlayError, Ranks
from es_flipout.run.digest import digest
from es_flipout.run.errors import RunBrokenError

OF_RANK_0 = ("seconds", "best_score")
"""What of a run's state rank 0 alone knows."""


class Agreement:
    """The ranks of a run, for its trainer. With a single rank nothing here does anything.

    All ranks must call the same methods in the same order.

    Attributes:
        leads: whether this is rank 0, which alone scores and writes.
        is_needed: whether there are others to agree with.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.leads, self.is_needed = ranks.rank == 0, ranks.size > 1

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what goes wrong between ranks into a `RunBrokenError`."""
        try:
            yield
        except PlayError as error:
            raise RunBrokenError(str(error)) from error

    def share(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the state of rank 0, on the CPU.

        Raises:
            RunBrokenError: if rank 0 has died.
        """
        mine = tree_map_only(Tensor, Tensor.cpu, dict(state)) if self.leads else {}
        with self.errors():
            return self._ranks.together(lambda: mine, lambda states: states[0])

    def begin_comparison(self, state: Mapping[str, Any]) -> None:
        """Begins to compare the states of the ranks after the same generation, beside what comes next."""
        if self.is_needed:
            self._ranks.begin_comparison(digest({key: state[key] for key in state if key not in OF_RANK_0}))

    def confirm(self) -> None:
        """Waits for that comparison.

        Raises:
            RunBrokenError: if a rank differs, or ranks cannot be reached.
        """
        with self.errors():
            self._ranks.finish_comparison()

    def stop_together(
        self, action: Callable[[Callable[[], bool]], None], should_stop: Callable[[], bool]
    ) -> None:
        """Does something that may take long on rank 0 alone, and stops on all ranks if any is asked to.

        Args:
            action: is given what says whether to stop.
            should_stop: says whether this process has been asked to.

        Raises:
            PlayStoppedError: if `action` raised it.
            RunBrokenError: if ranks cannot be reached.
        """
        asked = self._ranks.stop_request(should_stop)
        with self.errors():
            self._ranks.together(lambda: action(asked), lambda _: None, should_stop=should_stop)

    def wait(self) -> None:
        """Waits until all ranks have come to this point, so that all are started again if one dies before.

        Raises:
            RunBrokenError: if one has died, or does not come in time.
        """
        with self.errors():
            self._ranks.together(lambda: None, lambda _: None)
