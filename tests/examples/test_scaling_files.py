"""The files in examples/scaling run as they are, with stand-ins for `srun`, `scontrol` and `hostname`."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parents[2]
SCALING = ROOT / "examples" / "scaling"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = Path(sysconfig.get_path("scripts"))
JOB_ID = 4_012_345

# Like srun, runs the command once per node and exits with the highest status. Options are --name=value.
SRUN = """\
printf '%s\\n' "$@" > "$RECORD/srun"
while [[ $1 == --* ]]; do shift; done
processes=()
for ((node = 0; node < NODES; node++)); do
    SLURM_NODEID=$node "$@" &
    processes+=($!)
done
highest=0
for process in "${processes[@]}"; do
    status=0
    wait "$process" || status=$?
    ((status > highest)) && highest=$status
done
exit "$highest"
"""
SCONTROL = """\
if [[ $1 == requeue ]]; then
    echo "$2" > "$RECORD/requeued"
else
    [[ "$1 $2 $3" == "show hostnames node-[0-2]" ]] || exit 9
    for ((node = 0; node < NODES; node++)); do echo "${HOST_PREFIX-node-$node}"; done
fi
"""
# Writes down its call, waits for SIGTERM if told to, and exits with STATUS, or with 143 after SIGTERM.
PROGRAM = """\
import json, os, signal, sys, time
name = f"{os.environ['RECORD']}/{os.path.basename(sys.argv[0])}-{os.getpid()}"
record = {"arguments": sys.argv[1:], "environment": dict(os.environ), "parent": os.getppid(), "signals": 0}
record["begun"] = time.time()
def write():
    with open(name + ".new", "w") as file:
        json.dump(record, file)
    os.rename(name + ".new", name)
def terminate(number, frame):
    record["signals"] += 1
    write()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, terminate)
died = os.environ["RECORD"] + "/died"
if os.environ.get("RANK", "-") == os.environ.get("DYING_RANK") and not os.path.exists(died):
    time.sleep(5)  # so that the others have begun
    with open(died, "w") as file:
        file.write(str(time.time()))
    sys.exit(3)
write()
for _ in range(2000 if "WAIT" in os.environ else 0):  # not forever: if a test fails, nobody ends a rank
    time.sleep(0.05)
sys.exit(int(os.environ.get("STATUS", "0")))
"""


class Site:
    """A folder of stand-ins at the front of PATH, and what they wrote down."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.record = folder / "bin", folder / "record"
        self.bin.mkdir()
        self.record.mkdir()
        self.processes: list[subprocess.Popen[str]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PET_"))},
            "PATH": f"{self.bin}:{SCRIPTS}:{os.environ['PATH']}",
            "RECORD": str(self.record),
        }

    def add(self, name: str, body: str, interpreter: str = "/bin/bash") -> None:
        (self.bin / name).write_text(f"#!{interpreter}\n{body}")
        (self.bin / name).chmod(0o755)

    def add_program(self, name: str) -> None:
        self.add(name, PROGRAM, f"{sys.executable} -IS")

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", str(SCALING / script), *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def calls(self, name: str) -> list[dict[str, Any]]:
        """Returns what each process of that name wrote down."""
        paths = [path for path in self.record.glob(f"{name}-*") if path.suffix != ".new"]
        return [{**json.loads(path.read_text()), "pid": int(path.name.rpartition("-")[2])} for path in paths]

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.end()


@pytest.fixture
def cluster(site: Site) -> Site:
    """A SLURM allocation of three nodes, which are all this machine."""
    site.add("srun", SRUN)
    site.add("scontrol", SCONTROL)
    site.environment |= {
        "NODES": "3",
        "SLURM_JOB_ID": str(JOB_ID),
        "SLURM_JOB_NODELIST": "node-[0-2]",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_JOB_END_TIME": str(int(time.time()) + 3600),
    }
    return site


def ended(process: subprocess.Popen[str], timeout: float = 60) -> tuple[int, str]:
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def wait_for(condition: Callable[[], bool], timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def parsed(arguments: Sequence[str]) -> Any:
    """Returns what torchrun's own parser makes of its arguments; es-train needs --no-python."""
    known = get_args_parser().parse_args(arguments)
    assert known.no_python == known.training_script.startswith("es-")
    return known


# shellcheck


@pytest.mark.parametrize("script", sorted(SCALING.glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{SCRIPTS}:{os.environ['PATH']}")
    assert shellcheck is not None, "shellcheck is missing; the extra dev has it"
    result = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


# slurm.sh


def test_slurm_starts_the_same_torchrun_on_every_node(cluster: Site) -> None:
    cluster.add_program("torchrun")
    assert ended(cluster.start("slurm.sh", "humanoid.yaml", "/shared/my run", "--seed", "1")) == (0, "")
    calls = cluster.calls("torchrun")
    assert {call["environment"]["SLURM_NODEID"] for call in calls} == {"0", "1", "2"}
    assert len({tuple(call["arguments"]) for call in calls}) == 1
    known = parsed(calls[0]["arguments"])
    assert (known.nnodes, known.nproc_per_node, known.max_restarts) == ("3", "1", 3)
    assert (known.rdzv_backend, known.rdzv_id) == ("c10d", str(JOB_ID))
    assert known.rdzv_endpoint == "node-0:22345"
    train = ["--config", "humanoid.yaml", "--out", "/shared/my run", "--resume", "auto", "--seed", "1"]
    assert (known.training_script, known.training_script_args) == ("es-train", train)
    options = (cluster.record / "srun").read_text().splitlines()
    assert options[:3] == ["--ntasks-per-node=1", "--cpus-per-task=32", "--kill-on-bad-exit=0"]
    assert not (cluster.record / "requeued").exists()


def test_slurm_takes_the_ranks_per_node_from_the_environment(cluster: Site) -> None:
    cluster.add_program("torchrun")
    assert ended(cluster.start("slurm.sh", "humanoid_gpu.yaml", "/shared/run", RANKS_PER_NODE="gpu"))[0] == 0
    assert {parsed(call["arguments"]).nproc_per_node for call in cluster.calls("torchrun")} == {"gpu"}


@pytest.mark.parametrize(
    ("status", "seconds_left", "requeued"),
    [("0", 3600, False), ("5", 3600, False), ("5", 50, True), ("0", 50, False), ("5", None, False)],
)
def test_slurm_exits_with_the_status_and_requeues_at_the_time_limit(
    cluster: Site, status: str, seconds_left: int | None, requeued: bool
) -> None:
    cluster.add_program("torchrun")
    cluster.environment.pop("SLURM_JOB_END_TIME")
    end = {} if seconds_left is None else {"SLURM_JOB_END_TIME": str(int(time.time()) + seconds_left)}
    process = cluster.start("slurm.sh", "humanoid.yaml", "/shared/run", STATUS=status, **end)
    assert ended(process) == (int(status), "")
    record = cluster.record / "requeued"
    assert (record.read_text().split() if record.exists() else []) == [str(JOB_ID)] * requeued


@pytest.mark.parametrize("shell_too", [False, True], ids=["steps", "steps and shell"])
def test_slurm_waits_for_the_run_to_be_saved(cluster: Site, shell_too: bool) -> None:
    cluster.add_program("torchrun")
    process = cluster.start("slurm.sh", "humanoid.yaml", "/shared/run", WAIT="1")
    wait_for(lambda: len(cluster.calls("torchrun")) == 3)
    if shell_too:
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
    for call in cluster.calls("torchrun"):
        os.kill(call["pid"], signal.SIGTERM)
    assert ended(process) == (143, "")
    assert [call["signals"] for call in cluster.calls("torchrun")] == [1, 1, 1]


def test_slurm_names_what_is_missing(cluster: Site) -> None:
    status, output = ended(cluster.start("slurm.sh", "humanoid.yaml"))
    assert status != 0
    assert "usage: sbatch slurm.sh CONFIG DIR" in output
    cluster.add_program("torchrun")
    cluster.add("scontrol", "exit 1\n")
    status, output = ended(cluster.start("slurm.sh", "humanoid.yaml", "/shared/run"))
    assert status != 0
    assert not cluster.calls("torchrun")


def test_slurm_directives() -> None:
    text = (SCALING / "slurm.sh").read_text()
    assert text.startswith("#!")
    head, _, program = text.partition("set -euo pipefail")
    assert "#SBATCH" not in program  # sbatch reads none after the first command
    assert all(line.startswith("#") or not line for line in head.splitlines())
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, flags=re.MULTILINE))
    assert len(directives) == head.count("\n#SBATCH")
    assert int(directives["nodes"]) > 1
    assert directives["ntasks-per-node"] == "1"
    assert directives["signal"] == "TERM@60"  # with "B:" it would reach the shell alone
    assert directives["open-mode"] == "append"
    assert "requeue" in directives


@pytest.mark.slow
def test_slurm_with_the_real_torchrun(cluster: Site) -> None:
    """Two nodes, two ranks each: a rank dies, all start again, SIGTERM to torchrun reaches all of them."""
    cluster.add_program("es-train")
    job = {"NODES": "2", "HOST_PREFIX": "localhost", "SLURM_JOB_ID": str(free_port() % 10_000)}
    job |= {"RANKS_PER_NODE": "2", "WAIT": "1", "DYING_RANK": "2"}
    process = cluster.start("slurm.sh", "humanoid.yaml", "/shared/run", **job)

    def restarted() -> list[dict[str, Any]]:
        """Returns the calls since a rank died."""
        path = cluster.record / "died"
        died = float((path.exists() and path.read_text()) or "inf")
        return [call for call in cluster.calls("es-train") if call["begun"] > died]

    wait_for(lambda: len(restarted()) == 4)
    environments = [call["environment"] for call in restarted()]
    assert {each["RANK"] for each in environments} == {"0", "1", "2", "3"}
    assert {each["WORLD_SIZE"] for each in environments} == {"4"}
    assert {each["SLURM_NODEID"] for each in environments} == {"0", "1"}
    for torchrun in {call["parent"] for call in restarted()}:
        os.kill(torchrun, signal.SIGTERM)
    assert ended(process)[0] == 1
    assert [call["signals"] for call in restarted()] == [1, 1, 1, 1]


# two_hosts.sh


@pytest.mark.parametrize(("host", "node_rank"), [("alpha", 0), ("beta.lan", 1)])
def test_two_hosts_ranks_them_in_order(site: Site, host: str, node_rank: int) -> None:
    site.add_program("torchrun")
    site.add("hostname", f"echo {host}\n")
    arguments = ["alpha", "beta.lan", "humanoid.yaml", "runs/my run", "--seed", "1"]
    assert ended(site.start("two_hosts.sh", *arguments, STATUS="7")) == (7, "")
    (call,) = site.calls("torchrun")
    known = parsed(call["arguments"])
    assert (known.nnodes, known.node_rank, known.nproc_per_node) == ("2", node_rank, "1")
    assert (known.rdzv_backend, known.master_addr, known.master_port) == ("static", "alpha", 29500)
    train = ["--config", "humanoid.yaml", "--out", "runs/my run", "--resume", "auto", "--seed", "1"]
    assert (known.training_script, known.training_script_args) == ("es-train", train)


def test_two_hosts_hands_signals_to_torchrun(site: Site) -> None:
    site.add_program("torchrun")
    site.add("hostname", "echo alpha\n")
    process = site.start("two_hosts.sh", "alpha", "beta", "humanoid.yaml", "runs/humanoid", WAIT="1")
    wait_for(lambda: len(site.calls("torchrun")) == 1)
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == (143, "")


def test_two_hosts_refuses_a_third_one(site: Site) -> None:
    site.add_program("torchrun")
    site.add("hostname", "echo gamma\n")
    status, output = ended(site.start("two_hosts.sh", "alpha", "beta", "humanoid.yaml", "runs/humanoid"))
    assert (status, output) == (2, "two_hosts.sh: this host is gamma, neither alpha nor beta\n")
    status, output = ended(site.start("two_hosts.sh", "gamma", "beta", "humanoid.yaml"))
    assert status == 2
    assert output.startswith("usage: bash two_hosts.sh FIRST_HOST SECOND_HOST CONFIG DIR")
    assert not site.calls("torchrun")


@pytest.mark.slow
def test_two_hosts_with_the_real_torchrun(site: Site) -> None:
    """Rank 0 is on the first host, although its name sorts last."""
    site.add_program("es-train")
    site.add("hostname", 'echo "$HOST"\n')
    arguments = ["localhost", "alpha", "humanoid.yaml", "runs/humanoid"]
    environment = {"PORT": str(free_port()), "RANKS_PER_NODE": "2"}
    hosts = [
        site.start("two_hosts.sh", *arguments, HOST=host, **environment) for host in ("alpha", "localhost")
    ]
    assert [ended(process, 90)[0] for process in hosts] == [0, 0]
    environments = [call["environment"] for call in site.calls("es-train")]
    ranks = {int(each["RANK"]): each["HOST"] for each in environments}
    assert ranks == {0: "localhost", 1: "localhost", 2: "alpha", 3: "alpha"}


# kubernetes.yaml


def kubernetes() -> tuple[dict[str, Any], dict[str, Any]]:
    claim, job = yaml.safe_load_all((SCALING / "kubernetes.yaml").read_text())
    return claim, job


def container_of(replica: dict[str, Any]) -> dict[str, Any]:
    (container,) = replica["template"]["spec"]["containers"]
    return container


def test_kubernetes_names_and_numbers_agree() -> None:
    claim, job = kubernetes()
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    master, worker = (job["spec"]["pytorchReplicaSpecs"][name] for name in ("Master", "Worker"))
    assert master["replicas"] == 1
    assert worker["replicas"] >= 1
    for replica in (master, worker):
        assert replica["restartPolicy"] == "OnFailure"
        assert replica["template"]["spec"]["terminationGracePeriodSeconds"] > 30  # those of torchrun
        assert container_of(replica)["name"] == "pytorch"
        resources = container_of(replica)["resources"]
        assert resources["requests"] == resources["limits"]
    assert container_of(master)["command"] == container_of(worker)["command"]
    assert container_of(master)["image"] == container_of(worker)["image"]
    (volume,) = master["template"]["spec"]["volumes"]
    (mount,) = container_of(master)["volumeMounts"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert mount["name"] == volume["name"]
    assert "volumes" not in worker["template"]["spec"]
    train = dict(
        option.removeprefix("--").split("=") for option in container_of(master)["command"][5:]
    )  # after es-train
    assert (ROOT / "configs" / train["config"]).exists()
    assert Path(train["out"]).parent == Path(mount["mountPath"])
    assert train["threads"] == container_of(master)["resources"]["limits"]["cpu"]
    assert train["resume"] == "auto"


@pytest.mark.parametrize(("name", "index", "rank"), [("Master", 0, 0), ("Worker", 0, 1), ("Worker", 2, 3)])
def test_kubernetes_command_with_the_variables_of_the_operator(
    monkeypatch: pytest.MonkeyPatch, name: str, index: int, rank: int
) -> None:
    spec = kubernetes()[1]["spec"]
    replicas = spec["pytorchReplicaSpecs"]
    # As SetPodEnv in the operator's pkg/controller.v1/pytorch/envvar.go; 23456 is its default port.
    operator = {"MASTER_ADDR": "humanoid-master-0", "MASTER_PORT": "23456"}
    operator["PET_NODE_RANK"] = str(index if name == "Master" else index + 1)
    operator["PET_NNODES"] = str(sum(replica["replicas"] for replica in replicas.values()))
    operator["PET_NPROC_PER_NODE"] = spec["nprocPerNode"]
    for variable, value in operator.items():
        monkeypatch.setenv(variable, value)
    # The kubelet replaces $(NAME).
    command = [
        re.sub(r"\$\((\w+)\)", lambda match: operator[match[1]], part)
        for part in container_of(replicas[name])["command"]
    ]
    assert command[0] == "torchrun"
    known = parsed(command[1:])
    assert (known.nnodes, known.node_rank, known.nproc_per_node) == ("4", rank, "1")
    assert (known.rdzv_backend, known.master_addr, known.master_port) == (
        "static",
        "humanoid-master-0",
        23456,
    )
    assert known.training_script == "es-train"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kubernetes_schemas() -> None:
    """Kubeflow's models for the job, Kubernetes' schemas for claim and pods; neither is in the extra dev."""
    training = pytest.importorskip("kubeflow.training", exc_type=ImportError)
    validate = pytest.importorskip("kubernetes_validate").validate
    claim, job = kubernetes()
    validate(claim, "1.34", strict=True)
    for name, replica in job["spec"]["pytorchReplicaSpecs"].items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.lower()}}
        validate(pod | replica["template"], "1.34", strict=True)

    class Response:
        data = json.dumps(job)

    client = training.ApiClient()
    model = client.deserialize(Response, "KubeflowOrgV1PyTorchJob")
    assert client.sanitize_for_serialization(model) == job  # an unknown field would have been dropped


# torchrun in the documentation


def torchrun_commands(text: str) -> list[list[str]]:
    """Returns the arguments of each torchrun command in a page's code blocks and single backquotes."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(torchrun [^`]*--no-python[^`]*)`", text)
    commands = [shlex.split(line, comments=True) for line in lines if "torchrun " in line]
    return [command[command.index("torchrun") + 1 :] for command in commands if "torchrun" in command]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_torchrun_commands(page: Path) -> None:
    commands = torchrun_commands(page.read_text())
    assert len(commands) >= {"scaling.md": 7, "getting-started.md": 1}.get(page.name, 0)
    for command in commands:
        known = parsed(command)
        assert known.nproc_per_node == "gpu" or int(known.nproc_per_node) > 0
        if known.training_script == "es-train":
            arguments = known.training_script_args
            assert (ROOT / "configs" / arguments[arguments.index("--config") + 1]).exists()
            assert known.max_restarts == 0 or "--out" in arguments


def test_a_wrong_torchrun_command_would_be_found() -> None:
    page = "```\ntorchrun --nproc-per-node 4 --no-pythn es-train --config humanoid.yaml\n```\n"
    (command,) = torchrun_commands(page)
    with pytest.raises(SystemExit):
        parsed(command)
