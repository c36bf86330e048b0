"""The sections of a configuration. Field docstrings are the command line's help.

Ranges are checked here. Whether a name exists (an environment, an optimizer) is checked where it is resolved.
Importing this does not import torch: the checks that need it do, when there is something to check.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from es_flipout.choices import (
    ACTION_BOUNDS,
    ACTIVATION,
    BASE,
    BLOCK_SIZE,
    CONV_LAYERS,
    ELITE_FRACTION,
    FITNESS_SHAPING,
    HIDDEN_SIZES,
    INITIALIZATION,
    LEARNING_RATE,
    MAX_SIGMA_CHANGE,
    NORMALIZE_OBSERVATIONS,
    NUM_BASES,
    OBSERVATION_CLIP,
    OPTIMIZER,
    RANK,
    RECURRENT_SIZE,
    ActionBounds,
    Activation,
    BaseDistribution,
    EngineName,
    FitnessShaping,
    Initialization,
    ResetSeeds,
    SigmaRule,
)
from es_flipout.run.checks import require, require_not_negative, require_positive
from es_flipout.run.reporters.names import JSONL, REPORTERS, TENSORBOARD, reporter_name
from es_flipout.run.schedules import EpisodeLimitConfig, ScheduleConfig

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
        "fused",
        "randomize",
        "wrappers",
        "reward_weights",
    }
)


@dataclass(frozen=True)
class EnvConfig:
    """The environment that episodes are played in."""

    id: str = "Humanoid-v5"
    """Gymnasium id of the task, for example Humanoid-v5, HalfCheetah-v5 or InvertedPendulum-v5."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment, as for gymnasium.make (including max_episode_steps)."""
    num_envs: int = 256
    """Number of envs stepped side by side; an env whose episode ends starts the next one at once."""
    engine: EngineName = "auto"
    """What runs the physics: batch or mjdata_pool (native MuJoCo tasks on the CPU), warp (native MuJoCo tasks
    on `device`, in float32; needs mujoco-warp), gymnasium (any environment, one after the other in this
    process) or gymnasium_processes (any environment, spread over `threads` processes). For a native task,
    auto picks warp if `device` is a GPU and another native engine if not; for any other task, gymnasium."""
    engine_kwargs: dict[str, Any] = field(default_factory=dict)
    """For warp: capacity for contacts and constraints per env, for example {nconmax: 48, njmax: 128};
    {deterministic: true} sorts contacts and constraints and sums in a fixed order, so that a GPU repeats a
    generation to the last bit (seen on an NVIDIA H200), which is slower."""
    fused: Literal["auto", False] = "auto"
    """Whether what lies between two steps of a native task's physics on the CPU is compiled: its hooks, and
    MLP and linear policies of up to 32,768 weights. auto: if they can be; false: never. Both give the same
    results up to rounding, each to the last bit."""
    randomize: bool = True
    """Whether members play randomized episodes, if the task has a randomization of its own (models, pushes,
    noise). The score is nominal; the score of randomized episodes is given beside it."""
    wrappers: list[str | dict[str, Any]] = field(default_factory=list)
    """Wrappers around each environment, innermost first: a name in gymnasium.wrappers, MODULE:CLASS, or a
    name with keyword arguments, for example {name: FrameStackObservation, stack_size: 4}."""
    reward_weights: list[float] = field(default_factory=list)
    """For an environment whose reward is a vector: the weights of its parts, whose sum it becomes."""

    def __post_init__(self) -> None:
        require_positive("env.num_envs", self.num_envs)
        require(
            not self.wrappers or self.engine not in ("batch", "mjdata_pool", "warp"),
            f"env.wrappers need a gymnasium engine, got env.engine {self.engine}",
        )
        if self.wrappers:
            from es_flipout.envs.wrappers import wrapper_name

            for wrapper in self.wrappers:
                try:
                    wrapper_name(wrapper)
                except ValueError as error:
                    raise ValueError(f"env.wrappers: {error}") from error
        if self.reward_weights:
            from es_flipout.envs.weighted_reward import check_weights

            check_weights(self.reward_weights)
        require(
            self.kwargs.get("render_mode") != "human",
            "env.kwargs.render_mode must not be human, which opens windows; rgb_array draws images",
        )
        for name in self.kwargs:
            require(
                isinstance(name, str) and name not in _NOT_ENV_KWARGS,
                f"env.kwargs must not contain {name!r}: it is not a keyword argument of an environment",
            )


@dataclass(frozen=True)
class PolicyConfig:
    """The network that maps an observation to an action."""

    kind: str = "mlp"
    """Architecture: mlp, linear, gru, lstm (recurrent), cnn (images), or a class of your own as MODULE:CLASS,
    which is called with the two spaces and `kwargs`; the other settings do not apply to it."""
    hidden_sizes: list[int] = field(default_factory=lambda: list(HIDDEN_SIZES))
    """Widths of the fully connected hidden layers: those of an mlp, those before the cell of gru or lstm,
    or those after the convolutions of cnn."""
    recurrent_size: int = RECURRENT_SIZE
    """Width of the recurrent cell of gru and lstm."""
    conv_layers: list[list[int]] = field(default_factory=lambda: [list(layer) for layer in CONV_LAYERS])
    """Convolutions of cnn: channels, kernel, stride and padding of each."""
    activation: Activation = ACTIVATION
    """Nonlinearity after each hidden layer and each convolution."""
    init: Initialization = INITIALIZATION
    """Initial weights: orthogonal matrices, or normc (Gaussian rows scaled to norm 1). Biases start at 0."""
    action_bounds: ActionBounds = ACTION_BOUNDS
    """How outputs become Box actions: rescale (tanh, scaled to the range) or clip (cut off at the bounds)."""
    observation_stack: int = 1
    """Number of the last observations that the policy acts on, oldest first: vectors joined to one, images
    along their channels. At the start of an episode the first observation is repeated."""
    normalize_observations: bool = NORMALIZE_OBSERVATIONS
    """Whether to standardize vector observations by the running mean and variance of all live steps."""
    observation_clip: float = OBSERVATION_CLIP
    """Bound on each standardized observation, in standard deviations."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the policy's class, for example {channel_order: first} for cnn."""

    def __post_init__(self) -> None:
        for width in self.hidden_sizes:
            require_positive("policy.hidden_sizes", width)
        require_positive("policy.recurrent_size", self.recurrent_size)
        for layer in self.conv_layers:
            require(
                len(layer) == 4 and min(layer[:3]) > 0 and layer[3] >= 0,
                f"policy.conv_layers must hold [channels, kernel, stride, padding], got {layer}",
            )
        require_positive("policy.observation_clip", self.observation_clip)
        require_positive("policy.observation_stack", self.observation_stack)


@dataclass(frozen=True)
class SigmaAdaptationConfig:
    """A standard deviation for each weight, which starts at `es.sigma`."""

    rule: SigmaRule | None = None
    """pgpe or snes (separable natural evolution strategies, with es.fitness_shaping nes); null for the same
    sigma for all weights. Flipout needs es.base gaussian and several bases."""
    lr: float | None = None
    """Learning rate; null for 0.1 with pgpe and (3 + ln d) / (5 sqrt d), for d weights, with snes."""
    max_change: float = MAX_SIGMA_CHANGE
    """Bound on the relative change of a weight's sigma per generation, between 0 and 1."""

    def __post_init__(self) -> None:
        require_positive("es.sigma_adaptation.lr", self.lr)
        require(
            self.rule is not None or self.lr is None,
            "es.sigma_adaptation.lr needs es.sigma_adaptation.rule, pgpe or snes",
        )
        require(
            0 < self.max_change < 1,
            f"es.sigma_adaptation.max_change must be between 0 and 1, got {self.max_change}",
        )


@dataclass(frozen=True)
class ESConfig:
    """The evolution strategy: how members are drawn and how their fitness is weighted."""

    population_size: int = 256
    """Members per generation, counting both halves of antithetic pairs."""
    sigma: float = 0.05
    """Standard deviation of the perturbation of every weight."""
    sigma_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How sigma changes over the run."""
    sigma_adaptation: SigmaAdaptationConfig = field(default_factory=SigmaAdaptationConfig)
    """How the standard deviation of each weight's perturbation follows the fitness."""
    perturbation: Literal["flipout", "low_rank", "independent"] = "flipout"
    """Noise family: flipout (shared bases, signs per member), low_rank (a product of two thin matrices per
    member) or independent (dense noise per member; slow)."""
    base: BaseDistribution = BASE
    """Distribution of flipout's base matrices; gaussian is the paper's, rademacher has less variance."""
    num_bases: int = NUM_BASES
    """Number of flipout base matrices per weight; each serves population_size / num_bases members."""
    rank: int = RANK
    """Rank of a member's noise, for low_rank."""
    antithetic: bool = True
    """Antithetic (mirrored) sampling: members come in pairs with opposite perturbations."""
    fitness_shaping: FitnessShaping = FITNESS_SHAPING
    """How fitness becomes utilities."""
    elite_fraction: float = ELITE_FRACTION
    """Share of the antithetic pairs (of the members, if es.antithetic is false) that an update is made of:
    those with the best members, as in ARS. Only their fitness is shaped; 1 takes all."""
    weight_decay: float = 0.0
    """L2 coefficient: the ascent direction is the gradient estimate minus weight_decay times the weights."""

    def __post_init__(self) -> None:
        require(self.population_size >= 2, f"es.population_size must be >= 2, got {self.population_size}")
        require_positive("es.sigma", self.sigma)
        require_positive("es.num_bases", self.num_bases)
        require_positive("es.rank", self.rank)
        require(
            0 < self.elite_fraction <= 1, f"es.elite_fraction must be in (0, 1], got {self.elite_fraction}"
        )
        require_not_negative("es.weight_decay", self.weight_decay)
        require(
            not self.antithetic or self.population_size % 2 == 0,
            f"es.population_size must be even when es.antithetic is true, got {self.population_size}",
        )
        pair, why = ("2 x ", " (antithetic pairs share a base)") if self.antithetic else ("", "")
        unit = self.num_bases * (2 if self.antithetic else 1)
        require(
            self.perturbation != "flipout" or self.population_size % unit == 0,
            f"es.population_size must be divisible by {pair}es.num_bases = {unit}{why}, "
            f"got {self.population_size}",
        )
        if self.sigma_adaptation.rule is not None:
            self._check_adaptation()

    def _check_adaptation(self) -> None:
        require(
            self.perturbation != "low_rank",
            "es.sigma_adaptation needs es.perturbation flipout or independent: low-rank noise cannot have a "
            "sigma for each weight",
        )
        require(
            self.perturbation != "flipout" or (self.base == "gaussian" and self.num_bases > 1),
            "es.sigma_adaptation needs es.base gaussian and es.num_bases >= 2 with flipout, because members "
            f"that share a base differ by signs only, got {self.base} and {self.num_bases}",
        )
        require(
            self.sigma_adaptation.rule != "snes" or self.fitness_shaping == "nes",
            f"es.sigma_adaptation.rule snes needs es.fitness_shaping nes, got {self.fitness_shaping}",
        )


@dataclass(frozen=True)
class RolloutConfig:
    """The episodes that decide a member's fitness."""

    episodes: int = 1
    """Episodes per member; its fitness is their mean return."""
    reset_seeds: ResetSeeds = "fresh"
    """fresh: every member (or antithetic pair) starts from states of its own, new ones in each generation.
    common: all members of a generation start from the same states. fixed: those never change."""
    antithetic_pairs_share_seeds: bool = True
    """Whether, with fresh seeds, both members of an antithetic pair start from the same states."""
    min_env_steps: int = 0
    """Minimum number of live env steps per generation. While a generation has fewer, another population_size
    members are drawn and played; all of them contribute to one update."""
    episode_limit: EpisodeLimitConfig = field(default_factory=EpisodeLimitConfig)
    """An adaptive limit on the length of training episodes."""
    block_size: int = BLOCK_SIZE
    """Episodes per block: what a rank takes at a time, and of which the moments of observations are merged
    first. The last bits of a run depend on it, and on nothing else of how the work is distributed."""
    action_noise: float = 0.0
    """Standard deviation of Gaussian noise on every action of members (a Box of floats), in units of the
    action; what comes of it is clipped to the action space. Scores have none."""
    alive_bonus: float = 0.0
    """Reward per env step survived, to be subtracted from the fitness: 1 for Hopper, Walker2d and Ant, 5 for
    Humanoid. Members then compete by what they do, not by how long they stand. Scores always include it."""
    final_alive_bonus: float | None = None
    """Value that alive_bonus changes to, linearly over the run's budget; null keeps it constant. From 0 to 5
    rewards standing at first and moving later; from 0.5 to 0 makes falls cost more and more."""

    def __post_init__(self) -> None:
        require_positive("rollout.episodes", self.episodes)
        require_positive("rollout.block_size", self.block_size)
        require_not_negative("rollout.action_noise", self.action_noise)
        require_not_negative("rollout.alive_bonus", self.alive_bonus)
        require_not_negative("rollout.final_alive_bonus", self.final_alive_bonus)
        require_not_negative("rollout.min_env_steps", self.min_env_steps)

    def alive_bonus_at(self, progress: float) -> float:
        """Returns the alive bonus at `progress` in [0, 1] of the budget."""
        if self.final_alive_bonus is None:
            return self.alive_bonus
        return self.alive_bonus + (self.final_alive_bonus - self.alive_bonus) * progress


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
            require(name not in self.kwargs, f"optimizer.kwargs must not contain {name}: {reason}")
        require_positive("optimizer.lr", self.lr)


@dataclass(frozen=True)
class EvaluationConfig:
    """How the center (the unperturbed policy) is scored."""

    interval: int = 10
    """Generations between scores; the last generation is always scored. 0 turns scoring off."""
    episodes: int = 10
    """Episodes per score."""
    seed: int = 1_000_000
    """Reset seed of the first episode; episode i uses seed + i, the same in every score."""
    info: list[str] = field(default_factory=list)
    """Further metrics of a score, from the info of its episodes: NAME is the value of that entry in the last
    step of an episode, mean:NAME its mean over the steps, max:NAME its maximum, for example is_success or
    mean:x_velocity. The metric is the mean over the episodes that have it."""
    official: bool = False
    """Whether every score is measured in gymnasium.make(env.id). The last score of a run always is. Earlier
    ones of native tasks whose envs equal it to the last bit are measured in these, which is faster."""

    def __post_init__(self) -> None:
        require_not_negative("evaluation.interval", self.interval)
        require_positive("evaluation.episodes", self.episodes)
        require_not_negative("evaluation.seed", self.seed)
        if self.info:
            from es_flipout.rollout.score_info import parse_all

            try:
                parse_all(self.info)
            except ValueError as error:
                raise ValueError(f"evaluation.info: {error}") from error


@dataclass(frozen=True)
class LoggingConfig:
    """What is written, and how often."""

    reporters: list[str | dict[str, Any]] = field(default_factory=lambda: [JSONL, TENSORBOARD])
    """Where metrics go: jsonl (metrics.jsonl, the run's own record, which es-report reads), tensorboard
    (events in the run directory), mlflow, wandb, a class of your own as MODULE:CLASS, or a name with keyword
    arguments, for example {name: mlflow, tracking_uri: 'http://localhost:5000'}."""
    histogram_interval: int = 10
    """Generations between histograms of fitness, parameters and, if it adapts, sigma. 0 turns them off."""
    checkpoint_interval: int = 1
    """Generations between writes of checkpoints/last.pt."""
    keep_interval: int = 0
    """Generations between checkpoints that are kept permanently (generation_000100.pt). 0 keeps none."""
    signal_to_noise: bool = False
    """Whether to estimate the signal-to-noise ratio of each gradient estimate, which costs a second one."""

    def __post_init__(self) -> None:
        names = [reporter_name(each) for each in self.reporters]
        for name in REPORTERS:
            require(names.count(name) < 2, f"logging.reporters names {name} more than once")
        require_not_negative("logging.histogram_interval", self.histogram_interval)
        require_positive("logging.checkpoint_interval", self.checkpoint_interval)
        require_not_negative("logging.keep_interval", self.keep_interval)
