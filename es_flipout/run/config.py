"""What a run is made of: dataclasses whose docstrings are the command line's help.

Range checks live here; whether a name exists (an environment, an optimizer) is checked where it is
resolved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from es_flipout.envs.make import EngineName
from es_flipout.fitness import FITNESS_SHAPING, FitnessShaping
from es_flipout.normalization import OBSERVATION_CLIP
from es_flipout.optimizers import LEARNING_RATE, OPTIMIZER
from es_flipout.perturbations import Flipout, LowRank
from es_flipout.policies import defaults
from es_flipout.policies.activations import Activation
from es_flipout.policies.heads import ActionBounds
from es_flipout.policies.initialization import Initialization
from es_flipout.rollout.seeds import ResetSeeds

Backend = Literal["vectorized", "process_pool"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_positive(name: str, value: float | None) -> None:
    _require(value is None or (value > 0 and math.isfinite(value)), f"{name} must be > 0, got {value}")


def _require_not_negative(name: str, value: float) -> None:
    _require(value >= 0 and math.isfinite(value), f"{name} must be >= 0, got {value}")


_NOT_ENV_KWARGS = frozenset(
    {
        "env_id",
        "id",
        "num_envs",
        "device",
        "dtype",
        "engine",
        "engine_kwargs",
        "threads",
        "info",
        "wrappers",
        "render_mode",
    }
)


@dataclass(frozen=True)
class EnvConfig:
    """The environment that members are rolled out in."""

    id: str = "Humanoid-v5"
    """Gymnasium id of the task, for example Humanoid-v5, HalfCheetah-v5 or InvertedPendulum-v5."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment, the same as for gymnasium.make (max_episode_steps included)."""
    num_envs: int = 256
    """Rollouts that run side by side; a slot whose episode ends takes the next one at once."""
    engine: EngineName = "auto"
    """What runs it: batch or mjdata_pool (native MuJoCo tasks on the CPU), warp (native MuJoCo tasks on
    `device`, in float32; needs mujoco-warp), gymnasium (any environment, one after the other in this process)
    or gymnasium_processes (any environment, shared out over `threads` processes). auto takes warp if `device`
    is a GPU, else another native engine, for a native task; and gymnasium for any other."""
    engine_kwargs: dict[str, Any] = field(default_factory=dict)
    """For warp: room for contacts and constraints per slot, for example {nconmax: 48, njmax: 128};
    {deterministic: true} makes simulations on a GPU repeatable to the last bit, but slower."""
    wrappers: list[str] = field(default_factory=list)
    """Wrappers around each environment, innermost first: a name in gymnasium.wrappers, or MODULE:CLASS."""

    def __post_init__(self) -> None:
        _require_positive("env.num_envs", self.num_envs)
        _require(
            not self.wrappers or self.engine not in ("batch", "mjdata_pool", "warp"),
            f"env.wrappers need a gymnasium engine, got env.engine {self.engine}",
        )
        for name in self.kwargs:
            _require(
                isinstance(name, str) and name not in _NOT_ENV_KWARGS,
                f"env.kwargs must not hold {name!r}: it is no keyword argument of an environment",
            )


@dataclass(frozen=True)
class PolicyConfig:
    """The network that maps an observation to an action."""

    kind: str = "mlp"
    """Architecture: mlp, linear, gru, lstm (recurrent), cnn (images), or a class of your own as MODULE:CLASS,
    which gets the two spaces and `kwargs`, and none of the other settings."""
    hidden_sizes: list[int] = field(default_factory=lambda: list(defaults.HIDDEN_SIZES))
    """Widths of the fully connected hidden layers: of an mlp, before the cell of gru and lstm, after the
    convolutions of cnn."""
    recurrent_size: int = defaults.RECURRENT_SIZE
    """Width of the recurrent cell of gru and lstm."""
    conv_layers: list[list[int]] = field(
        default_factory=lambda: [list(layer) for layer in defaults.CONV_LAYERS]
    )
    """Convolutions of cnn: channels, kernel, stride and padding of each."""
    activation: Activation = defaults.ACTIVATION
    """Nonlinearity after each hidden layer and each convolution."""
    init: Initialization = defaults.INITIALIZATION
    """Initial weights: orthogonal matrices, or normc (Gaussian rows scaled to norm 1). Biases are zero."""
    action_bounds: ActionBounds = defaults.ACTION_BOUNDS
    """How outputs become actions of a Box: rescale (tanh into its range) or clip (cut off at its bounds)."""
    normalize_observations: bool = defaults.NORMALIZE_OBSERVATIONS
    """Whether vector observations are standardized by the running mean and variance of all live steps."""
    observation_clip: float = OBSERVATION_CLIP
    """Bound on each standardized observation, in standard deviations."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the policy's class, for example {channel_order: first} for cnn."""

    def __post_init__(self) -> None:
        for width in self.hidden_sizes:
            _require_positive("policy.hidden_sizes", width)
        _require_positive("policy.recurrent_size", self.recurrent_size)
        for layer in self.conv_layers:
            _require(
                len(layer) == 4 and min(layer[:3]) > 0 and layer[3] >= 0,
                f"policy.conv_layers must hold [channels, kernel, stride, padding], got {layer}",
            )
        _require_positive("policy.observation_clip", self.observation_clip)


@dataclass(frozen=True)
class ScheduleConfig:
    """How a value moves from its start to `final_fraction` of it over the run's budget."""

    kind: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    """Shape of the decay; constant keeps the start value."""
    final_fraction: float = 0.1
    """Value at the end of the budget, as a fraction of the start value."""

    def __post_init__(self) -> None:
        _require_positive("schedule.final_fraction", self.final_fraction)

    def value(self, initial: float, progress: float) -> float:
        """Returns the value at `progress` in [0, 1] of the budget (clamped), from `initial` at 0."""
        progress = min(max(progress, 0.0), 1.0)
        final = initial * self.final_fraction
        if self.kind == "linear":
            return initial + (final - initial) * progress
        if self.kind == "cosine":
            return final + (initial - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        if self.kind == "exponential":
            return initial * math.pow(self.final_fraction, progress)
        return initial


@dataclass(frozen=True)
class ESConfig:
    """The evolution strategy: how members are drawn and how their fitness is weighed."""

    population_size: int = 256
    """Members evaluated in a generation, both halves of antithetic pairs counted."""
    sigma: float = 0.05
    """Standard deviation of the perturbation of every weight."""
    sigma_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How sigma changes over the run."""
    perturbation: Literal["flipout", "low_rank", "independent"] = "flipout"
    """Noise family: flipout (shared bases, signs a member), low_rank (a product of two thin matrices a
    member) or independent (dense noise a member; slow)."""
    base: Literal["rademacher", "gaussian"] = Flipout.base
    """Distribution of flipout's base matrices; gaussian is the paper's, rademacher has less variance."""
    num_bases: int = Flipout.num_bases
    """Number of flipout base matrices a weight; each serves population_size / num_bases members."""
    rank: int = LowRank.rank
    """Rank of a member's noise, for low_rank."""
    antithetic: bool = True
    """Antithetic (mirrored) sampling: members come in pairs with opposite perturbations."""
    fitness_shaping: FitnessShaping = FITNESS_SHAPING
    """How returns become utilities."""
    weight_decay: float = 0.0
    """L2 coefficient: the ascent direction is the gradient estimate less weight_decay times the weights."""

    def __post_init__(self) -> None:
        _require(self.population_size >= 2, f"es.population_size must be >= 2, got {self.population_size}")
        _require_positive("es.sigma", self.sigma)
        _require_positive("es.num_bases", self.num_bases)
        _require_positive("es.rank", self.rank)
        _require_not_negative("es.weight_decay", self.weight_decay)
        _require(
            not self.antithetic or self.population_size % 2 == 0,
            f"es.population_size must be even when es.antithetic is true, got {self.population_size}",
        )
        pair, why = ("2 x ", " (antithetic pairs share a base)") if self.antithetic else ("", "")
        unit = self.num_bases * (2 if self.antithetic else 1)
        _require(
            self.perturbation != "flipout" or self.population_size % unit == 0,
            f"es.population_size must be divisible by {pair}es.num_bases = {unit}{why}, "
            f"got {self.population_size}",
        )


@dataclass(frozen=True)
class EpisodeLimitConfig:
    """A limit on the length of training episodes that starts short and grows with what members reach."""

    initial: int | None = None
    """Env steps after which an episode is cut off at first; null for no limit but the environment's own."""
    threshold: float = 0.5
    """The limit grows after a generation in which at least this share of episodes reached it."""
    growth: float = 1.5
    """Factor by which it grows."""

    def __post_init__(self) -> None:
        _require_positive("rollout.episode_limit.initial", self.initial)
        _require(
            0 < self.threshold <= 1,
            f"rollout.episode_limit.threshold must be in (0, 1], got {self.threshold}",
        )
        _require(
            self.growth > 1 and math.isfinite(self.growth),
            f"rollout.episode_limit.growth must be > 1, got {self.growth}",
        )

    def next(self, limit: int | None, share_reached: float) -> int | None:
        """Returns the next generation's limit, given the share of episodes that reached this one's."""
        if limit is None or share_reached < self.threshold:
            return limit
        return max(limit + 1, int(limit * self.growth))


@dataclass(frozen=True)
class RolloutConfig:
    """The episodes that a member is judged by."""

    episodes: int = 1
    """Episodes a member; its fitness is their mean return."""
    reset_seeds: ResetSeeds = "fresh"
    """fresh: every member (or antithetic pair) starts from states of its own, new ones in each generation.
    common: all members of a generation start from the same states. fixed: those never change."""
    antithetic_pairs_share_seeds: bool = True
    """Whether, with fresh seeds, both members of an antithetic pair start from the same states."""
    min_env_steps: int = 0
    """Live env steps that a generation has at least: while it has fewer, another population_size members are
    drawn and evaluated, and all of them make one update."""
    episode_limit: EpisodeLimitConfig = field(default_factory=EpisodeLimitConfig)
    """An adaptive limit on the length of training episodes."""
    alive_bonus: float = 0.0
    """What the environment pays for each env step survived, to be taken out of the fitness: 1 for Hopper,
    Walker2d and Ant, 5 for Humanoid. Members then compete by what they do, not by how long they stand.
    Scores always include it."""

    def __post_init__(self) -> None:
        _require_positive("rollout.episodes", self.episodes)
        _require_not_negative("rollout.alive_bonus", self.alive_bonus)
        _require_not_negative("rollout.min_env_steps", self.min_env_steps)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer that follows the gradient estimate."""

    name: str = OPTIMIZER
    """Class name in torch.optim, for example Adam, AdamW or SGD; ClipUp; or MODULE:CLASS."""
    lr: float = LEARNING_RATE
    """Learning rate."""
    lr_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rate changes over the run."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the optimizer, for example {betas: [0.9, 0.99]} or {momentum: 0.9}."""

    def __post_init__(self) -> None:
        for name, reason in (("lr", "set optimizer.lr"), ("maximize", "fitness is always maximized")):
            _require(name not in self.kwargs, f"optimizer.kwargs must not hold {name}: {reason}")
        _require_positive("optimizer.lr", self.lr)


@dataclass(frozen=True)
class EvaluationConfig:
    """How the center (the unperturbed policy) is scored in the official Gymnasium environment."""

    interval: int = 10
    """Generations between two scores; the last generation is always scored. 0 turns scoring off."""
    episodes: int = 10
    """Episodes a score."""
    seed: int = 1_000_000
    """Reset seed of the first episode; episode i uses seed + i, the same at every score."""

    def __post_init__(self) -> None:
        _require_not_negative("evaluation.interval", self.interval)
        _require_positive("evaluation.episodes", self.episodes)
        _require_not_negative("evaluation.seed", self.seed)


@dataclass(frozen=True)
class LoggingConfig:
    """What is written, and how often."""

    tensorboard: bool = True
    """Whether TensorBoard events are written to the run directory."""
    histogram_interval: int = 10
    """Generations between two TensorBoard histograms of fitness and parameters. 0 turns them off."""
    checkpoint_interval: int = 1
    """Generations between two writes of checkpoints/last.pt."""
    keep_interval: int = 0
    """Generations between two checkpoints that are kept for good (generation_000100.pt). 0 keeps none."""
    signal_to_noise: bool = False
    """Whether the signal-to-noise ratio of every gradient estimate is estimated, for one more gradient."""

    def __post_init__(self) -> None:
        _require_not_negative("logging.histogram_interval", self.histogram_interval)
        _require_positive("logging.checkpoint_interval", self.checkpoint_interval)
        _require_not_negative("logging.keep_interval", self.keep_interval)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    env: EnvConfig = field(default_factory=EnvConfig)
    """The environment."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The policy network."""
    es: ESConfig = field(default_factory=ESConfig)
    """The evolution strategy."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """The episodes a member is judged by."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The official score."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Logging and checkpoints."""
    init_from: str | None = None
    """Warm start: a run directory (its last checkpoint) or a checkpoint file, whose policy and observation
    moments the run begins with; null for freshly initialized weights. Everything else starts from scratch."""
    seed: int = 0
    """Seed of every random stream of the run."""
    generations: int | None = None
    """Generations to train for; null for no limit."""
    max_env_steps: int | None = None
    """Live env steps to train for (the generation that reaches it is finished); null for no limit."""
    backend: Backend = "vectorized"
    """How a population is evaluated: vectorized (all members in one forward, rollouts in env.num_envs slots)
    or process_pool (CPU-parallel evolution strategies: `threads` processes, each with one official Gymnasium
    environment and one member at a time)."""
    device: str = "auto"
    """Torch device of the policy and the perturbations, and of the physics if env.engine is warp: cpu, cuda,
    or auto, which takes the GPU if the whole of a generation can run there, and else the CPU."""
    threads: int | None = None
    """Physics threads (processes, for process_pool and for env.engine gymnasium_processes); null takes every
    core. Results do not depend on it."""
    out: str | None = None
    """Run directory; null takes runs/ENV-seedSEED, with a number behind it if that is taken."""

    def __post_init__(self) -> None:
        _require_not_negative("seed", self.seed)
        _require_positive("generations", self.generations)
        _require_positive("max_env_steps", self.max_env_steps)
        _require_positive("threads", self.threads)
        if self.backend == "process_pool":
            _require(
                self.device in ("cpu", "auto"), f"backend process_pool runs on device cpu, got {self.device}"
            )
            _require(
                self.env.engine in ("auto", "gymnasium"),
                f"backend process_pool runs Gymnasium's environments: env.engine must be auto or gymnasium, "
                f"got {self.env.engine}",
            )
        scheduled = {self.es.sigma_schedule.kind, self.optimizer.lr_schedule.kind} != {"constant"}
        _require(
            self.has_budget or not scheduled, "a schedule needs a budget: set generations or max_env_steps"
        )

    @property
    def has_budget(self) -> bool:
        """Whether the run ends by itself."""
        return self.generations is not None or self.max_env_steps is not None

    def progress(self, generation: int, env_steps: int) -> float:
        """Returns the used share of the budget in [0, 1]; 0 for a run without a limit."""
        shares = [0.0]
        if self.generations is not None:
            shares.append(generation / self.generations)
        if self.max_env_steps is not None:
            shares.append(env_steps / self.max_env_steps)
        return min(max(shares), 1.0)
