# SPDX-License-Identifier: Apache-2.0
"""Whether a token of an aligned draft is accepted, and what replaces it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.ops.importance import as_double

__all__ = ["Judged", "TokenRule", "judge"]


@dataclass
class TokenRule:
    """
    The rule and its random stream.

    :ivar name: ``"normalised"`` or ``"published"``.
    :ivar generator: of acceptances and replacements.
    """

    name: str
    generator: torch.Generator


@dataclass
class Judged:
    """
    What a rule made of a token of every row.

    :ivar site: its site.
    :ivar value: the tokens kept, (N,).
    :ivar accepted: which of them were accepted.
    :ivar log_z: the log normaliser Z.
    :ivar log_ratio: log probability of the token under the rule over that under the target.
    """

    site: str
    value: Tensor
    accepted: Tensor
    log_z: Tensor
    log_ratio: Tensor


def judge(
    rule: TokenRule, laws: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, Tensor], where: str
) -> Judged:
    """
    Accepts tokens or draws others.

    :param rule: the rule.
    :param laws: of the latent sites of the step, by model.
    :param drawn: the values of the aligned draft.
    :param where: names the step in an error.
    :raises ValueError: for a step without one categorical site, a reference without mass, or a
        rule that rejects and has nothing to put in place.
    """
    site = _site(laws, where)
    big, small, before = (_logits(laws[name][site]) for name in ("target", "aligned", "reference"))
    both = (big > -math.inf) & (small > -math.inf)
    if bool((both & (before == -math.inf)).any()):
        raise ValueError(
            f"site '{site}': the reference has no mass at tokens where target and aligned draft "
            "have some"
        )
    if not bool(both.any(-1).all()):
        raise ValueError(f"site '{site}': target and aligned draft have no token in common")
    shifted = small + torch.where(both, big - before, torch.full_like(big, -math.inf))
    log_z = shifted.logsumexp(-1)
    scaled = shifted - log_z.unsqueeze(-1) if rule.name == "normalised" else shifted
    value = drawn[site]
    flat = value.reshape(-1, 1).long()
    ratio = (scaled - small).gather(-1, flat).squeeze(-1)
    uniform = torch.rand(len(ratio), dtype=torch.float64, generator=rule.generator)
    accepted = uniform.log().to(ratio) < ratio
    token = flat.squeeze(-1).clone()
    rows = (~accepted).nonzero().squeeze(-1)
    if len(rows):
        token[rows] = _residual(scaled[rows], small[rows], rule, site)
    law = scaled if rule.name == "normalised" else _published(scaled, small)
    log_ratio = (law - big).gather(-1, token.unsqueeze(-1)).squeeze(-1)
    return Judged(site, token.reshape(value.shape).to(value.dtype), accepted, log_z, log_ratio)


def _published(scaled: Tensor, small: Tensor) -> Tensor:
    """The log law of a token, accepted or replaced, under the published rule."""
    accepted = torch.minimum(scaled, small).exp()
    lacking = (scaled.exp() - small.exp()).clamp(min=0.0)
    total = lacking.sum(-1, keepdim=True)
    rejected = (1.0 - accepted.sum(-1, keepdim=True)).clamp(min=0.0)
    return (accepted + torch.where(total > 0.0, rejected * lacking / total, lacking)).log()


def _residual(scaled: Tensor, small: Tensor, rule: TokenRule, site: str) -> Tensor:
    """A token of each row by what the draft lacks."""
    lacking = (scaled.exp() - small.exp()).clamp(min=0.0)
    empty = lacking.sum(-1) == 0.0
    if bool(empty.any()):
        if rule.name == "published":
            raise ValueError(
                f"site '{site}': the published rule rejects a token and leaves no residual, as the "
                "target is below the reference wherever the aligned draft has mass; use "
                "rule='normalised'"
            )
        # Equal laws reject by rounding alone.
        lacking = torch.where(empty.unsqueeze(-1), scaled.exp(), lacking)
    noise = torch.empty(lacking.shape, dtype=torch.float64).exponential_(generator=rule.generator)
    return (lacking.log() - noise.clamp_(min=1e-300).log_().to(lacking)).argmax(-1)


def _logits(law: Any) -> Tensor:
    logits = as_double(law.logits)
    return logits.reshape(-1, logits.shape[-1])


def _site(laws: Mapping[str, Mapping[str, Any]], where: str) -> str:
    names = list(laws["aligned"])
    fits = len(names) == 1 and all(
        list(each) == names
        and isinstance(each[names[0]], torch.distributions.Categorical)
        and each[names[0]].batch_shape.numel() == each[names[0]].batch_shape[0]
        for each in laws.values()
    )
    if not fits:
        raise ValueError(
            f"{where}: reward-shifted sampling takes steps of one categorical site without plates; "
            f"this one has {names}"
        )
    return names[0]
