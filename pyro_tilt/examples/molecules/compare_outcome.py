# SPDX-License-Identifier: Apache-2.0
"""What a way of aligning the molecules achieved, in numbers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_tilt.diagnostics import Estimate, FrontierPoint
from pyro_tilt.examples.means import Pair, mean_by_chain, mean_of
from pyro_tilt.examples.molecules.data import canonical
from pyro_tilt.examples.molecules.model import VOCABULARY
from pyro_tilt.examples.molecules.reward import qed
from pyro_tilt.infer import WeightedSamples

Kind = Literal["exact", "estimate", "bound"]


@dataclass
class Spent:
    """
    The divergence of what a method draws from the base model.

    :ivar value: in nats; None where nothing is known.
    :ivar error: Monte Carlo standard error, nan where there is none.
    :ivar how: how it was found.
    :ivar kind: whether it is ``"exact"``, an ``"estimate"`` or a ``"bound"`` from above.
    """

    value: float | None
    error: float = math.nan
    how: str = "not known"
    kind: Kind = "estimate"


@dataclass
class Outcome:
    """
    One row of the comparison.

    :ivar method: its name.
    :ivar draws: how many it gave.
    :ivar qed: mean of the draws, by their weights where they have any, with a standard error.
    :ivar valid: share that rdkit reads, weighted likewise.
    :ivar distinct: different molecules among the draws, weighted ones resampled to equal weights.
    :ivar corrected: mean under the weights that correct the draws to the tilt, with a standard
        error; None where there are none.
    :ivar ess: effective sample size of the weights, those of the correction where there is one.
    :ivar kl: divergence from the base model, see :class:`Spent`.
    :ivar target: that of the certificate, and ``law`` its word.
    :ivar target_rows: network rows of the large model, and ``draft_rows`` of the small one.
    :ivar training_rows: of the large model, outside the budget.
    :ivar seconds: of the run, and ``training_seconds`` of the training.
    :ivar molecules: different valid molecules, those with most draws first, and their QED.
    """

    method: str
    draws: int
    qed: Pair
    valid: float
    distinct: int
    corrected: Pair | None
    ess: float | None
    kl: Spent
    target: str
    law: str
    target_rows: int
    draft_rows: int
    seconds: float
    training_rows: int = 0
    training_seconds: float = 0.0
    info: dict[str, float] = field(default_factory=dict)
    molecules: list[tuple[str, float]] = field(default_factory=list, repr=False)

    def line(self) -> str:
        """A short line on the way."""
        return (
            f"{self.method:36} QED {self.qed[0]:.3f} ± {self.qed[1]:.3f}  valid {self.valid:.3f}  "
            f"{self.distinct:5d} of {self.draws:5d} differ  {self.target_rows:7d} rows  "
            f"{self.seconds:5.1f} s"
        )

    def point(self) -> FrontierPoint | None:
        """Where it lies between reward and divergence; None where that is not known."""
        if self.kl.value is None:
            return None
        return FrontierPoint(
            self.method,
            kl=Estimate(self.kl.value, 0.0 if self.kl.kind == "exact" else self.kl.error),
            reward=Estimate(*self.qed),
            kl_kind=self.kl.kind,
        )

    def facts(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def describe(
    method: str,
    result: WeightedSamples,
    spent: Spent,
    *,
    correction: Tensor | None = None,
    training_rows: int = 0,
    training_seconds: float = 0.0,
) -> Outcome:
    """
    The row of a result.

    :param method: its name.
    :param result: draws of molecules.
    :param spent: their divergence from the base.
    :param correction: log weights that correct them to the tilt; by default the residual weights.
    :param training_rows: see :class:`Outcome`.
    :param training_seconds: see :class:`Outcome`.
    """
    tokens = result.samples["tokens"]
    reward = result.stats["reward"].double()
    weights = result.normalized_weights
    names = [
        name if ended else "" for name, ended in zip(VOCABULARY.decode(tokens), _ended(tokens))
    ]
    found = {name: next(canonical([name], fitting=False), None) for name in set(names) if name}
    valid = torch.tensor([found.get(name) is not None for name in names])
    if result.kind == "weighted":
        chosen = result.get_samples(len(result), seed=0)["tokens"]
        texts = [text for text, ok in zip(VOCABULARY.decode(chosen), _ended(chosen)) if ok]
    else:
        texts = [name for name in names if name]
    counts = Counter(found[text] for text in texts if found.get(text) is not None)
    log_weights = result.residual_log_weights if correction is None else correction
    corrected, ess = None, result.ess if result.kind == "weighted" else None
    if log_weights is not None and bool((log_weights > -math.inf).any()):
        share = log_weights.double().softmax(0)
        corrected, ess = mean_of(reward, share), float(1.0 / share.square().sum())
    target_rows = result.info.get("target_network_rows", float(result.cost.network_rows or 0))
    ranked = [name for name, _ in counts.most_common() if name is not None]
    return Outcome(
        method=method,
        draws=len(result),
        qed=mean_by_chain(reward, result, dependent=shares_ancestors(result)),
        valid=float(weights[valid].sum()),
        distinct=len(counts),
        corrected=corrected,
        ess=ess,
        kl=spent,
        target=result.certificate.target,
        law=result.certificate.law,
        target_rows=int(target_rows),
        draft_rows=int(result.info.get("draft_network_rows", 0.0)),
        seconds=result.cost.seconds,
        training_rows=training_rows,
        training_seconds=training_seconds,
        info=dict(result.info),
        molecules=[(name, qed(name)) for name in ranked],
    )


def shares_ancestors(result: WeightedSamples) -> bool:
    """
    Whether draws of one run depend on each other, so that only runs can be compared.

    :param result: a result.
    """
    return result.kind == "weighted" and bool(result.steps)


def _ended(tokens: Tensor) -> list[bool]:
    found: list[bool] = (tokens == VOCABULARY.stop).any(-1).tolist()
    return found
