"""The configuration of a run: frozen dataclasses whose field docstrings are the command line's help."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Literal

from es_flipout.run.checks import require, require_not_negative, require_positive
from es_flipout.run.schedules import EpisodeLimitConfig, ScheduleConfig
from es_flipout.run.sections import (
    EnvConfig,
    ESConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    PolicyConfig,
    RolloutConfig,
    SigmaAdaptationConfig,
)

__all__ = [
    "Backend",
    "Config",
    "ESConfig",
    "EnvConfig",
    "EpisodeLimitConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "OptimizerConfig",
    "PolicyConfig",
    "RolloutConfig",
    "ScheduleConfig",
    "SigmaAdaptationConfig",
    "flat_config",
]

Backend = Literal["vectorized", "process_pool"]


@dataclass(frozen=True)
class Config:
    """The run as a whole."""

    env: EnvConfig = field(default_factory=EnvConfig)
    """The environment."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The policy network."""
    es: ESConfig = field(default_factory=ESConfig)
    """The evolution strategy."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """The episodes that decide a member's fitness."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scores of the center."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Logging and checkpoints."""
    init_from: str | None = None
    """Warm start: a run directory (its last checkpoint) or a checkpoint file, whose policy and observation
    statistics the run begins with; null for new weights. Everything else starts from scratch."""
    seed: int = 0
    """Seed of every random stream of the run."""
    generations: int | None = None
    """Generations to train for; null for no limit."""
    max_env_steps: int | None = None
    """Live env steps to train for (the generation that reaches it is finished); null for no limit."""
    backend: Backend = "vectorized"
    """How a population is played: vectorized (members side by side, in env.num_envs envs) or process_pool
    (CPU-parallel evolution strategies: `threads` processes, each with one environment and one member at a
    time; a native task is played in a native env unless env.engine is gymnasium)."""
    device: str = "auto"
    """Torch device of the policy and the perturbations, and of the physics if env.engine is warp: cpu, cuda,
    or auto, which picks the GPU if the whole generation can run there, and otherwise the CPU."""
    threads: int | None = None
    """Physics threads (processes, for process_pool and for env.engine gymnasium_processes) of each rank; null
    for one per core, divided by the ranks on the machine. Results do not depend on it."""
    rank_timeout: float = 600.0
    """Seconds that the ranks of a run (torchrun) wait for each other before they name those that do not
    answer, and end. It must be longer than the longest block of episodes and the longest score."""
    out: str | None = None
    """Run directory; null for runs/ENV-seedSEED, with a number appended if that exists."""

    def __post_init__(self) -> None:
        require_not_negative("seed", self.seed)
        require_positive("generations", self.generations)
        require_positive("max_env_steps", self.max_env_steps)
        require_positive("threads", self.threads)
        require_positive("rank_timeout", self.rank_timeout)
        if self.backend == "process_pool":
            require(
                self.device in ("cpu", "auto"), f"backend process_pool runs on device cpu, got {self.device}"
            )
            require(
                self.env.engine in ("auto", "gymnasium"),
                f"backend process_pool has native or Gymnasium's envs: env.engine must be auto or gymnasium, "
                f"got {self.env.engine}",
            )
        scheduled = {self.es.sigma_schedule.kind, self.optimizer.lr_schedule.kind} != {"constant"}
        require(
            self.has_budget or not scheduled, "a schedule needs a budget: set generations or max_env_steps"
        )
        require(
            self.has_budget or self.rollout.final_alive_bonus is None,
            "rollout.final_alive_bonus needs a budget: set generations or max_env_steps",
        )

    @property
    def has_budget(self) -> bool:
        """Whether the run ends by itself."""
        return self.generations is not None or self.max_env_steps is not None

    def on_device(self, device: str) -> Config:
        """Returns the configuration on another device; engine warp was chosen for the old one."""
        if device == self.device:
            return self
        engine = "auto" if self.env.engine == "warp" else self.env.engine
        return replace(self, device=device, env=replace(self.env, engine=engine))

    def progress(self, generation: int, env_steps: int) -> float:
        """Returns the used share of the budget in [0, 1]; 0 for a run without a limit."""
        shares = [0.0]
        if self.generations is not None:
            shares.append(generation / self.generations)
        if self.max_env_steps is not None:
            shares.append(env_steps / self.max_env_steps)
        return min(max(shares), 1.0)


def flat_config(config: Config) -> dict[str, Any]:
    """Returns the values of a configuration by dotted name, as on the command line: es.sigma, env.id.

    Keyword arguments, lists and other values of a single option stay whole.
    """
    found: dict[str, Any] = {}

    def add(section: Any, prefix: str) -> None:
        for name, value in vars(section).items():
            if is_dataclass(value):
                add(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value

    add(config, "")
    return found
