# SPDX-License-Identifier: Apache-2.0
"""At every step, one of several proposals with probability by its value."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.errors import SamplerWarning, ZeroWeights
from pyro_tilt.infer.sampler import Run, check_count
from pyro_tilt.infer.selection.engine import StepSelector
from pyro_tilt.infer.selection.groups import Choose, Selected
from pyro_tilt.infer.selection.messenger import Value
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.importance import log_evidence, log_mean_exp

__all__ = ["SoftBestOfM"]


class SoftBestOfM(StepSelector):
    r"""At each step ``m`` proposals, of which one is kept with probability by its value.

    .. math:: P(\text{keep } c^j) \propto f(c^j)\, e^{V(c^j)}, \qquad
        V(c) \approx \log E[e^{\text{later factors and } \beta r} \mid c],

    with :math:`f` the factors of the step itself (Li et al. 2024, arXiv 2408.08252). In the last
    step :math:`V` is not asked: the reward and the factors themselves decide. What comes before the
    scan belongs to the first step and is proposed with it.

    Certificate: with exact values the law of the draws is *consistent* in ``m``, with a bias of
    order :math:`1/m`. With values that are not exact a bias stays however large ``m`` is, and the
    draws are those of a *search*; whether values are exact only the user can say.

    The product over steps of the mean weights :math:`\frac1m\sum_j f e^{V}`, each over
    :math:`e^V` of the state it started from, is an unbiased estimate of the evidence for each draw,
    with any finite values. As ``residual_log_weights`` these estimates correct the draws to the
    joint tilt as ``num_samples`` grows, and their mean is the evidence.

    The law of a step is evaluated once for each state kept, and all ``m`` proposals come from it,
    where ``value`` is given and the step is one site whose value is the carry; a network then sees
    a row per draw and step instead of ``m``. Other steps run for every proposal.

    :param program: a Pyro program with one :func:`~pyro_tilt.scan`; see
        :class:`~pyro_tilt.infer.Sampler` for it and all options not named here.
    :param value: :math:`V`, a function of the carry and of the element of ``xs`` that made it to
        one number per particle, on the scale of log weights (beta is part of it); None takes the
        twists that the program states.
    :param int m: proposals per step.
    :param bool exact_values: whether :math:`V` is the exact log soft value.
    :param bool check_lineage: look for variables that do not move with their particle, as in
        :class:`~pyro_tilt.infer.SMC`.
    :raises ValueError: without a scan or a value.
    :raises TwistError: for a value that is NaN, ``+inf`` or of a wrong shape.
    :raises StepError: if the program raises at a step; what was kept before is attached.
    :raises ZeroWeights: if no draw has a positive weight; the draws are attached to the error.

    Example::

        >>> from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion
        >>> case = tabular_masked_diffusion()
        >>> sampler = SoftBestOfM(
        ...     case.aligned(), value=case.twist(), m=8, exact_values=True, num_samples=100, seed=0
        ... )
        >>> result = sampler.run()
        >>> result.certificate.law, result.cost.base_draws, list(result.samples)
        ('consistent', 800, ['x_3', 'x_0'])
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        value: Value | None = None,
        m: int = 16,
        exact_values: bool = False,
        **options: Any,
    ) -> None:
        self.m = check_count("m", m)
        super().__init__(program, width=self.m, steps=1, value=value, **options)
        self.exact_values = bool(exact_values)

    def _choose(self, run: Run) -> Choose:
        generator = torch.Generator().manual_seed(run.accept_seed)

        def choose(log_weights: Tensor) -> Tensor:
            # The largest after independent Gumbel noise falls by probability; -inf never does
            # unless nothing else is there.
            noise = torch.empty(log_weights.shape, dtype=torch.float64)
            noise = noise.exponential_(generator=generator).clamp_(min=1e-300).log_()
            return (log_weights - noise.to(log_weights)).argmax(-1)

        return choose

    @property
    def _target(self) -> str:
        return "joint tilt"

    def _result(self, run: Run, selected: Selected, cost: Cost, target: str) -> WeightedSamples:
        log_z, error = log_evidence(selected.log_evidence)
        lost = selected.log_evidence == -math.inf
        return self._draws(
            run,
            selected,
            cost,
            log_weights=log_z.expand(len(lost)).clone(),
            log_normalizer=log_z,
            log_normalizer_error=error,
            residual_log_weights=selected.log_evidence,
            certificate=self._certificate(selected, target),
            stats={"lost": lost},
            info={
                "m": float(self.m),
                "lost": float(lost.double().mean()),
                "kl_upper_bound": selected.kl_upper_bound(self.m),
            },
        )

    def _warn(self, result: WeightedSamples) -> None:
        lost = int(result.stats["lost"].sum())
        if lost == len(result):
            raise ZeroWeights(
                f"every draw met a step where all {self.m} proposals had weight zero: rewards, "
                "observations or values are -inf wherever the program sampled",
                result,
            )
        if lost:
            warnings.warn(
                f"{lost} of {len(result)} draws met a step where all {self.m} proposals had weight "
                "zero and have weight zero themselves (stats['lost']); raise m",
                SamplerWarning,
                stacklevel=5,
            )

    def _certificate(self, selected: Selected, target: str) -> Certificate:
        estimate = None
        if bool((selected.log_evidence > -math.inf).any()):
            ratio = (selected.log_evidence - log_mean_exp(selected.log_evidence)).exp()
            estimate = min(1.0, 0.5 * float((ratio - 1.0).abs().mean()))
        return Certificate(
            target=target,
            law="consistent" if self.exact_values else "search",
            budget="m" if self.exact_values else None,
            estimated_total_variation=estimate,
            covers="independent draws, which residual_log_weights correct to the joint tilt",
            excludes=(
                "whether the values are exact, which the user states"
                if self.exact_values
                else "the error of the values, whose bias stays however large m is"
            ),
        )
