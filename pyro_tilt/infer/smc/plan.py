# SPDX-License-Identifier: Apache-2.0
"""What SMC knows of a program before it runs it over particles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_tilt.infer.program_sites import ProgramSites
from pyro_tilt.infer.proposal import ProgramProposal

__all__ = ["StepPlan"]


class StepPlan(ProgramProposal):
    """
    A program with steps: its plain run, where one is needed.

    The plain run guesses ``max_plate_nesting`` and shows a bad reward before the long work. Where
    the nesting is given there is none, and shapes are read off the run over particles.

    :ivar has_steps: whether the program has any, True where that is unknown.
    """

    def __init__(
        self,
        program: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        max_plate_nesting: int | None,
    ) -> None:
        self.known = max_plate_nesting is None
        self.has_steps = True
        super().__init__(program, args, kwargs, max_plate_nesting=max_plate_nesting)

    def _plain_run(self) -> tuple[ProgramSites, int]:
        if not self.known:
            return ProgramSites(), 0
        with _FindSteps() as finder:
            sites = super()._plain_run()
        self.has_steps = finder.found
        return sites

    @property
    def names(self) -> list[str]:
        """The sites of the plain run; none where there was no such run."""
        return [*self._sites.recorded, *self._sites.factors]

    def serves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the plan was made for these very arguments."""
        return (
            len(args) == len(self.args)
            and kwargs.keys() == self.kwargs.keys()
            and all(a is b for a, b in zip(args, self.args))
            and all(kwargs[name] is self.kwargs[name] for name in kwargs)
        )

    @property
    def base_is_normalized(self) -> bool:
        """Whether tilts alone weigh the program: without them its evidence is one."""
        return len(self._sites.factors) == len(self._sites.tilts)

    def check_names(self, sampled: Sequence[str], factors: Sequence[str]) -> None:
        """
        Compares the sites of a run with those of the plain run.

        :param sampled: names of latent and deterministic sites.
        :param factors: names of observations and factors.
        :raises ValueError: where they differ, as with another number of steps.
        """
        if not self.known:
            return
        first = {*self._sites.recorded, *self._sites.factors}
        here = {*sampled, *factors}
        if here != first:
            odd = sorted(here ^ first)
            raise ValueError(
                f"the sites of the program vary between runs: {odd[:6]} occur in one run and not "
                "in another; give every run the same sites and the same number of steps"
            )

    def layout(
        self, values: Mapping[str, Tensor], ranks: Mapping[str, int], n: int
    ) -> dict[str, Tensor]:
        """
        Values in the shapes of a result, particles first, singleton dims of other plates dropped.

        :param values: values of sites as the program saw them.
        :param ranks: number of batch dims of the plates around each site.
        :param n: number of particles.
        """
        if self.known:
            kept = {name: site for name, site in self._sites.recorded.items() if name in values}
            whole, self._sites.recorded = self._sites.recorded, kept
            try:
                return self.place(values, n)
            finally:
                self._sites.recorded = whole
        placed = {}
        for name, value in values.items():
            spare = self.max_plate_nesting - ranks.get(name, 0)
            shape = value.shape[1:]
            if spare and shape[:spare] == (1,) * spare:
                shape = shape[spare:]
            placed[name] = value.reshape(n, *shape)
        return placed


class _FindSteps(Messenger):
    """Sees whether a program has steps."""

    found = False

    def __enter__(self) -> _FindSteps:
        self.found = False
        super().__enter__()
        return self

    def _pyro_tilt_scan(self, msg: Any) -> None:
        self.found = True

    def _pyro_tilt_checkpoint(self, msg: Any) -> None:
        self.found = True
