# SPDX-License-Identifier: Apache-2.0
"""What law draws follow, and how near it is to the one asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LAWS = ("exact", "bounded", "consistent", "search")
"""The words for a law, strongest first."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """
    States a target law and how near the draws are to it.

    ``law`` is one of four words: ``"exact"`` (the draws follow the target), ``"bounded"`` (their
    law is within a stated distance, at a stated confidence), ``"consistent"`` (their law tends to
    the target as ``budget`` grows) and ``"search"`` (an optimiser, not a sampler of the target).

    :param target: the law aimed at, in words, such as ``"joint tilt"``.
    :param law: ``"exact"``, ``"bounded"``, ``"consistent"`` or ``"search"``.
    :param total_variation: a proven bound on the total variation distance to the target.
    :param kl: a proven bound on the Kullback-Leibler divergence of the draws from the target.
    :param gap: a bound on the optimality gap of an objective (transport).
    :param confidence: the probability with which the bound holds; 1 for a sure one.
    :param budget: what has to grow for a ``"consistent"`` law to reach its target.
    :param estimated_total_variation: an estimated distance, which proves nothing.
    :param covers: the errors that the statement includes, in words.
    :param excludes: the errors that it leaves out, in words.
    :raises ValueError: for an unknown word, a number out of its range, or a ``"bounded"`` law
        without a number or without a confidence.

    >>> print(Certificate(target="joint tilt", law="bounded", total_variation=0.05, confidence=0.9))
    The draws are within total variation 0.05 of the joint tilt, with confidence 0.9.
    """

    target: str
    law: str
    total_variation: float | None = None
    kl: float | None = None
    gap: float | None = None
    confidence: float | None = None
    budget: str | None = None
    estimated_total_variation: float | None = None
    covers: str = ""
    excludes: str = ""

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise ValueError(f"law must be one of {', '.join(LAWS)}; got {self.law!r}")
        if not self.target:
            raise ValueError("a certificate names its target; got an empty one")
        for name, high in _RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            object.__setattr__(self, name, float(value))
            if not 0.0 <= value <= high:
                raise ValueError(f"{name} must lie in [0, {high:g}]; got {value}")
        stated = [name for name in _BOUNDS if getattr(self, name) is not None]
        if self.law == "bounded":
            if not stated:
                raise ValueError("a bounded law states a number in total_variation, kl or gap")
            if not self.confidence:
                raise ValueError("a bounded law states a positive confidence (1 for a sure bound)")
        if self.law == "exact" and any(getattr(self, name) for name in stated):
            raise ValueError(f"an exact law has no distance, yet {stated[0]} is positive")
        if self.law in ("consistent", "search") and self.total_variation is not None:
            raise ValueError(
                f"a {self.law} law proves no total_variation; an estimate of the distance "
                "belongs in estimated_total_variation"
            )

    def __str__(self) -> str:
        sentences = [self._statement()]
        if self.estimated_total_variation is not None:
            sentences.append(
                f"The total variation distance is estimated, without proof, at "
                f"{self.estimated_total_variation:.3g}."
            )
        if self.covers:
            sentences.append(f"Covers: {self.covers}.")
        if self.excludes:
            sentences.append(f"Excludes: {self.excludes}.")
        return " ".join(sentences)

    def _statement(self) -> str:
        target = self.target if self.target.startswith(("the ", "The ")) else f"the {self.target}"
        gap = "" if self.gap is None else f" The optimality gap is {self.gap:.3g}."
        if self.law == "exact":
            return f"The draws follow {target} exactly."
        if self.law == "search":
            return f"The draws come from a search for {target}, not from that law.{gap}"
        if self.law == "consistent":
            grows = f" as {self.budget} grows" if self.budget else " as the sample grows"
            return f"The law of the draws tends to {target}{grows}.{gap}"
        numbers = [
            f"{words} {value:.3g}"
            for words, value in (
                ("total variation", self.total_variation),
                ("KL divergence", self.kl),
                ("optimality gap", self.gap),
            )
            if value is not None
        ]
        return (
            f"The draws are within {' and '.join(numbers)} of {target}, "
            f"with confidence {self.confidence:.6g}."
        )

    def to_dict(self) -> dict[str, Any]:
        """
        The fields as plain numbers and strings, for JSON.

        >>> Certificate(target="joint tilt", law="exact").to_dict()["law"]
        'exact'
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Certificate:
        """
        Rebuilds a certificate from :meth:`to_dict`.

        :param fields: the fields by name.
        :raises ValueError: for a name that is no field.

        >>> made = Certificate(target="joint tilt", law="consistent", budget="num_samples")
        >>> Certificate.from_dict(made.to_dict()) == made
        True
        """
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"no fields of a certificate: {', '.join(unknown)}")
        return cls(**fields)


_BOUNDS = ("total_variation", "kl", "gap")
_RANGES = {
    "total_variation": 1.0,
    "estimated_total_variation": 1.0,
    "confidence": 1.0,
    "kl": math.inf,
    "gap": math.inf,
}


def weakest(certificates: Iterable[Certificate]) -> Certificate:
    """
    The certificate of draws pooled from several certified runs of one target.

    The law is the weakest of the words. A distance of the mixture is at most the largest of
    its parts, by convexity; it is stated only where every part states it (an exact part states
    zero, a bound on the KL divergence states a total variation by Pinsker's inequality). The
    confidences combine by the union bound :math:`1 - \\sum_i (1 - c_i)`, and a bounded law whose
    confidence is used up, or whose parts share no measure of distance, becomes consistent.

    :param certificates: at least one certificate.
    :raises ValueError: for no certificate, or for different targets.

    >>> sure = Certificate(target="joint tilt", law="exact")
    >>> near = Certificate(target="joint tilt", law="bounded", total_variation=0.1, confidence=0.9)
    >>> pooled = weakest([sure, near, near])
    >>> pooled.law, pooled.total_variation, round(pooled.confidence, 6)
    ('bounded', 0.1, 0.8)
    """
    certs = list(certificates)
    if not certs:
        raise ValueError("weakest needs at least one certificate")
    targets = sorted({cert.target for cert in certs})
    if len(targets) > 1:
        raise ValueError(f"the certificates state different targets: {', '.join(targets)}")
    if all(cert == certs[0] for cert in certs) and certs[0].confidence in (None, 1.0):
        return certs[0]
    law = max((cert.law for cert in certs), key=LAWS.index)
    bounds = {name: _largest(certs, getter) for name, getter in _GETTERS.items()}
    stated = [cert.confidence for cert in certs if cert.confidence is not None]
    confidence = max(0.0, 1.0 - sum(1.0 - c for c in stated)) if stated else None
    estimate = bounds["estimated_total_variation"]
    if law == "bounded" and (not confidence or all(bounds[name] is None for name in _BOUNDS)):
        law = "consistent"
    if law != "bounded":
        if any(c.total_variation or c.estimated_total_variation for c in certs):
            estimate = _largest(certs, _any_total_variation)
        bounds.update(total_variation=None, kl=None)
        confidence = None
    bounds["estimated_total_variation"] = estimate
    if law == "exact":
        bounds = dict.fromkeys(bounds)
    return Certificate(
        target=targets[0],
        law=law,
        confidence=confidence,
        budget=_join(cert.budget for cert in certs),
        covers=_join(cert.covers for cert in certs) or "",
        excludes=_join(cert.excludes for cert in certs) or "",
        **bounds,
    )


def _total_variation(cert: Certificate) -> float | None:
    if cert.law == "exact":
        return 0.0
    if cert.total_variation is None and cert.law == "bounded" and cert.kl is not None:
        return min(1.0, math.sqrt(cert.kl / 2.0))
    return cert.total_variation


def _any_total_variation(cert: Certificate) -> float | None:
    estimate = cert.estimated_total_variation
    return _total_variation(cert) if estimate is None else estimate


_GETTERS: dict[str, Callable[[Certificate], float | None]] = {
    "total_variation": _total_variation,
    "kl": lambda cert: 0.0 if cert.law == "exact" else cert.kl,
    "gap": lambda cert: 0.0 if cert.law == "exact" else cert.gap,
    "estimated_total_variation": lambda cert: cert.estimated_total_variation,
}


def _largest(
    certs: list[Certificate], getter: Callable[[Certificate], float | None]
) -> float | None:
    values = [getter(cert) for cert in certs]
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def _join(words: Iterable[str | None]) -> str | None:
    return "; ".join(dict.fromkeys(word for word in words if word)) or None
