# SPDX-License-Identifier: Apache-2.0
"""Baselines that were learned: a function of state and step, to be saved and used again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_tilt._version import __version__
from pyro_tilt.infer.twists.features import carry_features, holds_particles
from pyro_tilt.infer.twists.learned import LearnedTwist
from pyro_tilt.infer.twists.networks import StepHeads
from pyro_tilt.infer.twists.step_keys import StepKeys
from pyro_tilt.ops.baselines import chernoff_bound
from pyro_tilt.rewards.moving import move

__all__ = ["BaselineReport", "LearnedBaselines", "load_baselines", "no_features"]

FORMAT_VERSION = 1
RULES = ("chernoff", "marginal", "budget", "exchange")
# Heads of higher orders are trusted only to make a shape up to this one.
_LARGEST_NORM = 3.0


@dataclass
class BaselineReport:
    r"""
    How the training went, by step, on pairs that trained nothing.

    :ivar epsilon: share of the clipped mass of each step, shape (T,).
    :ivar clipped_mass: the estimate of :math:`E\,\kappa`, shape (T,).
    :ivar proposals: the estimate of the mean number of proposals, shape (T,).
    :ivar shift: :math:`\tau_t`, shape (T,).
    :ivar effective_sample_size: of :math:`e^{sA - \psi_s}` for each order, shape (K, T); heads
        below 50 are not used.
    :ivar loss: LINEX loss of each head, shape (K, T).
    :ivar chains: number of chains they were trained on.
    :ivar seconds: wall time.
    """

    epsilon: Tensor
    clipped_mass: Tensor
    proposals: Tensor
    shift: Tensor
    effective_sample_size: Tensor
    loss: Tensor
    chains: int
    seconds: float


class LearnedBaselines:
    r"""
    Baselines :math:`b_t(y)` from heads :math:`\psi_s(y) \approx \log E[e^{sA_t} \mid y]`.

    To be handed to :class:`~pyro_tilt.infer.LCB` as ``baseline=``; made by
    :func:`~pyro_tilt.infer.stepwise.learn_baselines`, which tells the rules. Every baseline is
    shifted by :math:`\tau_t`, and lies neither above the largest A of the training nor below
    :math:`\psi_1(y)`, the log normaliser of its step.

    :ivar rule: ``"chernoff"``, ``"marginal"``, ``"budget"`` or ``"exchange"``.
    :ivar orders: s of the heads, the first of them 1.
    :ivar epsilon: clipped mass of a whole path that they were made for, the start included.
    :ivar report: how the training went.
    """

    def __init__(
        self,
        heads: Sequence[LearnedTwist],
        orders: Sequence[float],
        *,
        rule: str,
        epsilon: float,
        budget: float = 10.0,
        gap: LearnedTwist | None = None,
        features: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.heads, self.orders = list(heads), list(orders)
        self.rule, self.epsilon, self.budget, self.gap = rule, epsilon, budget, gap
        self.own_features = features is not None
        self.features = carry_features if features is None else features
        steps = heads[0].num_steps
        self.keys = heads[0].keys
        like = heads[0].offset
        self.shift = torch.zeros_like(like)
        self.ceiling = torch.full_like(like, math.inf)
        self.epsilons = torch.full_like(like, epsilon / (steps + 1))
        self.trusted = torch.ones(len(heads), steps, dtype=torch.bool, device=like.device)
        self.report: BaselineReport | None = None

    def __call__(self, carry: Any, x: Any) -> Tensor:
        """
        The baselines of the states before a step.

        :param carry: before the step, of N particles.
        :param x: the element of ``xs`` of the step.
        :returns: shape (N,), float64; (1,) where the carry holds no tensor yet, as before the
            first token of a language program, and all particles have one baseline.
        """
        place = self.keys(x)
        return self.value(self.read(carry, place), place)

    def log_mgf(self, carry: Any, x: Any) -> Tensor:
        """
        What the heads say, for each of ``orders``.

        :param carry: before the step, of N particles.
        :param x: the element of ``xs`` of the step.
        :returns: shape (N, K), float64.
        """
        place = self.keys(x)
        return self.psi(self.read(carry, place), place)

    def read(self, carry: Any, place: int) -> Tensor:
        """The features of the states before a step; a carry without particles is one state."""
        head = self.heads[0]
        if not holds_particles(carry):
            return head.padded(no_features(1, head.mean.device))
        return head.read(carry, place)

    @property
    def twists(self) -> list[LearnedTwist]:
        """The heads and, of rule ``"exchange"``, what lies above them."""
        return self.heads if self.gap is None else [*self.heads, self.gap]

    def psi(self, features: Tensor, place: int) -> Tensor:
        """The heads from features, shape (N, K)."""
        with torch.no_grad():
            return torch.stack([head.value(features, place) for head in self.heads], -1)

    def value(self, features: Tensor, place: int) -> Tensor:
        """The baselines from features, shape (N,)."""
        psi = self.psi(features, place)
        return self.shifted(self.raw(psi, features, place), psi[:, 0], place)

    def raw(self, psi: Tensor, features: Tensor, place: int) -> Tensor:
        """Before shift, floor and ceiling, shape (N,)."""
        log_z, trusted = psi[:, 0], self.trusted[:, place]
        orders = psi.new_tensor(self.orders)
        if self.rule == "budget":
            return log_z + math.log(self.budget)
        if self.rule == "exchange":
            assert self.gap is not None
            with torch.no_grad():
                return log_z + self.gap.value(features, place)
        if self.rule == "marginal":
            usable = trusted & (orders <= max(_LARGEST_NORM, 1.0))
            best = int(usable.nonzero().max())
            return psi[:, best] / orders[best]
        lam, rest = orders[1:] - 1.0, psi[:, 1:]
        bounds = chernoff_bound(rest, psi[:, :1], lam, float(self.epsilons[place]))
        return bounds.masked_fill(~trusted[1:], math.inf).amin(-1)

    def shifted(self, raw: Tensor, log_z: Tensor, place: int, shift: Any = None) -> Tensor:
        """With shift, ceiling and floor, shape (N,)."""
        moved = raw + (self.shift[place] if shift is None else shift)
        return torch.maximum(torch.minimum(moved, self.ceiling[place]), log_z)

    def to(self, *args: Any, **kwargs: Any) -> LearnedBaselines:
        """A copy whose tensors are moved as by :meth:`torch.Tensor.to`."""
        return move(self, *args, **kwargs)

    def save(self, path: str | PathLike[str]) -> None:
        """
        Writes tensors and plain numbers, and no code: :func:`load_baselines` executes nothing.

        :param path: the file, which is replaced where it exists.
        """
        content = {
            "format": FORMAT_VERSION,
            "version": __version__,
            "baselines": self.rule,
            "orders": self.orders,
            "epsilon": self.epsilon,
            "budget": self.budget,
            "own_features": self.own_features,
            "keys": self.keys.to_list(),
            "widths": self.heads[0].widths,
            **{name: getattr(self, name) for name in _TENSORS},
            "networks": [_packed(twist) for twist in self.twists],
            "report": None if self.report is None else asdict(self.report),
        }
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            torch.save(content, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def no_features(size: int, device: torch.device) -> Tensor:
    """
    What is read of a carry without particles: one column of zeros.

    :param size: number of particles.
    :param device: of the networks.
    """
    return torch.zeros(size, 1, device=device)


_TENSORS = ("shift", "ceiling", "epsilons", "trusted")


def load_baselines(
    path: str | PathLike[str],
    *,
    features: Callable[[Any], Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> LearnedBaselines:
    """
    Reads baselines that :meth:`LearnedBaselines.save` wrote.

    :param path: the file.
    :param features: the function that they were trained with, where there was one.
    :param device: where the tensors go.
    :raises ValueError: for another kind of file, one of a later format, or without ``features``.
    """
    content = torch.load(Path(path), map_location=device, weights_only=True)
    if not isinstance(content, dict) or "baselines" not in content:
        raise ValueError(f"{path} holds no learned baselines")
    if content["format"] > FORMAT_VERSION:
        raise ValueError(
            f"{path} is in format {content['format']}, written by pyro_tilt {content['version']}, "
            f"but this version ({__version__}) reads formats up to {FORMAT_VERSION}"
        )
    if content["own_features"] and features is None:
        raise ValueError(f"{path} was trained with a features function; give it as features=")
    keys = StepKeys.from_list(content["keys"])
    widths = content.get("widths")
    twists = [_unpacked(part, keys, features, widths) for part in content["networks"]]
    count = len(content["orders"])
    found = LearnedBaselines(
        twists[:count],
        content["orders"],
        rule=content["baselines"],
        epsilon=content["epsilon"],
        budget=content["budget"],
        gap=twists[count] if len(twists) > count else None,
        features=features,
    )
    for name in _TENSORS:
        setattr(found, name, content[name])
    if content["report"] is not None:
        found.report = BaselineReport(**content["report"])
    return found


def _packed(twist: LearnedTwist) -> dict[str, Any]:
    return {
        "settings": twist.network.settings,
        "state": dict(twist.network.state_dict()),
        **{name: getattr(twist, name) for name in ("mean", "spread", "offset")},
    }


def _unpacked(
    part: dict[str, Any],
    keys: StepKeys,
    features: Callable[[Any], Tensor] | None,
    widths: list[int] | None,
) -> LearnedTwist:
    dim = part["mean"].shape[1]
    network = StepHeads(dim, len(keys), **part["settings"]).to(part["mean"])
    network.load_state_dict(part["state"])
    twist = LearnedTwist(network, keys, dim, features=features, widths=widths)
    twist.mean, twist.spread, twist.offset = (part[k] for k in ("mean", "spread", "offset"))
    return twist
