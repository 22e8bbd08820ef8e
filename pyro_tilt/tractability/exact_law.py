# SPDX-License-Identifier: Apache-2.0
"""Draws of a tilt whose law is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_tilt.distributions import ExactTilt
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.sampler import Run, Sampler
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.rewards import Reward, evaluate

__all__ = ["KnownTilt"]


class KnownTilt(Sampler):
    r"""
    Independent draws of :math:`q \propto p\, e^{\beta r}` where q is a distribution of its own.

    Certificate: *exact* for closed forms and enumeration; *bounded* in total variation by the
    stated error of a quadrature.

    :param tilt: the law with its normaliser, as from
        :func:`~pyro_tilt.distributions.find_tilt`.
    :param reward: the reward, without beta.
    :param beta: what was folded into the tilt.
    :param program: the base as a program, for what a result does with it later.
    :param site: the name of the value in the result.
    :param target: what the certificate is about.
    :param options: see :class:`~pyro_tilt.infer.Sampler`.
    :raises ValueError: where the normaliser is known but not the law.

    >>> import pyro.distributions as dist
    >>> from pyro_tilt import rewards
    >>> from pyro_tilt.distributions import find_tilt
    >>> reward = rewards.Linear(torch.tensor(1.0))
    >>> base = dist.Normal(0.0, 1.0)
    >>> tilt = find_tilt(base, 2.0 * reward)
    >>> sampler = KnownTilt(tilt, reward, 2.0, lambda: base(), num_samples=4000, seed=0)
    >>> result = sampler.run()
    >>> result.certificate.law, round(result.expectation("x").item(), 1)
    ('exact', 2.0)
    """

    def __init__(
        self,
        tilt: ExactTilt,
        reward: Reward,
        beta: float,
        program: Callable[..., Any],
        *,
        site: str = "x",
        target: str = "joint tilt",
        **options: Any,
    ) -> None:
        if tilt.law is None:
            raise ValueError("KnownTilt needs the law, and of this tilt only Z is known")
        super().__init__(program, **options)
        self.tilt, self.reward, self.beta = tilt, reward, float(beta)
        self.site, self.target = site, target

    def _proposal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args or kwargs:
            raise TypeError("KnownTilt.run takes no arguments: the law has none")
        return _Law()

    def _sample(self, run: Run) -> WeightedSamples:
        assert self.tilt.law is not None
        n = self.num_samples
        with torch.no_grad():
            values = self.tilt.law.sample((n,))
            reward = evaluate(self.reward, values, shape=(n,))
        log_z = float(self.tilt.log_normalizer.detach())
        weights = reward.new_full((n,), log_z, dtype=torch.float64)
        return WeightedSamples(
            kind="iid",
            samples={self.site: values},
            log_weights=weights,
            log_normalizer=weights.new_tensor(log_z),
            log_normalizer_error=weights.new_tensor(0.0),
            certificate=self._certificate(),
            cost=run.cost(n),
            stats={"reward": reward},
            beta=self.beta,
            info={"kl": self.beta * float(reward.double().mean()) - log_z},
            sampler=type(self).__name__,
            program=self.program,
        )

    def _certificate(self) -> Certificate:
        if self.tilt.method != "quadrature":
            return Certificate(target=self.target, law="exact", covers=self.tilt.method)
        return Certificate(
            target=self.target,
            law="bounded",
            total_variation=min(1.0, self.tilt.error),
            confidence=1.0,
            covers="the error of the quadrature, as it was estimated",
        )


class _Law:
    """Stands where a sampler of a program keeps its proposal."""

    num_rewards = 1
    quadrature: dict[str, float] = {}
    minibatches: list[str] = []
