# SPDX-License-Identifier: Apache-2.0
"""The answer: every primitive with its reason, and the one that is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyro_tilt.infer.sampler import Sampler
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.tractability.entry import Entry
from pyro_tilt.tractability.hardness import Hardness
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.table import plan_html, plan_text

__all__ = ["Plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """
    What :func:`plan` returns; it prints as a table.

    :ivar problem: what was asked.
    :ivar entries: one :class:`Entry` for every primitive of the closeness, in order of preference.
    :ivar choice: the entry that is taken; None where none that applies is affordable.
    :ivar hardness: the hardness results that the reward falls under on this kind of base.
    :ivar advice: a sentence on the other closeness, or nothing.
    :ivar min_acceptance: the least predicted acceptance of what is picked.

    >>> import pyro.distributions as dist
    >>> from pyro_tilt import plan, rewards
    >>> found = plan(dist.Normal(0.0, 1.0), rewards.Linear(1.5))
    >>> found.choice.name, found.choice.law
    ('Tilted', 'exact')
    >>> round(found.run(num_samples=4000, seed=0).expectation("x").item(), 1)
    1.5
    """

    problem: Problem = field(repr=False)
    entries: tuple[Entry, ...]
    choice: Entry | None
    hardness: tuple[Hardness, ...] = ()
    advice: str = ""
    min_acceptance: float = 0.01

    @property
    def applicable(self) -> list[Entry]:
        """The entries that can be run, in order of preference."""
        return [entry for entry in self.entries if entry.applicable]

    def entry(self, name: str) -> Entry:
        """
        The entry of one primitive.

        :param name: its name.
        :raises ValueError: for a name that is not in the plan.
        """
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise ValueError(
            f"the plan has no primitive {name!r}; it has {', '.join(e.name for e in self.entries)}"
        )

    def sampler(self, method: str | None = None, **options: Any) -> Sampler:
        """
        The sampler of the choice, or of another primitive that applies.

        :param method: the name of a primitive; by default the choice.
        :param options: of the sampler, such as ``num_samples`` and ``seed``.
        :raises ValueError: where the primitive does not apply, or nothing was chosen.
        """
        entry = self.choice if method is None else self.entry(method)
        if entry is None:
            raise ValueError(f"no primitive was picked: {self.why_none} Pass method= to take one")
        if entry.make is None:
            raise ValueError(f"{entry.name} does not apply: {entry.reason}")
        return entry.make(**options)

    def run(
        self,
        num_samples: int = 1000,
        seed: int | None = None,
        *,
        method: str | None = None,
        **options: Any,
    ) -> WeightedSamples:
        """
        Draws by the choice, or by another primitive that applies.

        :param num_samples: number of draws.
        :param seed: makes the run reproduce.
        :param method: the name of a primitive; by default the choice.
        :param options: more options of the sampler.
        :raises ValueError: where the primitive does not apply, or nothing was chosen.
        """
        sampler = self.sampler(method, num_samples=num_samples, seed=seed, **options)
        return sampler.run(*self.problem.base.args, **self.problem.base.kwargs)

    @property
    def why_none(self) -> str:
        """Why nothing was picked, as a sentence; empty where something was."""
        if self.choice is not None:
            return ""
        if not self.applicable:
            return "none applies."
        rates = ", ".join(
            f"{e.name} {e.acceptance:.2g}{'' if e.trusted else ' at best'}" for e in self.applicable
        )
        return (
            f"those that apply are predicted to accept less than min_acceptance = "
            f"{self.min_acceptance:g}, or the pilot cannot tell ({rates})."
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as numbers and words, ready for JSON."""
        problem = self.problem
        return {
            "base": problem.base.name,
            "kind": problem.kind,
            "reward": type(problem.reward).__name__,
            "beta": problem.beta,
            "closeness": problem.closeness,
            "penalty": problem.penalty if problem.closeness == "wasserstein" else None,
            "radius": problem.radius,
            "choice": None if self.choice is None else self.choice.name,
            "entries": [entry.to_dict() for entry in self.entries],
            "hardness": [hard.to_dict() for hard in self.hardness],
            "advice": self.advice,
        }

    def __str__(self) -> str:
        return plan_text(self)

    def _repr_html_(self) -> str:
        return plan_html(self)
