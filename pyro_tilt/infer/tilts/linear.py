# SPDX-License-Identifier: Apache-2.0
"""Linear tilts of a diffusion: the score at a shifted state, or a shifted start."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_tilt.infer.errors import SamplerWarning
from pyro_tilt.infer.sampler import Run
from pyro_tilt.infer.tilts.diffusion_tilt import DiffusionTilt, TiltDraws
from pyro_tilt.infer.tilts.linear_draws import check_tilts, choose_form, linear_tilt_draws
from pyro_tilt.infer.tilts.linear_warm import warm_start
from pyro_tilt.infer.tilts.normalizers import line_normalizer
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.rewards import Linear

__all__ = ["LinearTilt"]

# A learned network is trusted up to this shift, in standard deviations of the noise.
DEFAULT_MAX_Z = 1.0
# A negative divergence is believed from so many errors on, unless it is as small as this.
_TRUSTED, _SMALL = 3.0, 0.01


class LinearTilt(DiffusionTilt):
    r"""
    Draws of a diffusion tilted by a linear reward, :math:`q \propto p\, e^{\beta \langle \theta,
    x_0 \rangle}`, from the model's own predictions.

    With :math:`x_t = a x_0 + s \epsilon` and :math:`y' = y + \tfrac{s^2}{a} \beta \theta`,

    .. math::

        q(x_0 | x_t = y) = p(x_0 | x_t = y'), \qquad
        \nabla \log q_t(y) = \nabla \log p_t(y') + \beta \theta / a,

    at every noise level (the second is Lemma 3.3 of Moitra, Risteski and Rohatgi 2026, arXiv
    2602.16570). Under the fully stochastic sampler the shifts cancel from step to step, and the
    unmodified sampler from :math:`x_T = s_T \xi + \tfrac{s_T^2}{a_T} \beta\theta` does the same, as
    is derived here; deterministic samplers need the shifted prediction.

    To a network the shift is an extrapolation of :math:`z = (s / a) \beta |\theta|` standard
    deviations of the noise. Above ``max_z`` the run therefore starts lower, at the level with z =
    ``max_z``, from draws of the base that are reweighted and resampled; where one reweighting would
    leave too few of them, along a ladder of smaller tilts.

    Certificate: *consistent* in the number of steps, for the tilt in continuous time. It leaves
    out, by name, the discretisation, the Gaussian start and the error of a network.

    :param base: a diffusion model, such as :class:`pyro_tilt.diffusion.MixtureDiffusion`.
    :param theta: the tilt, of the model's event shape, or a :class:`~pyro_tilt.rewards.Linear`.
    :param beta: multiplies the reward.
    :param sampler: ``"ancestral"``, ``"heun"`` or ``"euler"``.
    :param eta: noise of the ancestral sampler, 1 for DDPM and 0 for DDIM.
    :param form: ``"start"``, ``"prediction"``, or ``"auto"`` for the first wherever it is right.
    :param max_z: the cap on z; by default 1 for a network and none for exact predictions.
    :param ess_threshold: least share of effective draws at a rung of the warm start.
    :param num_samples: draws per chain; see :class:`~pyro_tilt.infer.Sampler` for the other
        options ``num_chains``, ``seed``, ``progress`` and ``max_batch``.
    :raises TypeError: for a base that is no diffusion model.
    :raises ValueError: if theta has another shape than the model's states, as when pixels and
        latents are mixed up; for ``form="start"`` with a sampler that it is wrong for.

    The result holds z for every level in ``steps["z"]``, and in ``info`` its largest value
    ``z_max``, the divergence ``kl`` from the base, and ``start_total_variation``, an estimate of
    the bound on what the Gaussian start costs. After a warm start ``stats["ancestor"]`` is the base
    draw that each draw comes from, and ``info["start_ess"]`` the least effective share at a rung.
    The evidence is exact where the model knows it; otherwise it is estimated along the warm start,
    or by :func:`line_normalizer` where there is none, with an error that leaves out the
    discretisation as the certificate does.

    A divergence that is negative beyond its error shows that draws and evidence contradict each
    other, as they may where a network is asked far from what it was trained on; a
    :class:`~pyro_tilt.infer.SamplerWarning` then names z.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_tilt import diffusion
        >>> parts = dist.MultivariateNormal(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), torch.eye(2))
        >>> mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.9, 0.1])), parts)
        >>> base = diffusion.MixtureDiffusion(mixture, diffusion.VP.linear(100))
        >>> result = LinearTilt(base, torch.tensor([1.0, 0.0]), num_samples=4000, seed=0).run()
        >>> round(float((result.samples["x_0"][:, 0] > 0.5).float().mean()), 1)
        0.9
        >>> result.certificate.target
        'continuous-time tilt of the diffusion'
    """

    def __init__(
        self,
        base: DiffusionModel,
        theta: Tensor | Linear,
        *,
        beta: float = 1.0,
        sampler: str = "ancestral",
        eta: float = 1.0,
        form: str = "auto",
        max_z: float | None = None,
        ess_threshold: float = 0.3,
        **options: Any,
    ) -> None:
        reward = theta if isinstance(theta, Linear) else Linear(torch.as_tensor(theta))
        super().__init__(base, reward, beta=beta, sampler=sampler, eta=eta, **options)
        slope, _ = check_tilts(base, reward.theta, 1 if _single(base, reward) else None)
        if slope.shape != base.event_shape:
            raise ValueError(
                f"theta must have the event shape {tuple(base.event_shape)} of the model, got "
                f"{tuple(slope.shape)}; linear_tilt_draws takes a theta for each draw"
            )
        self.reward: Linear = Linear(slope, offset=reward.offset.to(slope))
        self.form = choose_form(form, sampler, eta)
        if max_z is not None and not max_z > 0.0:
            raise ValueError(f"max_z must be positive, got {max_z}")
        if not 0.0 < ess_threshold < 1.0:
            raise ValueError(f"ess_threshold must lie in (0, 1), got {ess_threshold}")
        default = math.inf if base.exact else DEFAULT_MAX_Z
        self.max_z = default if max_z is None else float(max_z)
        self.ess_threshold = ess_threshold
        self._size = abs(self.beta) * float(slope.double().norm())

    def _sample(self, run: Run) -> WeightedSamples:
        result = super()._sample(run)
        self._warn_of_negative_kl(result)
        return result

    def _warn_of_negative_kl(self, result: WeightedSamples) -> None:
        rewards, kl = result.stats["reward"].double(), result.info["kl"]
        # A single draw has no error to hold a negative divergence against.
        if len(rewards) < 2:
            return
        spread = abs(self.beta) * float(rewards.std()) / math.sqrt(len(rewards))
        error = math.hypot(spread, float(result.log_normalizer_error))
        if not kl < -max(_TRUSTED * error, _SMALL):
            return
        ways = "lower theta or beta"
        if not self.base.exact:
            ways = (
                f"set max_z (now {self.max_z:g}; {DEFAULT_MAX_Z:g} by default), above which the "
                f"run starts from a reweighted base, or {ways}"
            )
        warnings.warn(
            f"LinearTilt: the divergence from the base comes out as {kl:.3g} nats with an error of "
            f"{error:.2g}, below zero, so that draws and evidence cannot both be right. The tilt "
            f"asks the model for states shifted by up to z = {result.info['z_max']:.3g} standard "
            f"deviations of the noise: {ways}, or take more steps",
            SamplerWarning,
            stacklevel=5,
        )

    def _draw(self, run: Run, bar: tqdm) -> TiltDraws:
        return self.draw(bar.update)

    def draw(self, progress: Callable[[int], Any] | None = None) -> TiltDraws:
        """
        The draws of one chain from the global random state, before they become a result.

        :param progress: called with the rows of every step.
        """
        options: dict[str, Any] = {
            "sampler": self.diffusion_sampler,
            "eta": self.eta,
            "form": self.form,
            "max_batch": self.rows,
            "progress": progress,
        }
        theta = self.beta * self.reward.theta
        cold = self._size * self.base.schedule.levels[0].ratio <= self.max_z
        made = self._cold(theta, options) if cold else self._warm(theta, options)
        made.log_normalizer += self.beta * float(self.reward.offset)
        return made

    def _cold(self, theta: Tensor, options: dict[str, Any]) -> TiltDraws:
        n, levels = self.num_samples, self.base.schedule.levels
        values = linear_tilt_draws(self.base, theta, n, **options)
        made = TiltDraws(values, base_draws=n, steps=self._z(levels))
        made.rows = n * self.base.evaluations(self.diffusion_sampler, len(levels) - 1)
        reach = float(values.double().flatten(1).norm(dim=-1).mean())
        # Mixing N(a x, s^2) over x instead of N(0, s^2) at the start moves it by this at most.
        made.info = self._info(levels) | {
            "start_total_variation": min(1.0, reach / (levels[0].ratio * math.sqrt(2 * math.pi)))
        }
        exact = getattr(self.base, "log_normalizer", None)
        if exact is not None:
            made.log_normalizer, made.log_normalizer_error = float(exact(theta)), 0.0
        else:
            found = line_normalizer(self.base, theta)
            made.log_normalizer, made.log_normalizer_error = found.value, found.error
            made.rows += found.rows
        return made

    def _warm(self, theta: Tensor, options: dict[str, Any]) -> TiltDraws:
        n = self.num_samples
        warm = warm_start(
            self.base,
            theta,
            n,
            max_z=self.max_z,
            ess_threshold=self.ess_threshold,
            options=options,
        )
        schedule = self.base.schedule.starting_at(self.max_z / self._size)
        values = linear_tilt_draws(
            self.base, theta, n, schedule=schedule, warm=warm.values, **options
        )
        steps = len(schedule.levels) - 1
        exact = getattr(self.base, "log_normalizer", None)
        return TiltDraws(
            values,
            log_normalizer=warm.log_normalizer if exact is None else float(exact(theta)),
            log_normalizer_error=warm.error if exact is None else 0.0,
            rows=warm.rows + n * self.base.evaluations(self.diffusion_sampler, steps),
            base_draws=n * (warm.rungs + 1),
            independent=False,
            excludes="the error of the resampled start at this number of draws, which the "
            "effective sample size describes but does not bound",
            steps=self._z(schedule.levels),
            stats={"ancestor": warm.ancestors},
            info=self._info(schedule.levels) | {"start_ess": warm.ess, "rungs": float(warm.rungs)},
        )

    def _z(self, levels: Any) -> dict[str, Tensor]:
        ratios = [level.ratio for level in levels[:-1]]
        return {"z": self._size * torch.tensor(ratios, dtype=torch.float64)}

    def _info(self, levels: Any) -> dict[str, float]:
        return {"z_max": self._size * levels[0].ratio, "start_ratio": levels[0].ratio}


def _single(base: DiffusionModel, reward: Linear) -> bool:
    return reward.theta.shape == base.event_shape
