"""Where a run takes place, and what it says of that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from es_flipout.run import placement
from es_flipout.run.config import Config, EnvConfig
from es_flipout.run.placement import carried_over, place

NO_GPU = "torch sees no CUDA device"


@pytest.fixture
def machine(monkeypatch):
    """Says what the machine has."""

    def has(*, gpu: bool, warp: bool, warp_gpus: int = 1) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU X")
        monkeypatch.setattr(placement, "find_spec", lambda name: object() if warp else None)
        monkeypatch.setattr(placement, "num_warp_gpus", lambda: warp_gpus)

    return has


def placed(device="auto", engine="auto", env_id="Humanoid-v5", **fields):
    env = EnvConfig(env_id, engine=engine, wrappers=fields.pop("wrappers", []))
    lines = []
    config = place(Config(env=env, device=device, **fields), lines.append)
    assert not any("\n" in line for line in lines)
    assert [line.startswith("mujoco_warp compiles") for line in lines[1:]] == [True] * (
        config.env.engine == "warp"
    )
    return config.device, config.env.engine, lines[0]


def test_everything_is_on_the_gpu_if_it_can_be(machine):
    machine(gpu=True, warp=True)
    device, engine, line = placed()
    assert (device, engine) == ("cuda", "warp")
    assert line.startswith("device cuda (GPU X): policies and physics (mujoco_warp) on it")
    assert placed("cuda")[:2] == ("cuda", "warp")
    assert placed("cuda:1")[:2] == ("cuda:1", "warp")
    assert placed(engine="warp")[:2] == ("cuda", "warp")


def test_a_gpu_that_only_torch_can_use_is_told(machine):
    machine(gpu=True, warp=True, warp_gpus=0)
    reason = "Warp does not see this GPU: the driver is probably too old for this build of warp-lang"
    assert placed() == ("cpu", "auto", f"device cpu, because {reason}")
    line = f"device cuda, as configured: policies on the GPU, environments on the CPU because {reason}"
    assert placed("cuda") == ("cuda", "auto", line)


def test_a_warp_that_does_not_start_is_told(machine, monkeypatch):
    machine(gpu=True, warp=True)

    def fail():
        raise RuntimeError("no such symbol\nin libcuda")

    monkeypatch.setattr(placement, "num_warp_gpus", fail)
    assert placed() == ("cpu", "auto", "device cpu, because Warp does not start: no such symbol")


@pytest.mark.parametrize(
    ("gpu", "warp", "wanted", "reason"),
    [
        (False, True, {}, NO_GPU),
        (False, False, {}, NO_GPU),
        (True, False, {}, "mujoco-warp is not installed (pip install 'es-flipout[gpu]')"),
        (True, True, {"env_id": "CartPole-v1"}, "CartPole-v1 is not a native task"),
        (True, True, {"wrappers": ["ClipAction"]}, "Humanoid-v5 in wrappers is not a native task"),
        (True, True, {"engine": "mjdata_pool"}, "env.engine mjdata_pool runs on the CPU"),
        (True, True, {"backend": "process_pool"}, "backend process_pool runs on the CPU"),
    ],
)
def test_auto_takes_the_cpu_and_says_why(machine, gpu, warp, wanted, reason):
    machine(gpu=gpu, warp=warp)
    engine = wanted.get("engine", "auto")
    assert placed(**wanted) == ("cpu", engine, f"device cpu, because {reason}")


def carried(device, engine, **fields):
    lines = []
    config = Config(env=EnvConfig("Humanoid-v5", engine=engine), device=device, **fields)
    config = carried_over(config, lines.append)
    return config.device, config.env.engine, lines


def missing(device):
    raise ValueError(f"device {device!r} is not available") from RuntimeError("no such GPU\nat all")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize(("engine", "kept"), [("warp", "auto"), ("auto", "auto"), ("batch", "batch")])
def test_a_stored_run_leaves_a_gpu_that_is_not_here(machine, monkeypatch, device, engine, kept):
    machine(gpu=False, warp=True)
    monkeypatch.setattr(placement, "check_device", missing)
    found_device, found_engine, (line,) = carried(device, engine)
    assert (found_device, found_engine) == ("auto", kept)
    assert line.startswith(f"the run's device {device}")
    assert line.endswith(f"is not available here ({NO_GPU}): choosing another")


def test_a_stored_run_leaves_an_engine_or_one_gpu_of_several_that_is_not_here(machine, monkeypatch):
    machine(gpu=True, warp=False)
    monkeypatch.setattr(placement, "check_device", lambda device: None)
    assert carried("cuda", "warp")[:2] == ("auto", "auto")
    assert "(mujoco-warp is not installed" in carried("cuda", "warp")[2][0]
    machine(gpu=True, warp=True)
    monkeypatch.setattr(placement, "check_device", missing)
    assert carried("cuda:7", "warp")[2][0].endswith("(no such GPU): choosing another")


def test_a_stored_run_stays_where_it_can(machine, monkeypatch):
    monkeypatch.setattr(placement, "check_device", lambda device: None)
    machine(gpu=True, warp=True)
    for device, engine in (("cuda", "warp"), ("cuda:1", "auto"), ("cpu", "auto"), ("cpu", "warp")):
        assert carried(device, engine) == (device, engine, [])
    machine(gpu=False, warp=True)
    assert carried("cpu", "warp") == ("cpu", "warp", [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_picked():
    assert placed()[:2] == ("cuda", "warp")


def test_what_is_configured_is_done(machine):
    machine(gpu=True, warp=True)
    assert placed("cpu") == ("cpu", "auto", "device cpu, as configured")
    assert placed("cpu", "warp")[:2] == ("cpu", "warp")
    device, engine, line = placed("cuda", "batch")
    assert (device, engine) == ("cuda", "batch")
    assert line == (
        "device cuda, as configured: policies on the GPU, environments on the CPU because env.engine batch "
        "runs on the CPU"
    )
    device, engine, line = placed("cuda", env_id="CartPole-v1")
    assert (device, engine) == ("cuda", "auto")
    assert line.endswith("environments on the CPU because CartPole-v1 is not a native task")
    assert placed("mps")[:2] == ("mps", "auto")


def test_room_for_contacts_is_for_warp_alone(machine):
    config = Config(env=EnvConfig(engine_kwargs={"njmax": 100}))
    machine(gpu=True, warp=True)
    assert place(config, print).env.engine_kwargs == {"njmax": 100}
    machine(gpu=False, warp=True)
    assert place(config, print).env.engine_kwargs == {}
    by_name = replace(config, env=replace(config.env, engine="batch"))
    assert place(by_name, print).env.engine_kwargs == {"njmax": 100}  # which the engine refuses
