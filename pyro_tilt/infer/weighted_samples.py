# SPDX-License-Identifier: Apache-2.0
"""The result of a sampler: draws, weights, evidence, and what they are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import torch
from pyro.infer import Predictive
from pyro.infer.importance import LogWeightsMixin
from torch import Tensor

from pyro_tilt.infer.base_draws import BaseDraws
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.evidence import pooled_evidence
from pyro_tilt.ops.importance import as_double, normalize

if TYPE_CHECKING:
    from pyro_tilt.diagnostics import Summary
    from pyro_tilt.infer.smc.paths import Paths

__all__ = ["BaseDraws", "WeightedSamples"]

KINDS = ("iid", "weighted", "chain", "transport")
"""Independent draws; weighted particles; a Markov chain; particles moved by transport."""


@dataclass(kw_only=True, eq=False, repr=False)
class WeightedSamples(LogWeightsMixin):
    r"""
    Draws of a tilted program with their raw log weights.

    The evidence is the mean of the raw weights, :math:`\log Z = \log \frac1N \sum_i w_i`; draws
    that already follow their law (every kind but ``"weighted"``) carry one equal weight.

    :param kind: ``"iid"``, ``"weighted"``, ``"chain"`` or ``"transport"``.
    :param samples: site name to tensor of shape ``(N,)`` + site shape.
    :param log_weights: raw log weights, ``(N,)``; ``-inf`` is a weight of zero.
    :param certificate: what law the draws follow.
    :param log_normalizer: log evidence; the log mean weight by default, nan where there is none
        (the error is then nan as well, and equal weights are one).
    :param log_normalizer_error: its standard error; by default the spread across chains, within
        one chain the delta method for weighted draws, otherwise nan.
    :param cost: rows of work.
    :param stats: per draw, such as ``reward``, ``proposals``, ``capped``; each ``(N, ...)``.
    :param steps: per step, each ``(T,)``, or ``(chains, T)`` with several chains.
    :param beta: ``beta * stats["reward"]`` is the log tilt; None where there is no one beta.
    :param psis_log_weights: Pareto smoothed log weights on the scale of the raw ones, ``(N,)``.
    :param pareto_k: tail shape of the weights.
    :param residual_log_weights: log weights that make the draws exact for the target under
        self-normalisation, ``(N,)``.
    :param info: numbers of the whole run, such as ``acceptance_rate``.
    :param base: rewards of base draws.
    :param chain_sizes: draws of each independent run, in order along ``N``.
    :param chain_log_normalizers: log evidence of each run, ``(num_chains,)``.
    :param sampler: name of the sampler.
    :param program: what was run, with ``args`` and ``kwargs``; not saved to disk.
    :param paths: values of all steps, where a sampler over steps kept them; not saved to disk.
    :raises ValueError: for shapes that do not fit, a NaN or ``+inf`` weight, an unknown kind.

    >>> result = WeightedSamples(
    ...     kind="weighted",
    ...     samples={"x": torch.tensor([0.0, 1.0])},
    ...     log_weights=torch.tensor([0.25, 0.75]).log(),
    ...     certificate=Certificate(target="joint tilt", law="consistent"),
    ... )
    >>> round(result.expectation("x").item(), 6)
    0.75
    """

    kind: str
    samples: dict[str, Tensor]
    log_weights: Tensor
    certificate: Certificate
    log_normalizer: Tensor = cast(Tensor, None)
    log_normalizer_error: Tensor = cast(Tensor, None)
    cost: Cost = field(default_factory=Cost)
    stats: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, Tensor] = field(default_factory=dict)
    beta: float | None = None
    psis_log_weights: Tensor | None = None
    pareto_k: float | None = None
    residual_log_weights: Tensor | None = None
    info: dict[str, float] = field(default_factory=dict)
    base: BaseDraws | None = None
    chain_sizes: tuple[int, ...] = ()
    chain_log_normalizers: Tensor = cast(Tensor, None)
    sampler: str = ""
    program: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    paths: Paths | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        self.log_weights = as_double(self.log_weights.detach())
        if len(self) and not float(self.log_weights.amax()) < math.inf:
            bad = ~(self.log_weights < math.inf)
            raise ValueError(f"log_weights has {int(bad.sum())} values that are nan or +inf")
        self.beta = None if self.beta is None else float(self.beta)
        self.pareto_k = None if self.pareto_k is None else float(self.pareto_k)
        self.chain_sizes = tuple(int(n) for n in self.chain_sizes) or (len(self),)
        if sum(self.chain_sizes) != len(self) or min(self.chain_sizes) < 0:
            raise ValueError(f"chain_sizes {self.chain_sizes} do not add up to {len(self)} draws")
        value, error, chains = pooled_evidence(
            self.log_weights,
            self.chain_sizes,
            weighted=self.kind == "weighted",
            log_normalizer=self.log_normalizer,
            error=self.log_normalizer_error,
            chain_log_normalizers=self.chain_log_normalizers,
        )
        self.log_normalizer, self.log_normalizer_error, self.chain_log_normalizers = (
            value,
            error,
            chains,
        )

    def _check_shapes(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if self.log_weights.dim() != 1:
            raise ValueError(f"log_weights must be (N,); got {tuple(self.log_weights.shape)}")
        num = len(self.log_weights)
        for group in ("samples", "stats"):
            for name, value in getattr(self, group).items():
                if value.dim() < 1 or value.shape[0] != num:
                    raise ValueError(
                        f"{group}[{name!r}] must start with the {num} draws of log_weights; "
                        f"got shape {tuple(value.shape)}"
                    )
        for name in ("psis_log_weights", "residual_log_weights"):
            value = getattr(self, name)
            if value is not None and value.shape != (num,):
                raise ValueError(f"{name} must be ({num},); got {tuple(value.shape)}")

    def __len__(self) -> int:
        return self.log_weights.shape[0]

    def __repr__(self) -> str:
        sites = ", ".join(f"{k}{list(v.shape[1:])}" for k, v in self.samples.items())
        chains = f" in {self.num_chains} chains" if self.num_chains > 1 else ""
        ess = f", ess {self.ess:.1f}" if self.kind == "weighted" else ""
        return (
            f"WeightedSamples({self.sampler or 'draws'}: {len(self)} {self.kind}{chains}{ess}, "
            f"{self._evidence_text()}, "
            f"{self.certificate.law}; sites {sites or 'none'})"
        )

    def _evidence_text(self) -> str:
        if math.isnan(self.log_normalizer):
            return "no evidence"
        return f"log Z {float(self.log_normalizer):.4g} ± {float(self.log_normalizer_error):.2g}"

    @property
    def num_chains(self) -> int:
        """The number of independent runs."""
        return len(self.chain_sizes)

    @property
    def ess(self) -> float:
        """Kish's effective sample size of the raw weights."""
        return float(self.get_ESS()) if bool((self.log_weights > -math.inf).any()) else 0.0

    @property
    def normalized_weights(self) -> Tensor:
        """The raw weights, made to sum to one, ``(N,)``."""
        return self.get_normalized_weights()

    def get_log_normalizer(self) -> Tensor:
        """The log evidence, as Pyro's importance samplers name it."""
        return self.log_normalizer

    def get_normalized_weights(self, log_scale: bool = False) -> Tensor:
        """
        The raw weights, made to sum to one.

        :param log_scale: return their logs.
        :raises ValueError: where every weight is zero.
        """
        total = torch.logsumexp(self.log_weights, 0)
        if not bool(total > -math.inf):
            raise ValueError("every weight is zero: there is nothing to normalise")
        log_weights = self.log_weights - total
        return log_weights if log_scale else log_weights.exp()

    def analysis_log_weights(self, weights: str = "auto") -> Tensor | None:
        """
        The log weights that an expectation uses, ``(N,)``, or None for equal ones.

        :param weights: ``"auto"`` (smoothed weights where there are any, raw ones otherwise,
            equal ones for draws that carry no weights), ``"raw"``, ``"psis"``, ``"residual"``
            (the exact correction on top of ``"auto"``) or ``"equal"``.
        :raises ValueError: for a word or weights that are not there, or all of them zero.
        """
        if weights not in ("auto", "raw", "psis", "residual", "equal"):
            raise ValueError(f"weights must be auto, raw, psis, residual or equal; got {weights!r}")
        if weights in ("psis", "residual") and getattr(self, f"{weights}_log_weights") is None:
            raise ValueError(f"this result has no {weights}_log_weights")
        if len(self) == 0:
            raise ValueError("this result holds no draws")
        smoothed = self.psis_log_weights if weights != "raw" else None
        log_weights = self.log_weights if smoothed is None else as_double(smoothed)
        if weights == "equal" or (weights == "auto" and self.kind != "weighted"):
            return None
        if weights == "residual":
            log_weights = log_weights + as_double(cast(Tensor, self.residual_log_weights))
        if not bool((log_weights > -math.inf).any()):
            raise ValueError("every weight is zero: there is nothing to average")
        return log_weights

    def expectation(
        self,
        fn: str | Callable[[dict[str, Tensor]], Tensor],
        *,
        weights: str = "auto",
        corrected: bool = False,
    ) -> Tensor:
        r"""
        The self-normalised mean :math:`\sum_i \bar w_i f(x_i)`, for equal weights a plain mean.

        Draws of weight zero do not count, whatever the function says of them.

        :param fn: a site, or a function of the dictionary of samples to ``(N, ...)``.
        :param weights: see :meth:`analysis_log_weights`.
        :param corrected: use the residual weights, which correct an LCB result to its target.
        :returns: a tensor of the function's shape without its first dimension.
        :raises KeyError: for a site that is not there.
        :raises ValueError: for a function whose result has not the draws in front.
        """
        values = self.site(fn) if isinstance(fn, str) else torch.as_tensor(fn(self.samples))
        if values.dim() < 1 or values.shape[0] != len(self):
            raise ValueError(
                f"the function must return ({len(self)}, ...), one row per draw; "
                f"got shape {tuple(values.shape)}"
            )
        if not (values.is_floating_point() or values.is_complex()):
            values = as_double(values)
        log_weights = self.analysis_log_weights("residual" if corrected else weights)
        if log_weights is None:
            return values.mean(0)
        probs = normalize(log_weights).to(values.device)
        if bool((probs == 0).any()):
            values, probs = values[probs > 0], probs[probs > 0]
        return torch.tensordot(probs.to(values.dtype), values, dims=1)

    def site(self, name: str) -> Tensor:
        """
        The draws of a site.

        :param name: the site's name.
        :raises KeyError: naming the sites that are there.
        """
        if name not in self.samples:
            raise KeyError(f"no site {name!r}; the sites are {', '.join(self.samples) or 'none'}")
        return self.samples[name]

    def get_samples(
        self,
        num_samples: int | None = None,
        group_by_chain: bool = False,
        *,
        weights: str = "auto",
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """
        Equally weighted draws.

        Draws without weights come back as they are: the first ``num_samples`` (evenly spaced
        along a Markov chain), or resampled where more are asked for. Weighted ones are resampled
        systematically: all together by their evidence, or within each chain.

        :param num_samples: how many, per chain where ``group_by_chain``; all by default.
        :param group_by_chain: return ``(num_chains, num_samples)`` + site shape.
        :param weights: see :meth:`analysis_log_weights`; ``"residual"`` corrects an LCB result.
        :param seed: of the resampling; by default torch's global random state.
        :returns: site name to draws.
        :raises ValueError: where there is nothing to draw from.
        """
        from pyro_tilt.infer.equal_draws import equal_draws

        index = equal_draws(self, num_samples, group_by_chain, weights=weights, seed=seed)
        if index is None:
            return dict(self.samples)
        return {name: value[index.to(value.device)] for name, value in self.samples.items()}

    def diagnostics(self) -> dict[str, Any]:
        """
        ``n_eff`` and ``r_hat`` of every site, as Pyro's MCMC reports them.

        ``n_eff`` is the variance of a site over the squared Monte Carlo error of its mean; the
        ``r_hat`` compares the chains and is nan for a single run of particles.
        """
        from pyro_tilt.infer.site_diagnostics import site_diagnostics

        return site_diagnostics(self)

    def reweight(self, beta: float) -> WeightedSamples:
        r"""
        The same draws weighted for another beta, :math:`w_i e^{(\beta' - \beta) r_i}`.

        :param beta: the new beta.
        :raises ValueError: without one beta and a reward per draw, or where the draws lack a
            part of the new law.
        """
        from pyro_tilt.infer.reweighting import reweight

        return reweight(self, beta)

    def predictive(
        self,
        program: Callable[..., Any] | None = None,
        num_samples: int | None = None,
        return_sites: Sequence[str] = (),
        *,
        parallel: bool = False,
        seed: int | None = None,
    ) -> Predictive:
        """
        Pyro's ``Predictive`` with these draws: it draws other sites given the aligned ones.

        ``Predictive`` of an aligned program would ignore its reward and draw from the base.

        :param program: the program to run, by default the one that was sampled; an aligned
            program runs without its reward.
        :param num_samples: how many equally weighted draws to use; all by default.
        :param return_sites: the sites to return; by default those without draws here.
        :param parallel: see Pyro's ``Predictive``.
        :param seed: see :meth:`get_samples`.
        :raises ValueError: where no program is known.
        """
        from pyro_tilt.infer.predictive import predictive

        draws = self.get_samples(num_samples, seed=seed)
        return predictive(program or self.program, draws, return_sites, parallel)

    def to_arviz(self, **options: Any) -> Any:
        """See :func:`pyro_tilt.diagnostics.to_arviz`."""
        from pyro_tilt.diagnostics import to_arviz

        return to_arviz(self, **options)

    def summary(self) -> Summary:
        """See :func:`pyro_tilt.diagnostics.summary`."""
        from pyro_tilt.diagnostics import summary

        return summary(self)

    def save(self, path: str | PathLike[str], *, arviz: bool = False) -> None:
        """See :func:`pyro_tilt.infer.save`."""
        from pyro_tilt.infer.storage import save

        save(self, path, arviz=arviz)

    @staticmethod
    def load(path: str | PathLike[str]) -> WeightedSamples:
        """See :func:`pyro_tilt.infer.load`."""
        from pyro_tilt.infer.storage import load

        return load(path)

    @staticmethod
    def merge(results: Iterable[WeightedSamples]) -> WeightedSamples:
        """See :func:`pyro_tilt.infer.merge`, of which this takes one iterable."""
        from pyro_tilt.infer.merge import merge

        return merge(*results)

    def to(self, device: torch.device | str) -> WeightedSamples:
        """
        A copy with its tensors on another device.

        :param device: where to.
        """
        changes: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changes[item.name] = value.to(device)
            elif item.name in ("samples", "stats", "steps"):
                changes[item.name] = {name: each.to(device) for name, each in value.items()}
        if self.base is not None:
            changes["base"] = self.base.to(device)
        return replace(self, **changes)
