"""A module whose weights are random: each example of a mini-batch has its own.

    y_n = module(x_n; W + Δ_n)

The module sees one example at a time, as a batch of one, and torch.vmap runs all of them in one call; where
it uses a perturbed weight, the rule of the operation adds the noise (`es_flipout.perturbations`). One call of
the module is one draw: each example keeps its weights at all time steps, positions and uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from typing_extensions import override

from es_flipout.parameters import padding_entries
from es_flipout.perturbations import PerturbedParameter
from es_flipout.perturbations.each_row import each_row
from es_flipout.perturbations.torch_modes import eagerly
from es_flipout.seeding import torch_generator
from es_flipout.stochastic.batch_dims import Batch, without_batch
from es_flipout.stochastic.batch_norm import whole_batch_norm
from es_flipout.stochastic.distributions import WeightDistribution
from es_flipout.stochastic.estimators import Estimator, check_estimator, draw_noise, draw_shared
from es_flipout.stochastic.replaced_weights import call_with
from es_flipout.stochastic.state_keys import check_names, from_module_keys, rho_key, to_module_keys


class PerturbedModule(nn.Module):
    """A module with random weights; made by `perturbed`.

    In training mode, each call draws weights for each example. In evaluation mode, the weights are their
    means. Inside `frozen`, each call has the same draw, in both modes. Noise comes from torch's default
    generator of the parameter's device (`torch.manual_seed`).

    Its state dict has the keys of the module's, and `NAME_rho` for each parameter with a rho.

    Attributes:
        module: the module itself, not a copy.
        distribution: of the weights.
        estimator: how examples get their weights.
        num_bases: noise tensors per weight of estimator "flipout".
        names: names of the perturbed parameters; a shared one has its first name only.
        rho: parameters of the distribution, by `NAME_rho` with / for each dot.
    """

    def __init__(
        self,
        module: nn.Module,
        distribution: WeightDistribution,
        names: Sequence[str],
        estimator: Estimator,
        num_bases: int,
        in_dims: Any,
        out_dims: Any,
    ) -> None:
        super().__init__()
        check_estimator(estimator, distribution, num_bases)
        check_names(module, names)
        self.module = module
        self.distribution = distribution
        self.estimator = estimator
        self.num_bases = num_bases
        self.names = list(names)
        self.rho = nn.ParameterDict()
        for name in names:
            rho = distribution.initial_rho(module.get_parameter(name).detach())
            if rho is not None:
                self.rho[rho_key(name)] = nn.Parameter(rho)
        self._in_dims, self._out_dims = in_dims, out_dims
        self._padding_entries = padding_entries(module)
        self._seed: int | None = None
        self.training = module.training  # parts may be in other modes
        self.register_state_dict_post_hook(to_module_keys)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(from_module_keys)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seed": None}  # a copy is not frozen

    @override
    def extra_repr(self) -> str:
        bases = f", num_bases={self.num_bases}" if self.num_bases > 1 else ""
        return f"{self.distribution}, estimator={self.estimator!r}{bases}, names={self.names}"

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module: the arguments and outputs of its forward, with a batch dimension.

        Raises:
            ValueError: if the inputs do not have batches of one size.
            UnsupportedOperationError: if a perturbed parameter is used in an operation that has no rule.
        """
        if self.training or self._seed is not None:
            return eagerly(self._run, args, kwargs)
        means = {name: self.distribution.mean(self._parameter(name)) for name in self.names}
        if all(mean is self._parameter(name) for name, mean in means.items()):
            return self.module(*args, **kwargs)
        return call_with(self.module, means, args, kwargs)

    @contextmanager
    def frozen(self, seed: int | None = None) -> Iterator[None]:
        """Makes all calls inside use one draw, in training and in evaluation mode, and in all threads.

        A draw is a function of the seed, the parameter's name and the number of examples: example n has the
        same weights in each batch of the same size. What "flipout" and "shared" use for all examples does not
        depend on their number.

        Args:
            seed: of the draw, >= 0; None takes one from torch's default generator.
        """
        before = self._seed
        self._seed = int(torch.randint(2**62, ())) if seed is None else _checked_seed(seed)
        try:
            yield
        finally:
            self._seed = before

    def kl(self, prior: float | Normal = 1.0) -> Tensor:
        """Returns the Kullback-Leibler divergence of the learned weights from a prior, summed over weights.

        KL(N(mu, sigma²) || N(m, s²)) = log(s / sigma) + (sigma² + (mu - m)²) / (2 s²) - 1/2. For the evidence
        lower bound, divide it by the size of the data set where the loss is a mean over examples.

        Args:
            prior: standard deviation of a Gaussian about 0, or a torch.distributions.Normal.

        Returns:
            A scalar.

        Raises:
            TypeError: if the distribution is not learned.
            ValueError: if the prior is neither a positive number nor a Normal.
        """
        if not self.rho:
            raise TypeError(f"kl is for LearnedGaussian, whose std is learned: got {self.distribution}")
        # Not by torch.distributions: it checks values, which a CUDA graph cannot.
        if not isinstance(prior, Normal) and not (isinstance(prior, float | int) and prior > 0):
            raise ValueError(f"prior must be a positive standard deviation or a Normal, got {prior!r}")
        m, s = (prior.mean, prior.stddev) if isinstance(prior, Normal) else (0.0, prior)
        total: Tensor | None = None
        for name in self.names:
            mu = self._parameter(name)
            sigma = self.distribution.scale(mu, self._rho_of(name))
            terms = (s / sigma).log() + (sigma.square() + (mu - m).square()) / (2 * s**2) - 0.5
            total = terms.sum() if total is None else total.to(mu) + terms.sum()
        assert total is not None
        return total

    def weights(self, num_examples: int, seed: int) -> dict[str, Tensor]:
        """Returns each example's weights inside `frozen(seed)`, [N, *shape] by parameter name.

        Gradients flow through them to the parameters.

        Args:
            num_examples: N.
            seed: of the draw.

        Raises:
            ValueError: if the estimator is "local", which draws no weights.
        """
        if self.estimator == "local":
            raise ValueError("estimator 'local' draws outputs of layers, not weights")
        if self.estimator == "shared":
            drawn = self._draw_shared(_checked_seed(seed))
            return {name: value.expand(num_examples, *value.shape) for name, value in drawn.items()}
        drawn_rows = self._draw_rows(num_examples, _checked_seed(seed))
        return {name: parameter.rows() for name, parameter in drawn_rows.items()}

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the module with a draw of its weights."""
        if self.estimator == "shared":
            return call_with(self.module, self._draw_shared(self._seed), args, kwargs)
        batch = Batch.of(args, kwargs, self._in_dims)
        parameters = self._draw_rows(batch.size, self._seed)

        def run_one(*tensors: Tensor) -> Any:
            one_args, one_kwargs = batch.arguments(tensors)
            with whole_batch_norm(batch.size):
                return call_with(self.module, parameters, one_args, one_kwargs)

        values = parameters.values()
        try:
            outputs = each_row(run_one, batch.tensors, batch.dims, values, batch.size, as_batches=True)
        except RuntimeError as error:
            error.add_note("torch.vmap runs the examples as batches of one; estimator='shared' does without")
            raise
        return without_batch(outputs, self._out_dims)

    def _draw_shared(self, seed: int | None) -> dict[str, Tensor]:
        return {
            name: self.distribution.mean(self._parameter(name))
            + draw_shared(self.distribution, scale, _generator(name, scale.device, seed))
            for name, scale in self._scales().items()
        }

    def _draw_rows(self, num_examples: int, seed: int | None) -> dict[str, PerturbedParameter]:
        drawn = {}
        for name, scale in self._scales().items():
            mean = self.distribution.mean(self._parameter(name))
            parameter = drawn[name] = PerturbedParameter.of(name, mean)
            generator = _generator(name, scale.device, seed)
            parameter.noise = draw_noise(
                self.estimator, self.distribution, name, scale, num_examples, self.num_bases, generator
            )
        return drawn

    def _scales(self) -> dict[str, Tensor]:
        """Returns the scale of each parameter's noise; an embedding's padding entry has none."""
        scales = {}
        for name in self.names:
            scales[name] = self.distribution.scale(self._parameter(name), self._rho_of(name))
        for name, entry in self._padding_entries.items():
            if name in scales:
                rows = torch.arange(len(scales[name]), device=scales[name].device)
                scales[name] = scales[name] * (rows != entry).unsqueeze(1)
        return scales

    def _parameter(self, name: str) -> Tensor:
        """Returns a parameter of the module, or what `torch.func.functional_call` has put in its place."""
        found: Tensor = attrgetter(name)(self.module)
        return found

    def _rho_of(self, name: str) -> Tensor | None:
        return self.rho[rho_key(name)] if self.rho else None


def _checked_seed(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    return seed


def _generator(name: str, device: torch.device, seed: int | None) -> torch.Generator:
    """Returns a generator on a device: of a frozen draw of a parameter, or torch's own."""
    if seed is not None:
        return torch_generator(seed, 0, name, device=device)
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda":  # the one that a CUDA graph knows
        return torch.cuda.default_generators[device.index]
    return torch_generator(int(torch.randint(2**62, ())), 0, name, device=device)
