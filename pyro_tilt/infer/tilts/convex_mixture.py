# SPDX-License-Identifier: Apache-2.0
"""Mixtures of linear tilts, and rejection from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_tilt.infer.seeding import derive_seed
from pyro_tilt.infer.tilts.convex_family import TiltFamily
from pyro_tilt.infer.tilts.diffusion_tilt import TiltDraws
from pyro_tilt.infer.tilts.linear_draws import block_rows
from pyro_tilt.ops.importance import log_evidence
from pyro_tilt.ops.pool import acceptance_generator, pooled_rejection

__all__ = ["MixtureOutcome", "TiltMixture", "mixture_error"]

# Rounding in the log acceptance of a draw at which the envelope is attained.
_SLACK = 1e-6
_FLOAT32_SLACK = 1e-3
_CHOICE, _ACCEPT = 1, 2
# Errors are carried at this many standard deviations, over all normalisers at once.
_MISS = 0.01

LogFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TiltMixture:
    r"""
    :math:`\sum_j \pi_j p_{\theta(v_j)}` with :math:`\pi_j \propto c_j e^{\Lambda_j}`, whose density
    against p is proportional to :math:`\sum_j c_j e^{\langle v_j, u \rangle}`.

    :ivar family: the tilts.
    :ivar slopes: :math:`v_j`, shape (J, k).
    :ivar log_masses: :math:`\log c_j + \Lambda_j`, shape (J,).
    :ivar errors: standard errors of the :math:`\Lambda_j`.
    """

    family: TiltFamily
    slopes: Tensor
    log_masses: Tensor
    errors: Tensor

    @classmethod
    def of(cls, family: TiltFamily, slopes: Tensor, log_coefficients: Tensor) -> TiltMixture:
        """
        The mixture of some tilts of a family.

        :param family: the tilts.
        :param slopes: shape (J, k).
        :param log_coefficients: :math:`\\log c_j`, shape (J,).
        """
        values, errors = family.log_normalizer(slopes)
        return cls(family, slopes, log_coefficients.to(values) + values, errors)

    @property
    def weights(self) -> Tensor:
        r""":math:`\pi_j`."""
        return self.log_masses.softmax(-1)

    @property
    def log_mass(self) -> float:
        r""":math:`\log \sum_j c_j e^{\Lambda_j}`."""
        return float(self.log_masses.logsumexp(-1))

    def draw(
        self,
        n: int,
        *,
        log_target: LogFn | None,
        log_envelope: LogFn,
        log_scale: float = 0.0,
        check: Callable[[Tensor], None] | None = None,
        max_batch: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> MixtureOutcome:
        """
        Draws of the mixture, or by rejection of the law whose log density against the base is
        ``log_target`` up to a constant.

        :param n: number of draws.
        :param log_target: a function of features; None draws from the mixture itself.
        :param log_envelope: the log density of the mixture against the base.
        :param log_scale: what is added to the envelope to make it one.
        :param check: called with the features of every proposal before they are judged.
        :param max_batch: most draws at once.
        :param progress: called with the rows of every step.
        :raises ValueError: where a proposal has an acceptance probability above one, with the
            features as witness.
        """
        stream = acceptance_generator().initial_seed()
        choice = torch.Generator().manual_seed(derive_seed(stream, _CHOICE))
        accept = torch.Generator().manual_seed(derive_seed(stream, _ACCEPT))
        weights, seen = self.weights.cpu(), list[Tensor]()
        slack = _FLOAT32_SLACK if self.family.base.dtype == torch.float32 else _SLACK

        def propose(rows: int) -> Proposals:
            picks = torch.multinomial(weights, rows, True, generator=choice)
            picks = picks.to(self.slopes.device)
            values = self.family.draw(self.slopes[picks], progress)
            features = self.family.project(values)
            if check is not None:
                check(features)
            logs = torch.zeros(rows).to(features)
            if log_target is not None:
                logs = log_target(features).to(features) - log_envelope(features) - log_scale
                _check_accept(logs, features, slack)
            return Proposals(values, picks, logs)

        def observe(batch: Proposals, used: int) -> None:
            seen.append(batch.log_accept[:used])

        pool = pooled_rejection(
            propose,
            lambda batch: batch.log_accept,
            n,
            max_block=block_rows(self.family.base, max_batch),
            generator=accept,
            observe=observe,
        )
        # The last proposal is there because it was accepted; the others are exchangeable.
        logs = torch.cat(seen).clamp(max=0.0)
        log_rate, error = log_evidence(logs[:-1] if len(logs) > 1 else logs)
        return MixtureOutcome(
            mixture=self,
            draws=pool.batch,
            proposals=pool.proposals,
            acceptance_rate=pool.acceptance_rate,
            log_normalizer=self.log_mass + log_scale + float(log_rate),
            rate_error=0.0 if log_target is None else float(error),
        )


@dataclass
class MixtureOutcome:
    """
    Draws by rejection from a mixture of tilts.

    :ivar mixture: the mixture.
    :ivar draws: the accepted proposals.
    :ivar proposals: how many each took.
    :ivar acceptance_rate: acceptances per proposal.
    :ivar log_normalizer: of the target.
    :ivar rate_error: relative standard error of the mean acceptance probability.
    """

    mixture: TiltMixture
    draws: Proposals
    proposals: Tensor
    acceptance_rate: float
    log_normalizer: float
    rate_error: float
    info: dict[str, float] = field(default_factory=dict)

    def as_draws(self) -> TiltDraws:
        """What a tilt hands back."""
        family, mixture = self.mixture.family, self.mixture
        weighted = float((mixture.weights * mixture.errors).sum())
        return TiltDraws(
            self.draws.values,
            log_normalizer=self.log_normalizer,
            log_normalizer_error=math.hypot(self.rate_error, weighted),
            rows=family.rows,
            base_draws=family.drawn,
            stats={"component": self.draws.picks, "proposals": self.proposals},
            info={
                "acceptance_rate": self.acceptance_rate,
                "components": float(len(mixture.slopes)),
                **self.info,
            },
        )


@dataclass
class Proposals:
    """
    Rows for pooled rejection.

    :ivar values: draws of the diffusion.
    :ivar picks: the component that each comes from.
    :ivar log_accept: log acceptance probabilities.
    """

    values: Tensor
    picks: Tensor
    log_accept: Tensor

    def index(self, index: Tensor) -> Proposals:
        """Some of the rows."""
        return Proposals(self.values[index], self.picks[index], self.log_accept[index])

    @staticmethod
    def cat(batches: Sequence[Proposals]) -> Proposals:
        """The rows of several."""
        return Proposals(
            torch.cat([batch.values for batch in batches]),
            torch.cat([batch.picks for batch in batches]),
            torch.cat([batch.log_accept for batch in batches]),
        )


def mixture_error(mixture: TiltMixture, *, uniform: bool = False) -> float:
    r"""
    A bound :math:`\epsilon / (1 - \epsilon)` on the total variation that estimated normalisers
    cost, whatever is rejected afterwards.

    With weights :math:`\pi_j`, :math:`\epsilon` is the mean over components of the relative errors
    :math:`|\hat Z_j / Z_j - 1|`, each taken at a standard score which all of them keep to with
    probability 0.99 where they are normal; derived here.

    :param mixture: the mixture.
    :param uniform: take the largest error in place of the mean, as is needed before a rejection
        that may prefer some components.
    """
    if mixture.family.exact:
        return 0.0
    tail = torch.tensor(0.5 * _MISS / len(mixture.errors), dtype=torch.float64)
    score = -float(torch.special.ndtri(tail))
    relative = torch.expm1(score * mixture.errors)
    epsilon = float(relative.max() if uniform else (mixture.weights * relative).sum())
    return min(1.0, epsilon / (1.0 - epsilon)) if epsilon < 1.0 else 1.0


def _check_accept(logs: Tensor, features: Tensor, slack: float) -> None:
    worst = int(logs.argmax()) if len(logs) else 0
    if len(logs) and not float(logs[worst]) <= slack:
        place = ", ".join(f"{x:.6g}" for x in features[worst].tolist()[:8])
        chance = math.exp(min(700.0, float(logs[worst])))
        raise ValueError(
            f"a proposal has acceptance probability {chance:.6g}, above one, at the features "
            f"({place}): the reward is not what it was declared to be "
            "(convex or concave, with its Lipschitz constant), or the features leave the range "
            "that the envelope was made for (give range=)"
        )
