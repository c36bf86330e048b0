"""What ranks leave for each other in torchrun's store."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from torch.distributed.distributed_c10d import Store

from es_flipout.rollout.rank_contract import RefusedError


class RankStore:
    """The store of a run, as one of its ranks uses it.

    Attributes:
        store: torch's.
    """

    def __init__(self, store: Store, rank: int) -> None:
        """Takes the store.

        Args:
            store: shared by all ranks of a run, and by nobody else.
            rank: of this process.
        """
        self.store, self._rank = store, rank
        self._num_exchanges = self._num_counters = 0

    def put(self, key: str, value: object) -> None:
        """Leaves a value, which is pickled."""
        self.store.set(key, pickle.dumps(value).hex())

    def has(self, key: str) -> bool:
        """Returns whether there is such a value."""
        return self.store.check([key])

    def awaited(self, key: str, seconds: float) -> Any:
        """Waits for a value, and returns it.

        Raises:
            RefusedError: if it does not come in time.
        """
        try:
            self.store.wait([key], timedelta(seconds=seconds))
        except RuntimeError as error:
            raise RefusedError(
                f"a rank was not ready within {seconds:g} seconds ({key}), or torchrun's store is gone"
            ) from error
        return pickle.loads(bytes.fromhex(self.store.get(key).decode()))

    def next_number(self) -> int:
        """Returns the number of the next exchange: all ranks count them in the same order."""
        self._num_exchanges += 1
        return self._num_exchanges

    def arrive(self, number: int) -> None:
        """Leaves a sign that this rank is there, by which those who wait know whom they wait for."""
        self.store.set(f"arrived/{self._rank}", str(number))

    def has_arrived(self, rank: int, number: int) -> bool:
        """Returns whether a rank has come to an exchange."""
        key = f"arrived/{rank}"
        return self.store.check([key]) and int(self.store.get(key)) >= number

    def counter(self) -> Callable[[int], int]:
        """Returns a function that adds to a new shared counter and returns the new total."""
        self._num_counters += 1
        number = self._num_counters
        if self._rank == 0 and number > 2:  # nobody is in the play before the last any more
            self.store.delete_key(f"counter/{number - 2}")
        return partial(self.store.add, f"counter/{number}")
