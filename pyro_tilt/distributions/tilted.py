# SPDX-License-Identifier: Apache-2.0
"""The conditional tilt: a distribution reweighted by the exponential of a reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import (
    TorchDistribution,
    TorchDistributionMixin,
)
from torch import Tensor
from torch.distributions import constraints

from pyro_tilt.distributions.arguments import (
    check_base,
    check_event_dim,
    checked_beta,
    checked_normalizer,
    joint_batch_shape,
)
from pyro_tilt.distributions.inspection import blank
from pyro_tilt.distributions.pooled import Baseline, TiltSampler, find_baseline
from pyro_tilt.distributions.registry import ExactTilt, find_tilt
from pyro_tilt.distributions.tractability import Tractability
from pyro_tilt.rewards import Reward, as_reward, evaluate, log_tilt

Normalizer = Tensor | float | str | Callable[[Any], Tensor] | None


class Tilted(TorchDistribution):
    r"""
    The conditional tilt of a base law by a reward.

    .. math::

        q(x) = p(x)\, e^{\beta r(x)} / Z, \qquad Z = \mathbb{E}_p\, e^{\beta r}

    ``log_prob`` is normalised. The exact law is found by the types of base and reward
    (:func:`~pyro_tilt.distributions.register_tilt`), by enumeration or by quadrature; without one,
    draws come from pooled rejection and :attr:`tractability` says which. Here beta multiplies the
    reward; where beta is the coefficient of a KL penalty it is the inverse of this one. The
    tilt is worked out at first use and kept, so parameters must not be changed in place after it.

    :param base: the base law, of any batch and event shape.
    :param reward: a :class:`~pyro_tilt.rewards.Reward` or a callable that maps a value to a tensor
        of its batch shape.
    :param beta: what multiplies the reward, a number or a tensor that broadcasts to the batch
        shape. Zero gives the base law.
    :param log_normalizer: :math:`\log Z` where it is not found: a tensor that broadcasts to the
        batch shape, a callable of the base that returns one, or ``"constant"``, the user's word
        that Z does not vary, so that ``log_prob`` may leave it out.
    :param validate_args: as for every distribution.
    :raises ValueError: if shapes disagree, beta is not finite, the base is masked, or (at first
        use) the tilt does not exist.
    :raises TypeError: if an argument is of the wrong type.

    >>> import torch
    >>> import pyro.distributions as dist
    >>> from pyro_tilt import rewards
    >>> tilted = Tilted(dist.Normal(0.0, 1.0), rewards.Linear(torch.tensor(1.5)), beta=2.0)
    >>> tilted.mean, tilted.log_normalizer
    (tensor(3.), tensor(4.5000))
    >>> tilted.tractability.sampling
    'exact'
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(
        self,
        base: TorchDistributionMixin,
        reward: Reward | Callable[[Tensor], Tensor],
        beta: float | Tensor = 1.0,
        *,
        log_normalizer: Normalizer = None,
        validate_args: bool | None = None,
    ) -> None:
        check_base(base)
        self.reward = as_reward(reward)
        check_event_dim(base, self.reward)
        self.beta = checked_beta(beta)
        self._given = checked_normalizer(log_normalizer)
        batch_shape = joint_batch_shape(base, self.reward, self.beta, self._given)
        self.base = base if base.batch_shape == batch_shape else base.expand(batch_shape)
        self._untilted = base
        self._source: Tilted | None = None
        self._clear()
        super().__init__(batch_shape, base.event_shape, validate_args=validate_args)

    def _clear(self) -> None:
        self._searched = False
        self._exact: ExactTilt | None = None
        self._given_value: Tensor | None = None
        self._learned: Baseline | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What was worked out may hold an autograd graph, which does not pickle.
        state = dict(vars(self))
        state.update(_searched=False, _exact=None, _given_value=None, _learned=None)
        return state

    def expand(self, batch_shape: Any, _instance: Any = None) -> Tilted:
        new = self._get_checked_instance(Tilted, _instance)
        batch_shape = torch.Size(batch_shape)
        new.base = self.base.expand(batch_shape)
        new._untilted = self._untilted
        new.reward, new.beta, new._given = self.reward, self.beta, self._given
        new._source = self._source or self
        new._clear()
        super(Tilted, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.base.support

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return self.base.has_enumerate_support

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.base.enumerate_support(expand=expand)

    @property
    def scaled_reward(self) -> Reward:
        """The reward with beta folded in."""
        if isinstance(self.beta, float) and self.beta == 1.0:
            return self.reward
        return self.reward * self.beta

    @property
    def is_base(self) -> bool:
        """Whether beta is zero everywhere, so that the law is that of the base."""
        return not bool(self.beta.any()) if isinstance(self.beta, Tensor) else self.beta == 0

    def exact_tilt(self) -> ExactTilt | None:
        """What the registry knows of this tilt, looked up once; None where it knows nothing."""
        if not self._searched:
            # Without a graph kept here, a first use under no_grad would cut later gradients.
            with torch.enable_grad():
                self._exact = self._search()
            self._searched = True
        return self._exact

    def _search(self) -> ExactTilt | None:
        if self._source is not None:
            found = self._source.exact_tilt()
            if found is None:
                return None
            law = None if found.law is None else found.law.expand(self.batch_shape)
            log_z = found.log_normalizer.expand(self.batch_shape)
            return ExactTilt(law, log_z, found.method, found.error)
        constant = not (isinstance(self.beta, Tensor) and self.beta.requires_grad)
        if constant and self.is_base:
            return ExactTilt(self.base, blank(self.base, self.batch_shape), "closed form")
        return find_tilt(self.base, self.scaled_reward)

    @property
    def law(self) -> TorchDistributionMixin | None:
        """The tilted law as a distribution of a family of its own, None where there is none."""
        found = self.exact_tilt()
        return None if found is None else found.law

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """
        Draws of the tilted law.

        :param sample_shape: shape of independent draws.
        :raises RuntimeError: if rejection exhausts its proposals; the acceptance rate is named.
        """
        sample_shape = torch.Size(sample_shape)
        with torch.no_grad():
            if self.is_base:
                return self.base.sample(sample_shape)
            law = self.law
            return self._sampler().sample(sample_shape) if law is None else law.sample(sample_shape)

    def _sampler(self) -> TiltSampler:
        if self._learned is None:
            if self._source is None:
                self._learned = find_baseline(*self._proposal)
            else:
                self._learned = self._source._sampler().baseline.expand(self.batch_shape)
        return TiltSampler(*self._proposal, self._learned)

    @property
    def _proposal(self) -> tuple[Any, Reward, float | Tensor]:
        """What to draw from, and what tilts it: inner tilts without a law join the reward."""
        if not isinstance(self.base, Tilted) or self.base.law is not None:
            return self.base, self.reward, self.beta
        base, inner, beta = self.base._proposal
        return base, inner * beta + self.scaled_reward, 1.0

    def log_prob(self, value: Tensor) -> Tensor:
        """
        The normalised log density.

        :param value: of shape sample + batch + event.
        :raises NotImplementedError: where Z is unknown.
        """
        if self._given is None:
            found = self._known("log_prob")
            if found.law is not None and found.method == "closed form":
                return found.law.log_prob(value)
        score = self.unnormalized_log_prob(value)
        return score if self._is_constant else score - self.log_normalizer

    def unnormalized_log_prob(self, value: Tensor) -> Tensor:
        """
        The log density without its normaliser, :math:`\\log p(x) + \\beta r(x)`.

        :param value: of shape sample + batch + event.
        """
        base = self.base.log_prob(value)
        values = evaluate(
            self.reward, value.expand(base.shape + self.event_shape), shape=base.shape
        )
        return base + log_tilt(values, self.beta)

    @property
    def log_normalizer(self) -> Tensor:
        r"""
        :math:`\log Z`, of the batch shape.

        :raises NotImplementedError: where it is unknown, or only said to be constant.
        """
        if self._given is None:
            return self._known("log_normalizer").log_normalizer
        if self._is_constant:
            raise NotImplementedError(
                'Tilted.log_normalizer: log_normalizer="constant" says that Z does not vary, '
                "not what it is"
            )
        if self._given_value is None:
            self._given_value = self._read_given()
        return self._given_value.expand(self.batch_shape)

    @property
    def _is_constant(self) -> bool:
        return isinstance(self._given, str)

    def _read_given(self) -> Tensor:
        if self._source is not None:
            return self._source.log_normalizer
        with torch.enable_grad():
            value = self._given(self.base) if callable(self._given) else self._given
        if not isinstance(value, Tensor):
            value = blank(self.base, torch.Size()) + value
        try:
            return value.expand(self.batch_shape)
        except RuntimeError as error:
            raise ValueError(
                f"log_normalizer must broadcast to the batch shape {tuple(self.batch_shape)}, "
                f"got shape {tuple(value.shape)}"
            ) from error

    @property
    def log_normalizer_error(self) -> float:
        """A bound on the error of :attr:`log_normalizer`, zero for one that was given."""
        return self._known("log_normalizer_error").error if self._given is None else 0.0

    def _known(self, what: str) -> ExactTilt:
        found = self.exact_tilt()
        if found is None:
            raise NotImplementedError(
                f"Tilted.{what}: log Z of {type(self.base).__name__} tilted by {self.reward!r} is "
                "not known. Ways out: log_normalizer= (a tensor, or a callable of the base), or "
                'log_normalizer="constant" where Z does not vary; poutine.joint_tilt or align, '
                "whose joint tilt needs no Z; an enumerable or a scalar base. "
                "unnormalized_log_prob is the score without Z"
            )
        return found

    def _of_law(self, what: str, *args: Tensor) -> Tensor:
        law = self.law
        if law is None:
            raise NotImplementedError(f"Tilted.{what}: this tilted law has no family of its own")
        try:
            found = getattr(law, what)
            return found(*args) if callable(found) else found
        except NotImplementedError as error:
            raise NotImplementedError(f"Tilted.{what}: {type(law).__name__} has none") from error

    @property
    def mean(self) -> Tensor:
        """The mean, where the law is known exactly."""
        return self._of_law("mean")

    @property
    def variance(self) -> Tensor:
        """The variance, where the law is known exactly."""
        return self._of_law("variance")

    def entropy(self) -> Tensor:
        return self._of_law("entropy")

    def cdf(self, value: Tensor) -> Tensor:
        return self._of_law("cdf", value)

    def icdf(self, value: Tensor) -> Tensor:
        return self._of_law("icdf", value)

    @property
    def tractability(self) -> Tractability:
        """How this law is sampled and normalised, and why."""
        found = self.exact_tilt()
        if self._given is not None:
            normalizer = "constant" if self._is_constant else "given"
        else:
            normalizer = "unknown" if found is None else found.method
        pair = f"{type(self.base).__name__} tilted by {type(self.reward).__name__}"
        if self.is_base:
            return Tractability("exact", normalizer, 0.0, "beta is zero: this is the base law")
        if found is not None and found.law is not None:
            sampling = "quadrature" if found.method == "quadrature" else "exact"
            return Tractability(sampling, normalizer, found.error, f"{pair}: {found.method}")
        sampling, why = TiltSampler.describe(*self._proposal)
        known = None if found is None else found.error
        return Tractability(sampling, normalizer, known, f"no exact law of {pair}; {why}")

    def __repr__(self) -> str:
        given = "" if self._given is None else f", log_normalizer={self._given!r}"
        return f"Tilted({self.base!r}, {self.reward!r}, beta={self.beta!r}{given})"
