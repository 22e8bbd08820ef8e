# SPDX-License-Identifier: Apache-2.0
"""Runs a program and fits values to what came out, round by round."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_tilt.infer.errors import ZeroWeights
from pyro_tilt.infer.seeding import derive_seed
from pyro_tilt.infer.smc.plan import StepPlan
from pyro_tilt.infer.twists.fitting import Calibration, Pairs, calibrate_step, fit
from pyro_tilt.infer.twists.learned import LearnedTwist, TwistReport
from pyro_tilt.infer.twists.networks import SharedNetwork, StepHeads
from pyro_tilt.infer.twists.recording import Recording, record
from pyro_tilt.infer.twists.step_keys import StepKeys
from pyro_tilt.infer.twists.verdict import beats_constants, states_that_matter
from pyro_tilt.ops import log_mean_exp
from pyro_tilt.ops.pool import acceptance_generator

__all__ = ["Options", "Trainer"]

# So many pairs that matter make a constant of their own.
_FEW = 50


@dataclass
class Options:
    """What :func:`~pyro_tilt.infer.twists.learn_twists` was told."""

    features: Callable[[Any], Tensor]
    standardize: bool
    network: str | nn.Module
    num_particles: int
    num_held_out: int
    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    where: Callable[[Any], Tensor] | None
    ess_threshold: float


class Trainer:
    """Holds the twist and the runs while rounds go by."""

    def __init__(
        self,
        plan: StepPlan,
        options: Options,
        features: Callable[[Any], Tensor] | None,
        progress: bool | None,
    ) -> None:
        self.plan, self.options, self.given = plan, options, features
        self.progress = progress
        self.twist: LearnedTwist | None = None
        self.runs: list[Recording] = []
        self.calibrations: list[list[Calibration]] = []
        self.paths = 0

    def round(self, number: int, rounds: int) -> None:
        """Runs the program thrice, fits all steps and calibrates them."""
        sizes = (self.options.num_particles, *[self.options.num_held_out] * 2)
        train, judge, held_out = (self._record(number, size) for size in sizes)
        if self.twist is None:
            self.twist = _start(train, self.options, self.given)
        for run in (train, judge, held_out):
            _check_widths(run, self.twist)
        self.runs.append(train)
        twist = self.twist
        bar = tqdm(
            total=twist.num_steps,
            desc=f"learn_twists {number + 1}/{rounds}",
            unit=" steps",
            disable=self.progress is False,
            delay=0 if self.progress else 3,
        )
        with bar:
            if isinstance(twist.network, StepHeads):
                found = self._backward(twist, [*self.runs, judge, held_out], bar)
            else:
                found = self._together(twist, [*self.runs, judge, held_out], bar)
            losses = torch.tensor([each.loss for each in found])
            bar.set_postfix(loss=float(losses.nanmean()))
        self.calibrations.append(found)

    def finish(self, seconds: float) -> LearnedTwist:
        """The twist with its report."""
        assert self.twist is not None

        def table(name: str) -> Tensor:
            rows = [[getattr(each, name) for each in found] for found in self.calibrations]
            return torch.tensor(rows, dtype=torch.float64)

        names = ("loss", "constant_loss", "shift", "effective_share")
        self.twist.report = TwistReport(
            **{name: table(name) for name in names}, paths=self.paths, seconds=seconds
        )
        self.twist.value_calls = 0
        return self.twist

    def failed_at(self) -> int | None:
        """A step with something to learn, where nothing was learned at any; see ``verdict``."""
        found = self.calibrations[-1]
        if beats_constants(found):
            return None
        return states_that_matter(len(found), self._forked)

    def _forked(self, place: int) -> Recording:
        size = 2 * (self.options.num_particles // 2)
        self.paths += size
        return record(
            self.plan,
            size,
            features=self.options.features,
            twist=None,
            where=self.options.where,
            ess_threshold=0.0,
            seed=derive_seed(acceptance_generator().initial_seed(), self.paths),
            fork_after=place,
        )

    def _record(self, number: int, size: int) -> Recording:
        separate = self.options.network == "heads" or isinstance(self.options.network, StepHeads)
        threshold = self.options.ess_threshold if number or separate else 0.0
        self.paths += size
        return record(
            self.plan,
            size,
            features=self.options.features,
            twist=self.twist,
            where=self.options.where,
            ess_threshold=threshold,
            seed=derive_seed(acceptance_generator().initial_seed(), self.paths),
        )

    def _backward(
        self, twist: LearnedTwist, runs: Sequence[Recording], bar: tqdm
    ) -> list[Calibration]:
        """Fits one step after the other, each with the values after it as they now are."""
        assert isinstance(twist.network, StepHeads)
        following: list[Tensor | None] = [None] * len(runs)
        found = []
        for place in reversed(range(twist.num_steps)):
            pairs = [_pairs(run, place, after, twist) for run, after in zip(runs, following)]
            following = [each.returns for each in pairs]
            *train, judge, held_out = [_kept(run, each) for run, each in zip(runs, pairs)]
            self._centre(twist, pairs[:-2], train)
            self._fit(twist, twist.network.heads[place], [train], [judge], self.options.steps)
            found.append(self._calibrate(twist, held_out))
            bar.update()
        return found[::-1]

    def _together(
        self, twist: LearnedTwist, runs: Sequence[Recording], bar: tqdm
    ) -> list[Calibration]:
        """Fits all steps at once, to the values of the round before where paths are cut."""
        following: list[Tensor | None] = [None] * len(runs)
        table = []
        for place in reversed(range(twist.num_steps)):
            pairs = [_pairs(run, place, after, twist) for run, after in zip(runs, following)]
            following = [each.returns for each in pairs]
            kept = [_kept(run, each) for run, each in zip(runs, pairs)]
            self._centre(twist, pairs[:-2], kept[:-2])
            table.append(kept)
        steps = self.options.steps * twist.num_steps
        train, judge = [row[:-2] for row in table], [row[-2] for row in table]
        self._fit(twist, twist.network, train, judge, steps)
        bar.update(twist.num_steps)
        return [self._calibrate(twist, row[-1]) for row in reversed(table)]

    def _fit(
        self,
        twist: LearnedTwist,
        module: nn.Module,
        train: Sequence[list[Pairs]],
        judge: list[Pairs],
        steps: int,
    ) -> None:
        fit(
            twist,
            module,
            [_joined(group) for group in train],
            judge,
            steps=steps,
            batch_size=self.options.batch_size,
            lr=self.options.lr,
            weight_decay=self.options.weight_decay,
        )

    def _centre(self, twist: LearnedTwist, pairs: list[Pairs], kept: list[Pairs]) -> None:
        """Starts the values of a step at the best constant, in the first round."""
        if len(self.runs) > 1:
            return
        joined = _joined(kept)
        few = self.options.where is not None and len(joined.returns) < _FEW
        _centre(twist, _joined(pairs) if few else joined)

    def _calibrate(self, twist: LearnedTwist, held_out: Pairs) -> Calibration:
        """Leaves the values alone where too few pairs matter to say anything of them."""
        if self.options.where is not None and len(held_out.returns) < _FEW:
            return Calibration(0.0, *[math.nan] * 6)
        return calibrate_step(twist, held_out)


def _start(
    run: Recording, options: Options, features: Callable[[Any], Tensor] | None
) -> LearnedTwist:
    keys, first = StepKeys(run.xs), run.features[0]
    widths = [each.shape[1] for each in run.features]
    dim, count = max(widths), len(run.xs)
    network = options.network
    if isinstance(network, str):
        if network not in ("heads", "shared"):
            raise ValueError(f"network must be 'heads', 'shared' or a module, got {network!r}")
        network = (StepHeads if network == "heads" else SharedNetwork)(dim, count).to(first.device)
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a module, got {type(network).__name__}")
    if not isinstance(network, StepHeads):
        # One network for all steps takes a column for the same thing at each of them.
        for place in range(1, count):
            if widths[place] < widths[place - 1]:
                raise ValueError(
                    f"features= returned {widths[place - 1]} columns at step {place - 1} and "
                    f"{widths[place]} at step {place}, and a network that all steps share cannot "
                    "tell which were left out; return as many at every step, or use "
                    "network='heads'"
                )
    twist = LearnedTwist(network, keys, dim, features=features, widths=widths)
    for place in range(count if options.standardize else 0):
        states = twist.padded(run.states(place))
        spread, mean = torch.std_mean(states, 0)
        # Indicators stay as they are: a rare one would be blown up.
        plain = ((states == states.amin(0)) | (states == states.amax(0))).all(0)
        twist.mean[place] = mean.masked_fill(plain, 0.0)
        twist.spread[place] = spread.masked_fill(plain, 1.0)
    return twist


def _check_widths(run: Recording, twist: LearnedTwist) -> None:
    for place, (each, width) in enumerate(zip(run.features, twist.widths)):
        if each.shape[1] != width:
            raise ValueError(
                f"features= returned {width} columns at step {place} in one run and "
                f"{each.shape[1]} in another; their number may depend on the step alone"
            )


def _pairs(run: Recording, place: int, following: Tensor | None, twist: LearnedTwist) -> Pairs:
    returns = run.returns(place, following, twist)
    return Pairs(place, twist.padded(run.states(place)), returns.to(twist.offset))


def _kept(run: Recording, pairs: Pairs) -> Pairs:
    """The pairs that matter."""
    mask = run.mattering(pairs.place)
    if mask is None:
        return pairs
    return Pairs(pairs.place, pairs.features[mask], pairs.returns[mask.to(pairs.returns.device)])


def _joined(group: Sequence[Pairs]) -> Pairs:
    return Pairs(
        group[0].place,
        torch.cat([each.features for each in group]),
        torch.cat([each.returns for each in group]),
    )


def _centre(twist: LearnedTwist, pairs: Pairs) -> None:
    """Starts the values of a step at the best constant."""
    constant = log_mean_exp(pairs.returns)
    if not bool(constant.isfinite()):
        raise ZeroWeights(
            f"learn_twists: none of {len(pairs.returns)} paths has a weight after step "
            f"{pairs.place}: the reward or an observation is -inf for every one. Use more "
            "particles, or soften the constraint"
        )
    twist.offset[pairs.place] = constant
