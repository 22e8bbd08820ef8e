# SPDX-License-Identifier: Apache-2.0
"""What reward a sampler reaches for the divergence it spends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.draws_kl import Kind, Outcomes, kl_of_draws
from pyro_tilt.diagnostics.estimators import Estimate
from pyro_tilt.infer.weighted_samples import WeightedSamples

if TYPE_CHECKING:
    Entry: TypeAlias = "WeightedSamples | Runnable | FrontierPoint"
    Entries: TypeAlias = "Entry | Iterable[Entry] | Mapping[str, Entry | Iterable[Entry]]"


class Runnable(Protocol):
    """Anything that runs and returns a result, as every sampler does."""

    def run(self, *args: Any, **kwargs: Any) -> WeightedSamples: ...


KINDS: tuple[Kind, ...] = ("exact", "estimate", "bound", "unknown")


@dataclass(frozen=True)
class FrontierPoint:
    """
    One sampler at one strength.

    :ivar label: of the sampler; points of one label make a curve.
    :ivar kl: divergence of the law of the draws from the base in nats.
    :ivar reward: expected reward of the draws.
    :ivar beta: strength, where there is one.
    :ivar kl_kind: whether ``kl`` is ``"exact"``, an ``"estimate"``, a ``"bound"``, which the
        divergence does not exceed, or ``"unknown"``; by default exact where its error is zero and
        unknown where it is nan.
    :raises ValueError: for another kind.

    >>> FrontierPoint("base", kl=Estimate(0.0, 0.0), reward=Estimate(1.0, 0.1)).kl_kind
    'exact'
    """

    label: str
    kl: Estimate
    reward: Estimate
    beta: float | None = None
    kl_kind: Kind | None = None

    def __post_init__(self) -> None:
        if self.kl_kind is None:
            kind = "exact" if self.kl.error == 0.0 else "estimate"
            kind = "unknown" if math.isnan(self.kl.value) else kind
            object.__setattr__(self, "kl_kind", kind)
        if self.kl_kind not in KINDS:
            raise ValueError(f"kl_kind must be one of {', '.join(KINDS)}; got {self.kl_kind!r}")

    @property
    def kl_is_bound(self) -> bool:
        """Whether the divergence is known only to be at most ``kl``."""
        return self.kl_kind == "bound"


def reward_kl_frontier(
    entries: Entries, *args: Any, outcomes: Outcomes | None = None, **kwargs: Any
) -> list[FrontierPoint]:
    r"""
    Expected reward against divergence from the base, each with its Monte Carlo error.

    Among all laws of a given :math:`\mathrm{KL}(q \,\|\, p)` the tilts
    :math:`q \propto p\, e^{\beta r}` have the largest expected reward, so that their curve is the
    frontier and other samplers lie on or below it. The reward is the mean over the draws as they
    are, by their weights where they have any, and the divergence is that of the law which these
    draws follow:

    * ``BestOfN``, ``SoftBestOfN``, ``ExpBestOfN`` and ``TruncatedRejection`` follow a law of their
      own at every n, far from the tilt where n is small. It is exact with ``outcomes``; otherwise
      it is estimated from the base draws of the run, equal rewards forming one class, except for
      best-of-n without ties, which attains its bound.
    * Choices after blocks of steps, and speculative rejection, state a bound.
    * Whole draws of ``GSI`` and of ``RewardGuided`` with ``score_drafts`` follow a law between two
      models, estimated from the draws of the draft; after blocks it is unknown.
    * ``RewardShifted`` knows the log ratio of its law to the target at every draw.
    * ``LCB`` follows the tilt clipped at its baseline, and the other samplers their target (see
      :func:`kl_to_base`).

    :param entries: results, samplers or points; one of them, several, or a mapping of labels to
        one or several. Several under one label make a curve.
    :param args: arguments of the program, for the samplers, which are run.
    :param outcomes: probabilities and rewards of all outcomes of the program, of shape (K,) each,
        where they can be listed.
    :param kwargs: keyword arguments of the program.
    :returns: points in the order given, each of which says whether its divergence is exact, an
        estimate, a bound or, with nan, unknown.
    :raises TypeError: for anything else.
    :raises ValueError: for a result without rewards.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_tilt.infer import ImportanceSampler
    >>> program = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> sampler = ImportanceSampler(
    ...     program, reward=lambda x: x, beta=0.5, num_samples=100_000, seed=0
    ... )
    >>> (point,) = reward_kl_frontier(sampler)
    >>> point.label, round(point.reward.value, 1), round(point.kl.value, 1)
    ('ImportanceSampler', 0.5, 0.1)
    """
    return [_point(label, entry, outcomes, args, kwargs) for label, entry in _labelled(entries)]


def _labelled(entries: Any) -> Iterator[tuple[str | None, Any]]:
    if isinstance(entries, Mapping):
        for label, group in entries.items():
            for _, entry in _labelled(group):
                yield str(label), entry
    elif _is_entry(entries):
        yield None, entries
    elif isinstance(entries, Iterable) and not isinstance(entries, str):
        for entry in entries:
            yield None, entry
    else:
        yield None, entries


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, WeightedSamples | FrontierPoint) or hasattr(entry, "run")


def _point(
    label: str | None,
    entry: Any,
    outcomes: Outcomes | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> FrontierPoint:
    if isinstance(entry, FrontierPoint):
        return entry
    if not _is_entry(entry):
        raise TypeError(
            f"a frontier is made of results, samplers and FrontierPoints; got "
            f"{type(entry).__name__}"
        )
    result = entry if isinstance(entry, WeightedSamples) else entry.run(*args, **kwargs)
    name = label or result.sampler or "draws"
    side = reading.after(result)
    if side is None:
        raise ValueError(
            f"{name}: the frontier needs stats['reward'], which this result does not have"
        )
    kl, kind = kl_of_draws(result, outcomes)
    return FrontierPoint(
        name,
        kl=kl,
        reward=Estimate(side.mean, side.error),
        beta=result.beta,
        kl_kind=kind,
    )
