# SPDX-License-Identifier: Apache-2.0
"""Linear tilts along a few features of a diffusion: their normalisers, ranges and draws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.linear_draws import linear_tilt_draws
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.rewards import Linear

__all__ = ["DrawOptions", "ExactFamily", "TiltFamily"]

_BLOCK = 2**21


@dataclass(frozen=True)
class DrawOptions:
    """
    How the tilts of a family are drawn and learned.

    :ivar sampler: of the diffusion.
    :ivar eta: noise of the ancestral sampler.
    :ivar form: see :func:`choose_form`.
    :ivar max_batch: most draws run at once.
    :ivar max_z: largest shift of a network's input, in standard deviations of the noise.
    :ivar normalizer_samples: draws of each anchor where normalisers are estimated.
    """

    sampler: str = "ancestral"
    eta: float = 1.0
    form: str = "auto"
    max_batch: int | None = None
    max_z: float = math.inf
    normalizer_samples: int = 2000


class TiltFamily(ABC):
    r"""
    The tilts of a model by :math:`\theta(v) = b + A^\top v`, for a few features :math:`u = A x`.

    :param base: the model.
    :param features: A, shape (k, d).
    :param offset: b, shape (d,); zero by default.
    :param options: how to draw.
    """

    exact: bool

    def __init__(
        self,
        base: DiffusionModel,
        features: Tensor,
        offset: Tensor | None = None,
        options: DrawOptions | None = None,
    ) -> None:
        self.base, self.options = base, options or DrawOptions()
        self.features = features.detach().to(device=base.device, dtype=torch.float64)
        zero = self.features.new_zeros(self.features.shape[-1])
        self.offset = zero if offset is None else offset.detach().to(zero)
        self.rows = self.drawn = 0

    def theta(self, v: Tensor) -> Tensor:
        """
        The tilts.

        :param v: shape (..., k).
        :returns: shape (..., d), in float64.
        """
        return self.offset + v.to(self.features) @ self.features

    def project(self, x: Tensor) -> Tensor:
        """
        The features of values.

        :param x: shape (n, d).
        :returns: shape (n, k), in float64.
        """
        return x.to(self.features) @ self.features.T

    @abstractmethod
    def log_normalizer(self, v: Tensor) -> tuple[Tensor, Tensor]:
        r"""
        :math:`\Lambda(\theta(v))` and its standard error, zero where it is exact.

        :param v: shape (J, k).
        :returns: two tensors of shape (J,), in float64.
        """

    @abstractmethod
    def prepare(self, v: Tensor) -> None:
        """
        Makes the normalisers of these tilts known, at the price of draws where it takes them.

        :param v: shape (J, k).
        """

    @abstractmethod
    def box(self, v: Tensor, exit_probability: float) -> tuple[Tensor, Tensor]:
        """
        A box which the features of each of these tilts leave with at most that probability.

        :param v: shape (J, k).
        :param exit_probability: of each tilt.
        :returns: lower and upper ends, shape (k,) each.
        """

    @abstractmethod
    def mean(self, v: Tensor, weights: Tensor, log_ratio: Callable[[Tensor], Tensor]) -> Any:
        r"""
        The mean of :math:`e^{g(u)}` under :math:`\sum_j \pi_j p_{\theta(v_j)}` with its error.

        :param v: shape (J, k).
        :param weights: :math:`\pi_j`, shape (J,).
        :param log_ratio: g, of features (n, k).
        """

    def draw(self, v: Tensor, progress: Callable[[int], Any] | None = None) -> Tensor:
        """
        One draw of each tilt.

        :param v: shape (n, k).
        :param progress: called with the rows of every step.
        :returns: shape (n, d).
        """
        return self._run(self.theta(v), progress=progress)

    def _run(self, theta: Tensor, **options: Any) -> Tensor:
        schedule = options.get("schedule") or self.base.schedule
        steps, mode = len(schedule.levels) - 1, self.options
        self.drawn += len(theta)
        self.rows += len(theta) * self.base.evaluations(mode.sampler, steps)
        return linear_tilt_draws(
            self.base,
            theta,
            sampler=mode.sampler,
            eta=mode.eta,
            form=mode.form,
            max_batch=mode.max_batch,
            **options,
        )


class ExactFamily(TiltFamily):
    """
    Of a model that knows the normalisers and the laws of its linear tilts.

    :cvar prediction_draws: draws of the features behind a predicted mean.
    """

    exact = True
    prediction_draws = 4000

    @classmethod
    def fits(cls, base: DiffusionModel) -> bool:
        """
        Whether a model has ``log_normalizer`` and ``tilted_law``.

        :param base: the model.
        """
        return hasattr(base, "log_normalizer") and hasattr(base, "tilted_law")

    def log_normalizer(self, v: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.base
        rows = max(1, _BLOCK // self.features.shape[-1])
        values = [model.log_normalizer(self.theta(part)) for part in v.split(rows)]
        joined = torch.cat(values)
        return joined, torch.zeros_like(joined)

    def prepare(self, v: Tensor) -> None:
        return None

    def box(self, v: Tensor, exit_probability: float) -> tuple[Tensor, Tensor]:
        """By Chernoff's bound, which the normalisers give."""
        k = self.features.shape[0]
        budget = math.log(2 * k / exit_probability)
        ends = torch.stack([self._reach(v, budget, sign) for sign in (-1.0, 1.0)])
        return -ends[0], ends[1]

    def exits(self, v: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """
        A bound on the probability that the features of each tilt leave a box, shape (J,).

        :param v: shape (J, k).
        :param low: lower ends.
        :param high: upper ends.
        """
        total = torch.zeros(len(v)).to(self.features)
        for sign, edge in ((-1.0, -low), (1.0, high)):
            for i in range(len(edge)):
                steps, growth = self._growth(v, i, sign)
                total += (growth - steps * edge[i]).amin(-1).clamp(max=0.0).exp()
        return total

    def mean(
        self, v: Tensor, weights: Tensor, log_ratio: Callable[[Tensor], Tensor]
    ) -> tuple[float, float]:
        """From draws of the features alone: no step of a diffusion is run."""
        model: Any = self.base
        counts = torch.multinomial(weights, self.prediction_draws, True).bincount(
            minlength=len(weights)
        )
        parts = []
        for j in counts.nonzero().flatten().tolist():
            theta = self.theta(v[j]).to(self.base.dtype)
            law = model.tilted_law(Linear(theta)).law
            parts.append(self.project(law.sample((int(counts[j]),))))
        ratios = log_ratio(torch.cat(parts)).exp()
        return float(ratios.mean()), float(ratios.std()) / math.sqrt(len(ratios))

    def _reach(self, v: Tensor, budget: float, sign: float) -> Tensor:
        reach = []
        for i in range(self.features.shape[0]):
            steps, growth = self._growth(v, i, sign)
            reach.append(((growth + budget) / steps).amin(-1).amax())
        return torch.stack(reach)

    def _growth(self, v: Tensor, i: int, sign: float) -> tuple[Tensor, Tensor]:
        r"""Steps s, and :math:`\Lambda(v \pm s e_i) - \Lambda(v)` of shape (J, steps)."""
        unit = torch.zeros(self.features.shape[0]).to(self.features)
        unit[i] = sign
        small = 1e-3 / self.features[i].norm().clamp(min=1e-300)
        around = self.log_normalizer(torch.stack([0 * unit, small * unit, -small * unit]))[0]
        spread = ((around[1] + around[2] - 2 * around[0]) / small**2).clamp(min=0.0).sqrt()
        scale = 1.0 / torch.where(spread > 0, spread, 1.0 / small)
        steps = scale * torch.logspace(-1.5, 1.5, 31).to(unit)
        moved = v.to(unit).unsqueeze(1) + steps.unsqueeze(-1) * unit
        values = self.log_normalizer(moved.flatten(0, 1))[0].view(len(v), -1)
        return steps, values - self.log_normalizer(v)[0].unsqueeze(-1)
