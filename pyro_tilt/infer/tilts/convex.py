# SPDX-License-Identifier: Apache-2.0
"""Tilts of a diffusion by convex, or concave, functions of a few features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.sampler import Run, check_count
from pyro_tilt.infer.tilts.convex_family import DrawOptions
from pyro_tilt.infer.tilts.convex_mixture import mixture_error
from pyro_tilt.infer.tilts.convex_plan import ConvexPlan, PlanOptions, plan_tilt
from pyro_tilt.infer.tilts.diffusion_tilt import DiffusionTilt, TiltDraws, tilt_certificate
from pyro_tilt.infer.tilts.linear_draws import choose_form
from pyro_tilt.infer.tilts.low_rank_choice import choose_max_z
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.rewards import LowDim, MaxAffine

__all__ = ["ConvexTilt"]

ENVELOPES = ("lp", "lse", "tangent")


class ConvexTilt(DiffusionTilt):
    r"""
    Draws of a diffusion tilted by a convex function of a few features, :math:`q \propto p\,
    e^{\beta f(A x)}`, by rejection from a mixture of linear tilts.

    An envelope :math:`e^{\beta f(u)} \le \sum_j c_j e^{\langle v_j, u\rangle}` makes the mixture of
    the linear tilts by :math:`A^\top v_j`, with weights :math:`c_j e^{\Lambda(A^\top v_j)}`, a
    proposal, and

    .. math::

        \frac{E_p\, e^{\beta f(Ax)}}{\sum_j c_j e^{\Lambda(A^\top v_j)}}

    the share that is accepted. It is predicted before a draw is made, and a run that would accept
    too few is refused. That linear tilts suffice for convex low-dimensional rewards is a result
    of Moitra, Risteski and Rohatgi 2026, arXiv 2605.11361; the envelopes here, and what they
    cost, are derived in this project:

    * ``"lp"``: the :math:`c_j` of a linear programme that minimises the expected trials;
    * ``"lse"``: tangents of f, each added where f lies furthest above the others, scaled by the
      certified supremum of :math:`e^f` over their sum;
    * ``"tangent"``: the same, scaled by the supremum over the largest of them.

    A :class:`~pyro_tilt.rewards.MaxAffine` has an envelope of one tilt per piece, for any number of
    them. A concave f takes the single tilt of least mass that lies above it.

    Certificate: that of the linear tilts, *consistent* in the number of steps; the rejection adds
    no error, as the envelope is certified over the range of the features and every acceptance
    probability is checked. Where normalisers are estimated, :math:`|\hat Z_j / Z_j - 1| \le
    \epsilon` costs a total variation of at most :math:`\epsilon / (1 - \epsilon)` whatever the
    acceptance, which is stated in ``estimated_total_variation``.

    :param base: a diffusion model whose draws are vectors.
    :param reward: a :class:`~pyro_tilt.rewards.LowDim` declared convex or concave, of at most three
        features, or a :class:`~pyro_tilt.rewards.MaxAffine`.
    :param beta: multiplies the reward.
    :param sampler: ``"ancestral"``, ``"heun"`` or ``"euler"``.
    :param eta: noise of the ancestral sampler.
    :param form: ``"start"``, ``"prediction"``, or ``"auto"`` for the first wherever it is right.
    :param envelope: ``"lp"``, ``"lse"`` or ``"tangent"``.
    :param slopes: slopes for the linear programme, shape (J, k); by default a grid.
    :param range: lower and upper ends of the features, where they are known.
    :param exit_probability: with which the features of a proposal may leave the range that is
        found otherwise.
    :param min_acceptance: least predicted acceptance.
    :param normalizer_samples: draws of each anchor where normalisers are estimated.
    :param max_z: as in :class:`LinearTilt`.
    :param num_samples: draws per chain; see :class:`~pyro_tilt.infer.Sampler` for the other
        options ``num_chains``, ``seed``, ``progress`` and ``max_batch``.
    :raises TypeError: for another reward.
    :raises ValueError: for a reward that is not declared convex or concave, or is seen not to be,
        or not Lipschitz as declared (with a witness); for a tilt that is not integrable.
    :raises AcceptanceTooLow: see ``min_acceptance``.
    :raises NotImplementedError: for more than three features.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_tilt import diffusion, rewards
        >>> base = diffusion.MixtureDiffusion(
        ...     dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), diffusion.VP.linear(50))
        >>> reward = rewards.LowDim(
        ...     lambda u: u.abs().sum(-1), torch.tensor([[1.0, 0.0]]), convex=True, lipschitz=1.0)
        >>> result = ConvexTilt(base, reward, beta=1.2, num_samples=2000, seed=0).run()
        >>> round(result.samples["x_0"][:, 0].abs().mean().item(), 1)
        1.4
        >>> round(result.info["predicted_acceptance"], 1)
        0.9
    """

    def __init__(
        self,
        base: DiffusionModel,
        reward: LowDim | MaxAffine,
        *,
        beta: float = 1.0,
        sampler: str = "ancestral",
        eta: float = 1.0,
        form: str = "auto",
        envelope: str = "lp",
        slopes: Tensor | None = None,
        range: tuple[Any, Any] | None = None,
        exit_probability: float = 1e-9,
        min_acceptance: float = 1e-3,
        normalizer_samples: int = 2000,
        max_z: float | None = None,
        **options: Any,
    ) -> None:
        _check_reward(reward)
        super().__init__(base, reward, beta=beta, sampler=sampler, eta=eta, **options)
        _check_shapes(base, reward)
        if envelope not in ENVELOPES:
            raise ValueError(f"envelope must be one of {', '.join(ENVELOPES)}; got {envelope!r}")
        if not 0.0 < exit_probability < 1.0:
            raise ValueError(f"exit_probability must lie in (0, 1), got {exit_probability}")
        if not 0.0 <= min_acceptance < 1.0:
            raise ValueError(f"min_acceptance must lie in [0, 1), got {min_acceptance}")
        self.reward: LowDim | MaxAffine = reward.to(device=base.device, dtype=base.dtype)
        self.form, self.min_acceptance = form, min_acceptance
        choose_form(form, sampler, eta)
        self.draw_options = DrawOptions(
            sampler,
            self.eta,
            form,
            self.rows,
            choose_max_z(base, max_z),
            check_count("normalizer_samples", normalizer_samples),
        )
        self.plan_options = PlanOptions(envelope, slopes, range, exit_probability)

    def plan(self, seed: int = 0) -> ConvexPlan:
        """
        The envelope and its predicted acceptance, without a draw; where normalisers have to be
        estimated, with the draws that this takes.

        :param seed: of the features behind the prediction.
        """
        return plan_tilt(
            self.base, self.reward, self.beta, self.draw_options, self.plan_options, seed
        )

    def _draw(self, run: Run, bar: tqdm) -> TiltDraws:
        plan = self.plan(run.calibration_seed)
        plan.require(self.min_acceptance)
        if bar.total is not None:
            bar.total = int(bar.total / plan.acceptance)
        outcome = plan.mixture.draw(
            self.num_samples,
            log_target=plan.f,
            log_envelope=plan.envelope.log_value,
            check=None if isinstance(self.reward, MaxAffine) else plan.f.check_pairs,
            max_batch=self.rows,
            progress=bar.update,
        )
        made = outcome.as_draws()
        made.certificate = self._certificate(plan)
        made.info |= {
            "predicted_acceptance": plan.acceptance,
            "predicted_acceptance_error": plan.acceptance_error,
            "optimal_acceptance": plan.optimum,
            "range_exit_probability": plan.exit,
        }
        return made

    def _certificate(self, plan: ConvexPlan) -> Certificate:
        plain = tilt_certificate(self.base)
        words, left_out = [plain.covers, "rejection from the mixture of linear tilts"], []
        if not plan.everywhere:
            reach = ", ".join(
                f"[{a:.4g}, {b:.4g}]" for a, b in zip(plan.low.tolist(), plan.high.tolist())
            )
            often = (
                ""
                if plan.exit != plan.exit
                else (f", which a proposal leaves with a probability of at most {plan.exit:.2g}")
            )
            left_out.append(
                f"features outside {reach}{often}, where the envelope is not certified (that no "
                "proposal exceeded it was checked)"
            )
        if plan.mixture.family.exact:
            excludes = "; ".join([plain.excludes, *left_out])
            return replace(plain, covers="; ".join(words), excludes=excludes)
        words.append("the error of the estimated normalisers, by their standard errors")
        return replace(
            plain,
            budget="steps and normalizer_samples",
            covers="; ".join(words),
            excludes="; ".join([plain.excludes, *left_out]),
            estimated_total_variation=mixture_error(plan.mixture, uniform=True),
        )


def _check_reward(reward: Any) -> None:
    if not isinstance(reward, LowDim | MaxAffine):
        raise TypeError(
            "ConvexTilt takes a rewards.LowDim or a rewards.MaxAffine, got "
            f"{type(reward).__name__}; LinearTilt and QuadraticTilt take linear and quadratic "
            "rewards, and rewards.LowDim(f, A, convex=True) states a convex function of features"
        )
    if reward.batch_shape != torch.Size():
        raise ValueError(f"the reward must have no batch shape, got {tuple(reward.batch_shape)}")
    if not (reward.convex or reward.concave):
        raise ValueError(
            "the reward must be declared convex or concave: rewards.LowDim(f, A, convex=True). Of "
            "one that is neither no envelope is certified; use TemperedSMC, SMC or LCB on the "
            "model's program"
        )


def _check_shapes(base: DiffusionModel, reward: LowDim | MaxAffine) -> None:
    if reward.event_dim != 1 or reward.event_shape != base.event_shape:
        raise ValueError(
            f"the reward takes values of shape {tuple(reward.event_shape)}, but the model's states "
            f"have shape {tuple(base.event_shape)}. Flatten the states of a model over images, and "
            "for a latent diffusion state the reward in the latent space"
        )
