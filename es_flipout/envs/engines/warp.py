"""Physics through `mujoco_warp`: thousands of envs on a GPU, in float32.

The substeps of an env step are recorded once as a graph and replayed. It also runs on the CPU, slowly: for
tests, and to try things without a GPU.

It differs from MuJoCo in C in these ways. All numbers are float32. The PGS solver does not exist, so a model
that asks for it gets Newton. Every env is stepped, live or not, and those that should not have moved are put
back. The contacts of all envs share one buffer, and each env has room for a fixed number of constraints; if
either runs out, contacts are lost, which counts as a failure.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.engines.contract import POST_CONSTRAINT, Ids, PhysicsEngine
from es_flipout.envs.engines.warp_faults import BAD_CTRL, BAD_QPOS, BAD_QVEL, FaultDetector, fault_text
from es_flipout.envs.engines.warp_graphs import WarpGraphs
from es_flipout.envs.engines.warp_models import varied_fields
from es_flipout.envs.engines.warp_setup import NO_GPU_FOR_WARP, import_warp, num_warp_gpus
from es_flipout.envs.masks import where_rows

NCONMAX, NJMAX = 24, 64
"""Default room for contacts and for constraints per env, enough for Gymnasium's tasks."""
MIN_ITERATIONS = 100
"""Iterations that Newton may take where it replaces PGS; it needs far fewer."""
_CLEARED = ("time", "act", "qacc_warmstart", "ctrl")
"""Fields that are 0 at the start of an episode."""
_STATE = ("qpos", "qvel", *_CLEARED)
"""All fields of an env that a step starts from and changes."""


class WarpEngine(PhysicsEngine):
    """N envs in one `mujoco_warp.Data`; `fields` are float32 views of it.

    Besides the contract of `PhysicsEngine` it offers steps without the host: a loop on the device is made of
    `ctrl`, `advance`, `restart` and `faults`, which may be captured in CUDA graphs.

    Attributes:
        ctrl: controls, float32 [N, nu], to be written before `advance`.
        varied: names of the MjModel fields that each env has for itself.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        fields: Sequence[str],
        device: torch.device | str = "cuda",
        varied: Sequence[str] = (),
        *,
        nconmax: int = NCONMAX,
        njmax: int = NJMAX,
        nccdmax: int | None = None,
        deterministic: bool = False,
    ) -> None:
        """Puts the model and N envs on the device; kernels are compiled when they are first used.

        Args:
            model: the MuJoCo model.
            num_envs: number of envs N.
            fields: names of the MjData fields to show.
            device: "cuda", another CUDA device, or "cpu".
            varied: names of the MjModel fields that each env has for itself. Constants among them that
                mujoco_warp does not use are left out.
            nconmax: room for contacts; all envs together have N times this.
            njmax: room for constraint rows in each env.
            nccdmax: room for contacts between convex shapes, counted like `nconmax`; the same if None.
            deterministic: whether contacts and constraints are sorted (`warp_order`), and mujoco_warp sums in
                a fixed order, so that a GPU repeats a generation to the last bit, as seen on an NVIDIA H200;
                it is slower.

        Raises:
            ValueError: if mujoco_warp is not installed, cannot run the model, lacks a field, or cannot vary
                one.
        """
        wp, self._mjw = import_warp()
        self._to_torch = wp.to_torch
        self.model = model
        self.num_envs = num_envs
        self.device = torch.empty(0, device=device).device  # with its index
        if self.device.type == "cuda" and self.device.index >= num_warp_gpus():
            raise ValueError(f"engine 'warp' cannot run on {self.device}: {NO_GPU_FOR_WARP}")
        self._graphs = WarpGraphs(self.device)
        self._post_constraint = [name for name in POST_CONSTRAINT if name in fields]
        try:
            with self._graphs.on_device(), self._graphs.on_stream():
                self._model = self._mjw.put_model(_for_warp(model))
                self._model.opt.warn_overflow = 0  # `faults` reports it
                self._model.opt.deterministic = deterministic
                self._varied = varied_fields(self._model, model, varied, num_envs)
                self.varied = tuple(self._varied)
                # Without conditional nodes the solver always runs all of its iterations.
                conditional = self.device.type == "cpu" or wp.is_conditional_graph_supported()
                self._model.opt.graph_conditional = conditional
                self._data = self._mjw.make_data(
                    model, nworld=num_envs, nconmax=nconmax, njmax=njmax, nccdmax=nccdmax
                )
                if deterministic:
                    from es_flipout.envs.engines.warp_order import FixedOrder  # it needs Warp

                    FixedOrder(self._model, self._data)
                self._mjw.reset_data(self._model, self._data)
        except (NotImplementedError, ValueError, RuntimeError) as error:
            raise ValueError(f"engine 'warp' cannot run the model with {num_envs} envs: {error}") from error
        self._overflow = wp.to_torch(self._data.overflow)
        self._views = {name: self._view(name) for name in dict.fromkeys([*_STATE, *fields])}
        self._qpos, self._qvel = self._views["qpos"], self._views["qvel"]
        self.fields = {name: self._views[name] for name in fields}
        self.ctrl = self._views["ctrl"]
        self._cleared = [self._overflow, *(self._views[name] for name in _CLEARED)]
        self.failures: dict[int, str] = {}
        checked = {BAD_QPOS: self._qpos, BAD_QVEL: self._qvel, BAD_CTRL: self.ctrl}
        self._detector = FaultDetector(checked, self._overflow, self._mjw.OverflowType)

    def _view(self, name: str) -> Tensor:
        """Returns a field in MjData's shape, where rotation matrices are rows of nine numbers."""
        values = getattr(self._data, name, None)
        if values is None:
            raise ValueError(f"engine 'warp' has no field {name!r}, which the task reads")
        view: Tensor = self._to_torch(values)
        return view.flatten(-2) if view.shape[2:] == (3, 3) else view

    @override
    def input(self, name: str) -> Tensor:
        if name not in self._views:
            self._views[name] = self._view(name)
            self._cleared.append(self._views[name])
        return self._views[name]

    def compile(self, num_substeps: int) -> None:
        """Records `advance(num_substeps)` if that has not been done, and compiles the kernels it needs."""
        mjw = self._mjw

        def run() -> None:
            for _ in range(num_substeps):
                mjw.step(self._model, self._data)
            if self._post_constraint:
                mjw.rne_postconstraint(self._model, self._data)  # where Gymnasium calls it

        self._graphs.record(num_substeps, run, self._state_kept)

    def advance(self, num_substeps: int) -> None:
        """Steps all envs under `ctrl`, on torch's current stream, without waiting for the device."""
        self.compile(num_substeps)
        self._graphs.launch(num_substeps)

    def restart(
        self,
        mask: Tensor,
        qpos: Tensor,
        qvel: Tensor,
        model: Mapping[str, Tensor] = {},
        fields: Mapping[str, Tensor] = {},
    ) -> None:
        """Puts envs at the start of an episode, without computing the other fields.

        Args:
            mask: which envs, bool [N].
            qpos: positions, float32 [N, nq]; ignored where the mask is False.
            qvel: velocities, float32 [N, nv]; likewise.
            model: values of fields in `varied`, float32 [N, ...]; likewise.
            fields: what some of the other fields are there, [N, ...]; likewise.
        """
        column = mask.unsqueeze(1)
        torch.where(column, qpos, self._qpos, out=self._qpos)
        torch.where(column, qvel, self._qvel, out=self._qvel)
        for name, values in model.items():
            self._varied[name].copy_(where_rows(mask, values, self._varied[name]))
        for state in self._cleared:
            state.masked_fill_(mask.view(-1, *(1,) * (state.ndim - 1)), 0)
        for name, values in fields.items():
            self.fields[name].copy_(where_rows(mask, values, self.fields[name]))

    def faults(self) -> Tensor:
        """Returns what has gone wrong in each env, bits of `FAULTS`, int32 [N].

        A full buffer is reported until the env is restarted.
        """
        return self._detector.faults()

    @override
    def reset(
        self,
        ids: Ids,
        qpos: NDArray[np.float64],
        qvel: NDArray[np.float64],
        model: Mapping[str, NDArray[Any]] = {},
    ) -> None:
        index = self._index(ids)
        mask = self._mask(index)

        def for_all_envs(values: NDArray[np.float64]) -> Tensor:
            some = torch.from_numpy(values).to(self.device, torch.float32)
            return some.new_zeros(self.num_envs, *values.shape[1:]).index_copy_(0, index, some)

        kept = self._copies()
        own = {name: for_all_envs(values) for name, values in model.items() if name in self.varied}
        self.restart(mask, for_all_envs(qpos), for_all_envs(qvel), own)
        self.forward()
        self._put_back(~mask, kept)
        self._note_failures(mask)

    def forward(self) -> None:
        """Computes the fields that follow from the state of all envs, which does not change.

        Contact forces are 0, as after mj_forward.
        """
        self._graphs.record("forward", lambda: self._mjw.forward(self._model, self._data), self._state_kept)
        self._graphs.launch("forward")
        for name in self._post_constraint:
            self.fields[name].zero_()

    @override
    def step(self, ctrl: Tensor | None, num_substeps: int, ids: Ids | None = None) -> None:
        self.compile(num_substeps)
        mask = None if ids is None else self._mask(self._index(ids))
        kept = [] if mask is None else self._copies()
        if ctrl is not None:
            self.ctrl.copy_(ctrl)
        self.advance(num_substeps)
        if mask is not None:
            self._put_back(~mask, kept)
        self._note_failures(mask)

    def _index(self, ids: Ids) -> Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self.device)

    def _mask(self, index: Tensor) -> Tensor:
        mask = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return mask.index_fill_(0, index, True)

    @contextmanager
    def _state_kept(self) -> Iterator[None]:
        """Puts all envs back to their present state in the end."""
        kept = self._copies()
        try:
            yield
        finally:
            self._put_back(torch.ones(self.num_envs, dtype=torch.bool, device=self.device), kept)

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

    @override
    def close(self) -> None:
        self._graphs.clear()
        self.fields, self._views, self._varied, self._cleared = {}, {}, {}, []
        del self._data, self._model, self._detector, self.ctrl, self._qpos, self._qvel, self._overflow


def _for_warp(model: mujoco.MjModel) -> mujoco.MjModel:
    """Returns the model with a solver that mujoco_warp has.

    Raises:
        ValueError: if envs have a state that `WarpEngine` cannot put back.
    """
    if model.nhistory or model.nplastic:
        raise ValueError("it has delays or plasticity")
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        model = copy.copy(model)
        model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
        model.opt.iterations = max(model.opt.iterations, MIN_ITERATIONS)
    return model
