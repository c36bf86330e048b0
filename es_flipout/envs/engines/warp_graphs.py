"""Records what Warp launches as graphs, and replays them on torch's current stream.

On a GPU these are CUDA graphs, on the CPU Warp's own. Nothing crosses to the host while a graph is replayed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from es_flipout.envs.engines.warp_setup import import_warp
from es_flipout.envs.transfer import collector_paused, current_stream, new_stream, working_on

_lock = threading.RLock()
"""There is one lock because Warp records, and keeps track of streams, per process."""
_streams: dict[tuple[int | None, int], Any] = {}
"""Warp's object for each torch stream, kept forever: deleting one invalidates the others for that stream."""


class WarpGraphs:
    """Graphs of one device, by name."""

    def __init__(self, device: torch.device) -> None:
        """Takes the device, with its index if it is a GPU."""
        self._wp, _ = import_warp()
        self._torch_device = device
        self._device = self._wp.device_from_torch(device)
        self._graphs: dict[int | str, Any] = {}

    def on_device(self) -> AbstractContextManager[Any]:
        """Returns a context in which Warp works on the device."""
        context: AbstractContextManager[Any] = self._wp.ScopedDevice(self._device)
        return context

    def on_stream(self) -> AbstractContextManager[Any]:
        """Returns a context in which Warp works on torch's current stream."""
        context: AbstractContextManager[Any] = self._wp.ScopedStream(self._warp_stream())
        return context

    def record(
        self, name: int | str, run: Callable[[], None], state_kept: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Records what Warp launches in `run`, unless that has been done.

        Args:
            name: what `launch` calls the graph.
            run: launches kernels. It is called twice on a GPU: the first call runs them, to load them.
            state_kept: makes a context that undoes what `run` changes.
        """
        if name in self._graphs:
            return
        wp = self._wp
        with _lock, self.on_device(), collector_paused():
            if self._torch_device.type != "cuda":
                with wp.ScopedCapture(device=self._device) as capture:
                    run()
            else:
                stream, current = new_stream(self._torch_device), current_stream(self._torch_device)
                with state_kept(), working_on(stream, current), self.on_stream():
                    run()
                    with wp.ScopedCapture(stream=self._warp_stream()) as capture:
                        run()
        self._graphs[name] = capture.graph

    def launch(self, name: int | str) -> None:
        """Replays a graph on torch's current stream, without waiting for it."""
        self._wp.capture_launch(self._graphs[name], stream=self._warp_stream())

    def clear(self) -> None:
        """Frees the graphs."""
        self._graphs.clear()

    def _warp_stream(self) -> Any:
        """Returns torch's current stream as Warp's, always the same object: Warp compares identities."""
        if self._torch_device.type != "cuda":
            return None
        stream = torch.cuda.current_stream(self._torch_device)
        key = self._torch_device.index, stream.cuda_stream
        with _lock:
            if key not in _streams:
                _streams[key] = self._wp.stream_from_torch(stream)
            return _streams[key]
