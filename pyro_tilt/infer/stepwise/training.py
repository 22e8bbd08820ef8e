# SPDX-License-Identifier: Apache-2.0
"""Fits baselines to the states of chains on their way, one step after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.infer.errors import ZeroWeights
from pyro_tilt.infer.seeding import derive_seed, seeded
from pyro_tilt.infer.stepwise.learned import BaselineReport, LearnedBaselines, no_features
from pyro_tilt.infer.stepwise.sources import Moment
from pyro_tilt.infer.stepwise.split import split_by_cost
from pyro_tilt.infer.twists.features import holds_particles
from pyro_tilt.infer.twists.fitting import Pairs, calibrate_step, fit
from pyro_tilt.infer.twists.learned import LearnedTwist, check_features
from pyro_tilt.infer.twists.networks import StepHeads
from pyro_tilt.infer.twists.step_keys import StepKeys
from pyro_tilt.ops.baselines import exchange_loss
from pyro_tilt.ops.importance import effective_sample_size, log_mean_exp
from pyro_tilt.ops.log_mgf import MIN_ESS

__all__ = ["Settings", "Trainer", "clipped_mass"]

_SHIFTS = torch.linspace(-6.0, 6.0, 241, dtype=torch.float64)


@dataclass(frozen=True)
class Settings:
    """What :func:`~pyro_tilt.infer.stepwise.learn_baselines` was told."""

    rule: str
    epsilon: float
    by_cost: bool
    budget: float
    exchange_rate: float
    orders: tuple[float, ...]
    features: Callable[[Any], Tensor]
    own_features: bool
    draws_per_state: int
    held_out: float
    steps: int
    batch_size: int
    lr: float
    width: int
    depth: int
    seed: int


@dataclass
class _HeldOut:
    """Pairs that trained nothing: A, the log normaliser and the raw baseline of each."""

    A: Tensor
    log_z: Tensor
    raw: Tensor


@dataclass
class Trainer:
    """
    Baselines that are fitted as the chains come to a step, and serve them at once.

    :ivar settings: see there.
    """

    settings: Settings
    baselines: LearnedBaselines | None = None
    xs: list[Any] = field(default_factory=list)
    _held: list[_HeldOut] = field(default_factory=list)
    _sizes: list[list[float]] = field(default_factory=list)
    _losses: list[list[float]] = field(default_factory=list)
    _epsilons: Tensor | None = None

    def __call__(self, at: Moment) -> Tensor:
        """The baselines of a step, fresh from its fit."""
        settings = self.settings
        with seeded(derive_seed(settings.seed, 3, at.place)):
            self.xs.append(at.x)
            StepKeys(self.xs)
            A = at.draw(settings.draws_per_state)
            if holds_particles(at.carry):
                features = check_features(settings.features(at.carry), None, at.place)
            else:
                features = no_features(at.size, A.device)
            if self.baselines is None:
                self.baselines = _start(settings, features, at.num_steps)
            learned = self.baselines
            for twist in learned.twists:
                _make_room(twist, at.place, features.shape[1])
            features = learned.heads[0].padded(features)
            self._fit(learned, features, A.to(learned.shift), at)
            return learned.value(features, at.place)

    def finish(self, seconds: float) -> LearnedBaselines:
        """The baselines with their report, epsilon split anew where that was asked for."""
        learned, settings = self.baselines, self.settings
        assert learned is not None
        keys = StepKeys(self.xs)
        learned.keys = keys
        for twist in learned.twists:
            twist.keys = keys
            assert isinstance(twist.network, StepHeads)
            twist.network.pad(twist.mean.shape[1])
        if settings.by_cost:
            self._split(learned)
        masses, proposals = [], []
        for place, held in enumerate(self._held):
            b = learned.shifted(held.raw, held.log_z, place)
            masses.append(clipped_mass(held.A, held.log_z, b))
            proposals.append(float((b - held.log_z).exp().mean()) / (1.0 - masses[-1]))
        learned.report = BaselineReport(
            epsilon=learned.epsilons.clone() if self._epsilons is None else self._epsilons,
            clipped_mass=torch.tensor(masses, dtype=torch.float64),
            proposals=torch.tensor(proposals, dtype=torch.float64),
            shift=learned.shift.clone(),
            effective_sample_size=torch.tensor(self._sizes, dtype=torch.float64).T.contiguous(),
            loss=torch.tensor(self._losses, dtype=torch.float64).T.contiguous(),
            chains=0,
            seconds=seconds,
        )
        return learned

    def _fit(self, learned: LearnedBaselines, features: Tensor, A: Tensor, at: Moment) -> None:
        settings, place = self.settings, at.place
        if bool(A.isneginf().all()):
            raise ZeroWeights(
                f"{at.where}: the value is -inf at every proposal of every chain: nothing is left "
                "to align to. Check the value function, or train on more chains"
            )
        learned.ceiling[place] = A.max()
        parts = _parts(len(A), settings.held_out)
        train, judge, held = ((features[rows], A[rows]) for rows in parts)
        sizes, losses = [], []
        for head, order in zip(learned.heads, settings.orders):
            _scale(head, place, train[0])
            size, loss = self._head(head, order, place, train, judge, at)
            sizes.append(size)
            losses.append(loss)
        self._sizes.append(sizes)
        self._losses.append(losses)
        learned.trusted[:, place] = torch.tensor(sizes) >= MIN_ESS
        learned.trusted[0, place] = True
        if learned.gap is not None:
            _scale(learned.gap, place, train[0])
            self._gap(learned, place, train, judge)
        self._calibrate(learned, place, held)

    def _head(
        self, head: LearnedTwist, order: float, place: int, train: Any, judge: Any, at: Moment
    ) -> tuple[float, float]:
        settings = self.settings
        pairs = [_pairs(place, part, order) for part in (train, judge)]
        head.offset[place] = log_mean_exp(pairs[0].returns)
        assert isinstance(head.network, StepHeads)
        if not bool(head.offset[place].isfinite()) or not bool((judge[1] > -math.inf).any()):
            raise ZeroWeights(
                f"{at.where}: too few proposals have a value above -inf to learn from; train on "
                "more chains, or soften the reward"
            )
        fit(
            head,
            head.network.heads[place],
            pairs[:1],
            pairs[1:],
            steps=settings.steps,
            batch_size=settings.batch_size,
            lr=settings.lr,
        )
        found = calibrate_step(head, pairs[1])
        return found.effective_share * len(pairs[1].returns), found.loss

    def _gap(self, learned: LearnedBaselines, place: int, train: Any, judge: Any) -> None:
        """Fits how far the exchange baseline lies above the log normaliser."""
        gap, rate = learned.gap, self.settings.exchange_rate
        assert gap is not None and isinstance(gap.network, StepHeads)
        excess = []
        for features, A in (train, judge):
            log_z = learned.heads[0].value(features, place)
            excess.append((A - log_z.unsqueeze(-1)).flatten())
        start = excess[0].quantile(1.0 - 1.0 / max(rate, 1.0 + 1e-9)) if rate > 1.0 else 0.0
        gap.offset[place] = max(0.0, float(start))
        repeats = train[1].shape[1]
        rows = [gap.scaled(part[0], place).repeat_interleave(repeats, 0) for part in (train, judge)]
        _descend(gap, place, rows, excess, rate, self.settings)

    def _calibrate(self, learned: LearnedBaselines, place: int, held: Any) -> None:
        features, A = held
        psi = learned.psi(features, place)
        raw = learned.raw(psi, features, place)
        repeats = A.shape[1]
        log_z, raw = psi[:, 0].repeat_interleave(repeats), raw.repeat_interleave(repeats)
        A = A.flatten()
        self._held.append(_HeldOut(A, log_z, raw))
        if learned.rule in ("budget", "exchange"):
            return
        low, high = float(_SHIFTS[0]), float(_SHIFTS[-1])
        if float(effective_sample_size(A - log_z)) < MIN_ESS:
            # Too few pairs to say that the baselines may come down.
            low = 0.0
        epsilon = float(learned.epsilons[place])
        for _ in range(40):
            middle = 0.5 * (low + high)
            b = learned.shifted(raw, log_z, place, middle)
            # One standard error up, as the shift is chosen by these very pairs.
            within = clipped_mass(A, log_z, b, errors=1.0) <= epsilon
            low, high = (low, middle) if within else (middle, high)
        learned.shift[place] = high

    def _split(self, learned: LearnedBaselines) -> None:
        """Shifts all steps to where they trade proposals for clipped mass at one rate."""
        masses, costs = [], []
        for place, held in enumerate(self._held):
            at = [learned.shifted(held.raw, held.log_z, place, s) for s in _SHIFTS.tolist()]
            masses.append([clipped_mass(held.A, held.log_z, b, errors=1.0) for b in at])
            costs.append([float((b - held.log_z).exp().mean()) for b in at])
        mass, cost = torch.tensor(masses).double(), torch.tensor(costs).double()
        total = float(learned.epsilons.sum())
        found = split_by_cost(mass, cost / (1.0 - mass), total)
        learned.shift = _SHIFTS[found].to(learned.shift)
        self._epsilons = mass.gather(1, found.unsqueeze(1)).squeeze(1)


def clipped_mass(A: Tensor, log_z: Tensor, b: Tensor, *, errors: float = 0.0) -> float:
    r"""
    The estimate of :math:`E_y \kappa(y) = E[e^{-V(y)} (e^A - e^{b(y)})_+]` from pairs.

    :param A: one or more per state, shape (N,).
    :param log_z: V of each, shape (N,).
    :param b: baseline of each, shape (N,).
    :param errors: standard errors to add.
    """
    weights = (A - log_z).exp()
    share = -torch.expm1((b - A).clamp(max=0.0).nan_to_num(nan=0.0, neginf=0.0))
    total = float(weights.sum())
    mass = float((weights * share).sum()) / total
    if not errors:
        return mass
    spread = float((weights * (share - mass)).square().sum()) ** 0.5 / total
    return mass + errors * spread


def _start(settings: Settings, features: Tensor, num_steps: int) -> LearnedBaselines:
    keys, dim = StepKeys(range(num_steps)), features.shape[1]
    own = settings.features if settings.own_features else None

    def network() -> LearnedTwist:
        heads = StepHeads(dim, num_steps, width=settings.width, depth=settings.depth)
        return LearnedTwist(heads.to(features.device), keys, dim, features=own)

    return LearnedBaselines(
        [network() for _ in settings.orders],
        settings.orders,
        rule=settings.rule,
        epsilon=settings.epsilon,
        budget=settings.budget,
        gap=network() if settings.rule == "exchange" else None,
        features=own,
    )


def _make_room(twist: LearnedTwist, place: int, width: int) -> None:
    """Lets a step have more features than those before it, by a fresh head of its own."""
    twist.widths[place] = width
    missing = width - twist.mean.shape[1]
    if missing > 0:
        twist.mean = nn.functional.pad(twist.mean, (0, missing))
        twist.spread = nn.functional.pad(twist.spread, (0, missing), value=1.0)
    assert isinstance(twist.network, StepHeads)
    twist.network.renew(place, twist.mean.shape[1])


def _parts(count: int, held_out: float) -> list[Tensor]:
    """Rows to train on, to judge by, and held out."""
    order, kept = torch.randperm(count), max(1, round(0.5 * held_out * count))
    return [order[2 * kept :], order[:kept], order[kept : 2 * kept]]


def _pairs(place: int, part: tuple[Tensor, Tensor], order: float) -> Pairs:
    features, A = part
    return Pairs(place, features.repeat_interleave(A.shape[1], 0), order * A.flatten())


def _scale(twist: LearnedTwist, place: int, states: Tensor) -> None:
    spread, mean = torch.std_mean(states, 0)
    # Indicators stay as they are: a rare one would be blown up.
    plain = ((states == states.amin(0)) | (states == states.amax(0))).all(0)
    twist.mean[place] = mean.masked_fill(plain, 0.0)
    twist.spread[place] = spread.masked_fill(plain, 1.0)


def _descend(
    gap: LearnedTwist,
    place: int,
    rows: list[Tensor],
    excess: list[Tensor],
    rate: float,
    settings: Settings,
) -> None:
    """Minimises the Rockafellar-Uryasev loss by Adam and keeps what judges best."""
    assert isinstance(gap.network, StepHeads)
    module, offset = gap.network.heads[place], gap.offset[place]
    rest = [(each - offset).to(gap.mean) for each in excess]

    def loss(part: Tensor, above: Tensor) -> Tensor:
        # In units of the first baseline, whose exponential may be large.
        return exchange_loss(module(part).squeeze(-1), above, 0.0, rate).mean()

    def judged() -> float:
        with torch.no_grad():
            return float(loss(rows[1], rest[1]))

    def copied() -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in module.state_dict().items()}

    best, kept = judged(), copied()
    module.requires_grad_(True)
    optimizer = torch.optim.Adam(module.parameters(), lr=settings.lr)
    every = max(1, settings.steps // 10)
    with torch.enable_grad():
        for done in range(1, settings.steps + 1):
            share = 0.5 * (1.0 + math.cos(math.pi * (done - 1) / settings.steps))
            optimizer.param_groups[0]["lr"] = settings.lr * share
            # Few pairs lie above a high quantile, so that batches must be larger than its odds.
            size = min(len(rest[0]), max(settings.batch_size, int(20 * rate)))
            index = torch.randint(len(rest[0]), (size,), device=rest[0].device)
            optimizer.zero_grad(set_to_none=True)
            loss(rows[0][index], rest[0][index]).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            if done % every == 0 or done == settings.steps:
                now = judged()
                if now < best:
                    best, kept = now, copied()
    module.requires_grad_(False)
    module.load_state_dict(kept)
