# SPDX-License-Identifier: Apache-2.0
"""Fits the values of steps to returns, and calibrates them on returns not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.infer.twists.learned import LearnedTwist, floored
from pyro_tilt.infer.twists.linex import linex_loss
from pyro_tilt.ops import effective_sample_size, log_mean_exp

__all__ = ["Calibration", "Pairs", "calibrate_step", "fit"]

# How often the parameters are judged on pairs that do not train them.
_LOOKS = 10


@dataclass
class Pairs:
    """
    States of one step and returns from them.

    :ivar place: position of the step; of a batch of several, those of all pairs, shape (N,).
    :ivar features: shape (N, d).
    :ivar returns: shape (N,), in float64.
    """

    place: Any
    features: Tensor
    returns: Tensor


@dataclass
class Calibration:
    """
    What held-out pairs say of one step.

    :ivar shift: added to the log values.
    :ivar loss: LINEX loss after the shift.
    :ivar constant_loss: that of the best constant.
    :ivar effective_share: of the held-out pairs.
    :ivar constant_share: that under the best constant.
    :ivar gain: by how much the loss lies below that of the constant.
    :ivar gain_error: its standard error over the held-out pairs.
    """

    shift: float
    loss: float
    constant_loss: float
    effective_share: float
    constant_share: float
    gain: float
    gain_error: float


def fit(
    twist: LearnedTwist,
    module: nn.Module,
    train: Sequence[Pairs],
    judge: Sequence[Pairs],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float = 0.0,
) -> None:
    """
    Minimises the LINEX loss by Adam and keeps the parameters that judge best.

    A batch holds pairs of one step, or of all where the network says ``mixes_steps = True``: then
    what is common to the steps is not torn to and fro between them.

    :param twist: the values, changed in place.
    :param module: holds the parameters to train.
    :param train: pairs of the steps to fit.
    :param judge: pairs that choose among the parameters on the way.
    :param steps: gradient steps.
    :param batch_size: pairs per gradient step.
    :param lr: the first learning rate; it falls to zero along a cosine.
    :param weight_decay: apart from the gradient, as a share per unit of learning rate.
    """
    parameters = list(module.parameters())
    train, judge = (
        [_scaled(twist, each) for each in group if len(each.returns)] for group in (train, judge)
    )
    if not parameters or not steps or not train or not judge:
        return
    best, kept = _loss(twist.network, judge), _copy(module)
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    every = max(1, steps // _LOOKS)
    mixed = len(train) > 1 and getattr(twist.network, "mixes_steps", False)
    draw = _batch_of_all if mixed else _batch_of_one
    try:
        with torch.enable_grad():
            for done in range(1, steps + 1):
                for group in optimizer.param_groups:
                    group["lr"] = 0.5 * lr * (1.0 + math.cos(math.pi * (done - 1) / steps))
                batch = draw(train, batch_size)
                _descend(twist.network, batch, optimizer, parameters)
                if done % every == 0 or done == steps:
                    loss = _loss(twist.network, judge)
                    if loss < best:
                        best, kept = loss, _copy(module)
    finally:
        module.requires_grad_(False)
        module.load_state_dict(kept)


def calibrate_step(twist: LearnedTwist, held_out: Pairs) -> Calibration:
    r"""
    Shifts the values of a step so that the held-out mean of :math:`e^{A - f}` is one.

    :param twist: the values, changed in place.
    :param held_out: pairs that neither trained nor judged.
    """
    place = held_out.place
    with torch.no_grad():
        values = twist.value(held_out.features, place)
        gap = held_out.returns - values
        shift = float(log_mean_exp(gap))
        if shift == -math.inf:
            raise ValueError(
                f"learn_twists: no held-out path has a weight after step {place}; use more "
                "particles, or soften the reward"
            )
        twist.offset[place] += shift
        losses = linex_loss(values + shift, held_out.returns)
        constant = log_mean_exp(held_out.returns)
        gains = linex_loss(constant.expand_as(values), held_out.returns) - losses
        error = float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return Calibration(
        shift=shift,
        loss=float(losses.mean()),
        constant_loss=1.0 + float(constant),
        effective_share=float(effective_sample_size(gap)) / len(gap),
        constant_share=float(effective_sample_size(held_out.returns)) / len(gap),
        gain=float(gains.mean()),
        gain_error=error,
    )


def _scaled(twist: LearnedTwist, pairs: Pairs) -> Pairs:
    """The pairs as the network sees them, the offset taken out."""
    features = twist.scaled(pairs.features, pairs.place)
    returns = pairs.returns - twist.offset[pairs.place]
    return Pairs(pairs.place, features, returns.to(features.dtype))


def _batch_of_one(train: Sequence[Pairs], size: int) -> Pairs:
    """Pairs of one step, all where there are no more."""
    pairs = train[0] if len(train) == 1 else train[int(torch.randint(len(train), ()))]
    if len(pairs.returns) <= size:
        return pairs
    index = torch.randint(len(pairs.returns), (size,), device=pairs.returns.device)
    return Pairs(pairs.place, pairs.features[index], pairs.returns[index])


def _batch_of_all(train: Sequence[Pairs], size: int) -> Pairs:
    """Pairs of all steps, each as likely as any other."""
    ends = torch.tensor([len(each.returns) for each in train]).cumsum(0)
    index = torch.randint(int(ends[-1]), (size,))
    step = torch.searchsorted(ends, index, right=True)
    parts = []
    for k in step.unique().tolist():
        rows = index[step == k] - (int(ends[k - 1]) if k else 0)
        rows = rows.to(train[k].returns.device)
        places = torch.full_like(rows, int(train[k].place))
        parts.append((places, train[k].features[rows], train[k].returns[rows]))
    return Pairs(*(torch.cat(each) for each in zip(*parts)))


def _descend(
    network: nn.Module,
    batch: Pairs,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
) -> None:
    optimizer.zero_grad(set_to_none=True)
    values = floored(network(batch.features, batch.place))
    linex_loss(values, batch.returns).mean().backward()
    # One return far above its value has an exponentially large slope.
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def _loss(network: nn.Module, pairs: Sequence[Pairs]) -> float:
    with torch.no_grad():
        parts = [linex_loss(floored(network(p.features, p.place)), p.returns).sum() for p in pairs]
    loss = float(torch.stack(parts).sum()) / sum(len(p.returns) for p in pairs)
    return loss if loss == loss else math.inf


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
