"""Physics through `mujoco_warp`: thousands of simulations on a GPU, in float32.

The steps of an env step are recorded once as a graph, and replayed: on a GPU as a CUDA graph, on the CPU
(slow: for tests, and to try things without a GPU) as Warp's own. Nothing crosses to the host in between.

It differs from MuJoCo in C in these ways. All numbers are float32. The PGS solver does not exist, so a model
that asks for it gets Newton. Every simulation is stepped, whoever lives; those that were not to move are put
back. The contacts of all simulations share one buffer, and constraints have room for so many a simulation;
when either runs out, contacts are lost, which counts as a failure.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.engine import Ids, PhysicsEngine
from es_flipout.envs.masks import where_rows
from es_flipout.envs.transfer import collector_paused, current_stream, new_stream, working_on

NCONMAX, NJMAX = 24, 64
"""Room for contacts and for constraints a simulation, enough for Gymnasium's tasks."""
MIN_ITERATIONS = 100
"""Iterations that Newton may take where it stands in for PGS; it needs far fewer."""
MAX_VALUE = 1e10
"""What MuJoCo takes for a simulation that has blown up (mjMAXVAL)."""
_CLEARED = ("time", "act", "qacc_warmstart", "ctrl")
"""What is 0 at the start of an episode."""
_STATE = ("qpos", "qvel", *_CLEARED)
"""All of a simulation that a step begins with and changes."""

BAD_QPOS, BAD_QVEL, BAD_CTRL, CONTACTS_FULL, CONSTRAINTS_FULL, CONVEX_FULL, OTHER_FULL = (
    1 << bit for bit in range(7)
)
FAULTS = {
    BAD_QPOS: "MuJoCo warning BADQPOS",
    BAD_QVEL: "MuJoCo warning BADQVEL",
    BAD_CTRL: "MuJoCo warning BADCTRL",
    CONTACTS_FULL: "mujoco_warp has no room for so many contacts: raise nconmax in env.engine_kwargs",
    CONSTRAINTS_FULL: "mujoco_warp has no room for so many constraints: raise njmax in env.engine_kwargs",
    CONVEX_FULL: "mujoco_warp has no room for so many convex contacts: raise nccdmax in env.engine_kwargs",
    OTHER_FULL: "a buffer of fixed size in mujoco_warp was too small for the model",
}
"""What may go wrong in a simulation, by its bit in `WarpEngine.faults`."""

_lock = threading.RLock()
"""Warp's captures, and what it knows of streams, are one for the whole process."""
_streams: dict[tuple[int | None, int], Any] = {}
"""Warp's object for each stream of torch's, kept for ever: one that is deleted takes the others' with it."""


def fault_text(faults: int) -> str:
    """Returns what the bits of `WarpEngine.faults` say."""
    return " and ".join(text for bit, text in FAULTS.items() if faults & bit)


def import_warp() -> tuple[Any, Any]:
    """Returns the modules warp, initialized, and mujoco_warp.

    Raises:
        ValueError: if they are not installed.
    """
    try:
        import warp as wp

        if wp.config.log_level == wp.LOG_INFO:
            wp.config.log_level = wp.LOG_WARNING  # it would name every kernel that it loads
        wp.init()
        import mujoco_warp as mjw
    except ImportError as error:
        raise ValueError(
            f"engine 'warp' needs the package mujoco-warp (pip install 'es-flipout[gpu]'): {error}"
        ) from error
    return wp, mjw


NO_GPU_FOR_WARP = "Warp sees no such GPU: the driver is probably too old for this build of warp-lang"


def num_warp_gpus() -> int:
    """Returns how many GPUs Warp can use; fewer than torch sees if the driver is too old for Warp.

    Raises:
        ValueError: if Warp is not installed.
    """
    wp, _ = import_warp()
    return int(wp.get_cuda_device_count())


class WarpEngine(PhysicsEngine):
    """N simulations in one `mujoco_warp.Data`; `fields` are float32 views of it.

    Besides the contract of `PhysicsEngine` it can do without the host: `ctrl`, `advance`, `restart` and
    `faults` are what a loop on the device is made of, and may be captured in CUDA graphs.

    Attributes:
        ctrl: controls, to be filled in before `advance`, float32 [N, nu].
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        fields: Sequence[str],
        device: torch.device | str = "cuda",
        *,
        nconmax: int = NCONMAX,
        njmax: int = NJMAX,
        nccdmax: int | None = None,
        deterministic: bool = False,
    ) -> None:
        """Puts the model and N simulations on the device; kernels are compiled when they are first used.

        Args:
            model: the MuJoCo model.
            num_envs: number of simulations N.
            fields: names of the MjData fields to show.
            device: "cuda", another CUDA device, or "cpu".
            nconmax: room for contacts, N times this for all simulations together.
            njmax: room for constraint rows in each simulation.
            nccdmax: room for contacts between convex shapes, as for `nconmax`; the same if None.
            deterministic: whether contacts and constraints are sorted and sums have a fixed order, so that a
                GPU repeats a simulation to the last bit; slower.

        Raises:
            ValueError: if mujoco_warp is not installed, cannot run the model, or has not a field.
        """
        wp, self._mjw = import_warp()
        self._wp = wp
        self.model = model
        self.num_envs = num_envs
        self.device = torch.empty(0, device=device).device  # with its index
        if self.device.type == "cuda" and self.device.index >= num_warp_gpus():
            raise ValueError(f"engine 'warp' cannot run on {self.device}: {NO_GPU_FOR_WARP}")
        self._device = wp.device_from_torch(self.device)
        self._has_contact_forces = "cfrc_ext" in fields
        try:
            with wp.ScopedDevice(self._device), self._stream():
                self._model = self._mjw.put_model(_for_warp(model))
                self._model.opt.warn_overflow = 0  # `faults` tells
                self._model.opt.deterministic = deterministic
                # Without conditional nodes the solver always runs all of its iterations.
                self._model.opt.graph_conditional = self._device.is_cpu or wp.is_conditional_graph_supported()
                self._data = self._mjw.make_data(
                    model, nworld=num_envs, nconmax=nconmax, njmax=njmax, nccdmax=nccdmax
                )
                self._mjw.reset_data(self._model, self._data)
        except (NotImplementedError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"engine 'warp' cannot run {num_envs} simulations of the model: {error}"
            ) from error
        self._overflow = wp.to_torch(self._data.overflow)
        self._views = {name: self._view(name) for name in dict.fromkeys([*_STATE, *fields])}
        self._qpos, self._qvel = self._views["qpos"], self._views["qvel"]
        self.fields = {name: self._views[name] for name in fields}
        self.ctrl = self._views["ctrl"]
        self._cleared = [self._overflow, *(self._views[name] for name in _CLEARED)]
        self.failures: dict[int, str] = {}
        self._graphs: dict[int | str, Any] = {}  # by number of substeps, and that of `forward`
        checked = {BAD_QPOS: self._qpos, BAD_QVEL: self._qvel, BAD_CTRL: self.ctrl}
        self._checked = {bit: values for bit, values in checked.items() if values.shape[1]}
        self._bits = torch.tensor(list(self._checked), dtype=torch.int32, device=self.device)
        self._fault_of_overflow = self._table_of_overflows().to(self.device)

    def _table_of_overflows(self) -> Tensor:
        """Returns the fault that each value of `mujoco_warp.Data.overflow` stands for, int32."""
        types = self._mjw.OverflowType
        known = {
            CONTACTS_FULL: int(types.BROADPHASE | types.NARROWPHASE),
            CONSTRAINTS_FULL: int(types.NEFC | types.NJMAX_NNZ),
            CONVEX_FULL: int(types.CCD),
        }
        # That an iteration stopped at its limit is no fault, nor one in C.
        harmless = types.ITERATIONS | types.LS_ITERATIONS
        known[OTHER_FULL] = int(types.ALL & ~harmless) & ~sum(known.values())
        values = torch.arange(int(types.ALL) + 1, dtype=torch.int32)
        faults = [bit * (values & mask != 0).int() for bit, mask in known.items()]
        return torch.stack(faults).sum(dim=0, dtype=torch.int32)

    def _view(self, name: str) -> Tensor:
        """Returns a field as MjData has it: rotation matrices are rows of nine there."""
        values = getattr(self._data, name, None)
        if values is None:
            raise ValueError(f"engine 'warp' has no field {name!r}, which the task reads")
        view: Tensor = self._wp.to_torch(values)
        return view.flatten(-2) if view.shape[2:] == (3, 3) else view

    def _warp_stream(self) -> Any:
        """Returns torch's current stream as Warp's: one object each time, for Warp goes by its identity."""
        if self.device.type != "cuda":
            return None
        stream = torch.cuda.current_stream(self.device)
        key = self.device.index, stream.cuda_stream
        with _lock:
            if key not in _streams:
                _streams[key] = self._wp.stream_from_torch(stream)
            return _streams[key]

    def _stream(self) -> Any:
        """Returns the context in which Warp works on torch's current stream."""
        return self._wp.ScopedStream(self._warp_stream())

    def compile(self, num_substeps: int) -> None:
        """Records `advance(num_substeps)`, unless that has been done; compiles the kernels that it needs."""
        mjw = self._mjw

        def run() -> None:
            for _ in range(num_substeps):
                mjw.step(self._model, self._data)
            if self._has_contact_forces:
                mjw.rne_postconstraint(self._model, self._data)  # where Gymnasium calls it

        self._record(num_substeps, run)

    def _record(self, key: int | str, run: Callable[[], None]) -> None:
        """Records what Warp launches in `run`, unless that has been done; the simulations do not move."""
        if key in self._graphs:
            return
        wp = self._wp
        with _lock, wp.ScopedDevice(self._device), collector_paused():
            if self.device.type != "cuda":
                with wp.ScopedCapture(device=self._device) as capture:
                    run()
            else:
                kept = self._copies()
                try:
                    with working_on(new_stream(self.device), current_stream(self.device)), self._stream():
                        run()  # loads every kernel, which moves the simulations
                        with wp.ScopedCapture(stream=self._warp_stream()) as capture:
                            run()
                finally:
                    self._put_back(torch.ones(self.num_envs, dtype=torch.bool, device=self.device), kept)
        self._graphs[key] = capture.graph

    def _launch(self, key: int | str) -> None:
        self._wp.capture_launch(self._graphs[key], stream=self._warp_stream())

    def advance(self, num_substeps: int) -> None:
        """Steps all simulations under `ctrl`, on torch's current stream, without waiting for the device."""
        self.compile(num_substeps)
        self._launch(num_substeps)

    def restart(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Puts simulations where an episode begins, without computing what follows from it.

        Args:
            mask: which, bool [N].
            qpos: positions, float32 [N, nq]; those of the others do not matter.
            qvel: velocities, float32 [N, nv], as well.
        """
        rows = mask.unsqueeze(1)
        torch.where(rows, qpos, self._qpos, out=self._qpos)
        torch.where(rows, qvel, self._qvel, out=self._qvel)
        for state in self._cleared:
            state.masked_fill_(rows if state.ndim == 2 else mask, 0)

    def faults(self) -> Tensor:
        """Returns what has gone wrong in each simulation, bits of `FAULTS`, int32 [N].

        A buffer that was full is told until the simulation is restarted.
        """
        largest = torch.stack([values.abs().amax(dim=1) for values in self._checked.values()], dim=1)
        bad = (self._bits * ~(largest < MAX_VALUE)).sum(dim=1, dtype=torch.int32)
        return bad | self._fault_of_overflow[self._overflow.long()]

    def reset(self, ids: Ids, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> None:
        """See `PhysicsEngine.reset`."""
        rows = self._rows(ids)
        mask = self._mask(rows)

        def all_rows(values: NDArray[np.float64]) -> Tensor:
            some = torch.from_numpy(values).to(self.device, torch.float32)
            return some.new_zeros(self.num_envs, values.shape[1]).index_copy_(0, rows, some)

        kept = self._copies()
        self.restart(mask, all_rows(qpos), all_rows(qvel))
        self.forward()
        self._put_back(~mask, kept)
        self._note_failures(mask)

    def forward(self) -> None:
        """Computes what follows from the state of all simulations; contact forces are 0, as after mj_forward.

        The state itself stays.
        """
        self._record("forward", lambda: self._mjw.forward(self._model, self._data))
        self._launch("forward")
        if self._has_contact_forces:
            self.fields["cfrc_ext"].zero_()

    def step(self, ctrl: Tensor, num_substeps: int, ids: Ids | None = None) -> None:
        """See `PhysicsEngine.step`."""
        self.compile(num_substeps)
        mask = None if ids is None else self._mask(self._rows(ids))
        kept = [] if mask is None else self._copies()
        self.ctrl.copy_(ctrl)
        self.advance(num_substeps)
        if mask is not None:
            self._put_back(~mask, kept)
        self._note_failures(mask)

    def _rows(self, ids: Ids) -> Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self.device)

    def _mask(self, rows: Tensor) -> Tensor:
        mask = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return mask.index_fill_(0, rows, True)

    def _copies(self) -> list[Tensor]:
        return [self._overflow.clone(), *(view.clone() for view in self._views.values())]

    def _put_back(self, mask: Tensor, kept: list[Tensor]) -> None:
        for view, copied in zip((self._overflow, *self._views.values()), kept, strict=True):
            view.copy_(where_rows(mask, copied, view))

    def _note_failures(self, mask: Tensor | None) -> None:
        faults = self.faults()
        if mask is not None:
            faults = torch.where(mask, faults, 0)
        faults = faults.cpu()
        self.failures = {i: fault_text(int(faults[i])) for i in faults.nonzero().flatten().tolist()}

    def close(self) -> None:
        """Frees the device; the engine cannot be used any more."""
        self.fields, self._graphs, self._views = {}, {}, {}
        self._checked, self._cleared = {}, []
        del self._data, self._model, self.ctrl, self._qpos, self._qvel, self._overflow


def _for_warp(model: mujoco.MjModel) -> mujoco.MjModel:
    """Returns the model with a solver that mujoco_warp has.

    Raises:
        ValueError: if simulations have a state that `WarpEngine` does not know how to put back.
    """
    if model.nhistory or model.nplastic:
        raise ValueError("it has delays or plasticity")
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        model = copy.copy(model)
        model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
        model.opt.iterations = max(model.opt.iterations, MIN_ITERATIONS)
    return model
