# SPDX-License-Identifier: Apache-2.0
"""Tokens of an aligned draft, accepted or replaced so that they follow a tilt of the target."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.evidence import equal_log_weights
from pyro_tilt.infer.pooled import refuse_shared_minibatches
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler
from pyro_tilt.infer.speculative.models import MeteredProgram, check_programs
from pyro_tilt.infer.speculative.token_rules import TokenRule, judge
from pyro_tilt.infer.speculative.waiting import Ran, StepRunner, Waiting, side_by_side
from pyro_tilt.infer.stepwise.rows import fork, put_rows
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.importance import log_evidence
from pyro_tilt.poutine.align import Of, align

__all__ = ["RewardShifted"]

RULES = ("normalised", "published")
_MODELS = ("target", "aligned", "reference")


class RewardShifted(Sampler):
    r"""Reward-shifted speculative sampling: every token comes from a draft that carries the reward.

    With a target :math:`\pi_T`, an aligned draft :math:`\pi_r` and the draft before its alignment
    :math:`\pi_s`, a token of :math:`\pi_r` is accepted or replaced by one of a residual law.

    ``rule="normalised"``: with :math:`q = \pi_T\pi_r / (\pi_s Z)`, acceptance
    :math:`\min(1, q/\pi_r)` and residual :math:`(q - \pi_r)_+`; every token follows q exactly
    (derived here). Normalised at every token, this is *not* the tilt of whole sequences,

    .. math:: \pi(y) \propto \pi_T(y)\, \frac{\pi_r(y)}{\pi_s(y)},

    which it equals only where Z is the same after every beginning; the product of all Z of a draw
    is its ``residual_log_weights``, which correct the draws to it, and their mean the evidence.

    ``rule="published"``: acceptance :math:`\min(1, \pi_T/\pi_s)` and residual
    :math:`(\pi_r(\pi_T/\pi_s - 1))_+` (arXiv 2508.15044). A token then follows q if and only if
    Z = 1 (derived here).

    The programs have one categorical site per step. A step runs once in each of the three, and once
    more where a token was replaced; looking several tokens ahead, as an implementation for speed
    does, would change the cost and not the law.

    Certificate: *exact*, for the token-by-token law of the rule, which
    :func:`pyro_tilt.language.laws.shifted_speculative` gives. There is no beta. The log ratio of
    that law to the target at each draw is ``stats["log_ratio"]``, whose mean is the divergence. A
    reward has no part in the draws: it is evaluated on them, as ``stats["reward"]``.

    :param program: the target; see :class:`~pyro_tilt.infer.Sampler` for it and all options not
        named here.
    :param aligned: the aligned draft, a program of the same sites.
    :param reference: the draft before its alignment.
    :param str rule: ``"normalised"`` or ``"published"``.
    :param reward: what to evaluate on the draws, if anything.
    :param of: what it reads, as in :func:`~pyro_tilt.poutine.align`.
    :raises TypeError: for a beta.
    :raises ValueError: for sites or vocabularies that differ, a step without one categorical site,
        a reference without mass where target and aligned draft have some, or where the published
        rule rejects and leaves no residual.

    Example::

        >>> from pyro_tilt.language import TabularLM
        >>> target, small, tuned = (TabularLM.random(3, 2, seed=seed) for seed in range(3))
        >>> result = RewardShifted(
        ...     target.program(), aligned=tuned.program(), reference=small.program(),
        ...     num_samples=100, seed=0,
        ... ).run()
        >>> result.samples["tokens"].shape, result.certificate.law
        (torch.Size([100, 2]), 'exact')
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        aligned: Callable[..., Any],
        reference: Callable[..., Any],
        rule: str = "normalised",
        reward: Any = None,
        of: Of = None,
        **options: Any,
    ) -> None:
        if options.get("beta") is not None:
            raise TypeError(
                "RewardShifted takes no beta: the aligned draft carries the strength of its reward"
            )
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
        super().__init__(program, **options)
        for name, each in (("aligned", aligned), ("reference", reference)):
            if not callable(each):
                raise TypeError(f"{name} must be callable, got {type(each).__name__}")
        if not self.vectorized:
            raise NotImplementedError("RewardShifted has no vectorized=False")
        self.programs = {"target": program, "aligned": aligned, "reference": reference}
        self.rule, self.reward, self.of = rule, reward, of

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        check_programs(self.programs, run.args, run.kwargs)
        metered = {name: MeteredProgram(each) for name, each in self.programs.items()}
        nesting = self.max_plate_nesting
        proposals = {
            name: ProgramProposal(
                self._read(name, each), run.args, run.kwargs, max_plate_nesting=nesting
            )
            for name, each in metered.items()
        }
        for each in metered.values():
            each.reset()
        run.rows.rows = None
        generator = torch.Generator().manual_seed(run.accept_seed)
        parts, filled = [], 0
        with run.bar(self.num_samples) as bar:
            while filled < self.num_samples:
                count = min(self.num_samples - filled, self.max_batch)
                writer = _Writer(proposals, metered, TokenRule(self.rule, generator), count)
                parts.append(writer.write())
                filled += count
                bar.update(count)
        return self._result(run, parts, metered)

    def _read(self, name: str, program: MeteredProgram) -> Callable[..., Any]:
        """The program, the target with the reward that is read off its draws."""
        if self.reward is None or name != "target":
            return program
        return align(program, self.reward, 1.0, of=self.of)

    def _result(
        self, run: Run, parts: list[_Sequences], metered: dict[str, MeteredProgram]
    ) -> WeightedSamples:
        log_z = torch.cat([part.log_z for part in parts])
        accepted = torch.cat([part.accepted for part in parts])
        normalised = self.rule == "normalised"
        none, nothing = log_z.new_tensor(math.nan), log_z.new_empty(0)
        value, error = log_evidence(log_z) if normalised else (none, none)
        info = {"acceptance_rate": float(accepted.mean())}
        for name, each in metered.items():
            info.update(each.info(name))
        rewards = torch.cat([part.reward for part in parts if part.reward is not None] or [nothing])
        stats = {"accepted": accepted, "log_ratio": torch.cat([p.log_ratio for p in parts])}
        if len(rewards):
            stats["reward"] = rewards
        rows = math.ceil(sum(each.rows for each in metered.values()) - 1e-6)
        return WeightedSamples(
            kind="iid",
            samples={k: torch.cat([p.values[k] for p in parts]) for k in parts[0].values},
            log_weights=equal_log_weights(value, len(log_z)),
            log_normalizer=value,
            log_normalizer_error=error,
            residual_log_weights=log_z if normalised else None,
            certificate=self._certificate(),
            cost=replace(run.cost(rows), reward_calls=len(rewards)),
            stats=stats,
            info=info,
            sampler=type(self).__name__,
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
        )

    def _certificate(self) -> Certificate:
        if self.rule == "normalised":
            return Certificate(
                target="token tilt of the target by the ratio of aligned draft to reference",
                law="exact",
                covers="independent draws, which residual_log_weights correct to the tilt of whole "
                "sequences",
                excludes="the tilt of whole sequences, which this is only where the normaliser of "
                "a token is the same after every beginning",
            )
        return Certificate(
            target="published law of reward-shifted speculative sampling",
            law="exact",
            covers="independent draws",
            excludes="the token tilt, which this is only where its normaliser is 1, and the tilt "
            "of whole sequences",
        )


@dataclass
class _Sequences:
    """
    Sequences of a batch.

    :ivar values: of the sites.
    :ivar log_z: log of the product of normalisers.
    :ivar accepted: share of tokens.
    :ivar log_ratio: log of their law over that of the target.
    :ivar reward: None where there is none.
    """

    values: dict[str, Tensor]
    log_z: Tensor
    accepted: Tensor
    log_ratio: Tensor
    reward: Tensor | None


class _Writer:
    """Writes sequences token by token with three programs side by side."""

    def __init__(
        self,
        proposals: dict[str, ProgramProposal],
        metered: dict[str, MeteredProgram],
        rule: TokenRule,
        count: int,
    ) -> None:
        self.proposals, self.metered, self.rule, self.count = proposals, metered, rule, count
        self.values: dict[str, Tensor] = {}
        self.log_z = torch.zeros(count, dtype=torch.float64)
        self.accepted = torch.zeros(count, dtype=torch.float64)
        self.log_ratio = torch.zeros(count, dtype=torch.float64)
        self.reward: Tensor | None = None

    def write(self) -> _Sequences:
        """All steps, and what follows them in the target."""
        runners = [StepRunner(self.proposals[name]) for name in _MODELS]
        side_by_side(runners, self.count, self._steps)
        shapes = {k: site.shape for k, site in self.proposals["target"]._sites.recorded.items()}
        values = {k: v.reshape(self.count, *shapes[k]) for k, v in self.values.items()}
        return _Sequences(values, self.log_z, self.accepted, self.log_ratio, self.reward)

    def _steps(self, waiting: list[Waiting]) -> None:
        models = dict(zip(_MODELS, waiting, strict=True))
        lengths = {name: len(each.xs) for name, each in models.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the programs must have the same steps; they have {lengths}")
        carries = {name: each.carry for name, each in models.items()}
        xs = models["target"].xs
        for k, x in enumerate(xs):
            carries = self._token(models, carries, x, k)
        finisher = StepRunner(self.proposals["target"])
        end = finisher.finish(carries["target"], self.values, self.count)
        self.values.update(end.values)
        for reward, _ in end.rewards:
            self.reward = reward

    def _token(
        self, models: dict[str, Waiting], carries: dict[str, Any], x: Any, k: int
    ) -> dict[str, Any]:
        rows = torch.arange(self.count)
        drawn: dict[str, Ran] = {}
        known: dict[str, Tensor] = {}
        for name in ("aligned", "reference", "target"):
            drawn[name] = self._run(models[name], name, carries[name], x, rows, known, k)
            known = drawn["aligned"].values
        where = f"step {k}"
        laws = {name: each.laws for name, each in drawn.items()}
        judged = judge(self.rule, laws, known, where)
        accepted, value = judged.accepted, judged.value
        self.log_z = self.log_z + judged.log_z.to(self.log_z)
        self.log_ratio = self.log_ratio + judged.log_ratio.to(self.log_ratio)
        self.accepted += accepted.double().cpu() / len(models["target"].xs)
        replaced = (~accepted).nonzero().squeeze(-1).cpu()
        after = {name: each.carry for name, each in drawn.items()}
        values = drawn["target"].values
        if len(replaced):
            known = {judged.site: value[replaced.to(value.device)]}
            for name in _MODELS:
                again = self._run(models[name], name, carries[name], x, replaced, known, k)
                after[name] = put_rows(after[name], replaced, again.carry)
                if name == "target":
                    values = put_rows(values, replaced, again.values, path="sites")
        self.values.update(values)
        return after

    def _run(
        self,
        model: Waiting,
        name: str,
        carry: Any,
        x: Any,
        rows: Tensor,
        known: dict[str, Tensor],
        k: int,
    ) -> Ran:
        size = len(rows)
        # The first carry belongs to no row.
        carry = copy.deepcopy(carry) if k == 0 else fork(carry, rows, self.count)
        self.metered[name].rows += size / len(model.xs)
        return model.advance(carry, [x], size, known)
