# SPDX-License-Identifier: Apache-2.0
"""After every block of steps, the one of several copies with the largest value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_tilt.infer.best_of_n import align_for_choice, refuse_factors, warn_of_excluded
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.sampler import Run, check_count
from pyro_tilt.infer.selection.engine import StepSelector
from pyro_tilt.infer.selection.groups import Choose, Selected
from pyro_tilt.infer.selection.messenger import Value
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.poutine.align import Of

__all__ = ["BlockBestOfN"]


class BlockBestOfN(StepSelector):
    r"""After every block of steps, of ``n`` copies the one with the largest value.

    In the last block the reward takes the place of the value; what comes before the scan belongs to
    the first block and is copied with it, so that a block of all steps is
    :class:`~pyro_tilt.infer.BestOfN`. Of equal values the first is kept (Singh et al. 2025, arXiv
    2502.00968).

    Certificate: *search*. The largest value is no draw from any tilt, and no ``n`` makes it one;
    there is neither a beta nor an evidence (``log_normalizer`` is nan).

    :param program: a Pyro program with one :func:`~pyro_tilt.scan` and no observations; see
        :class:`~pyro_tilt.infer.Sampler` for it and all options not named here.
    :param reward: the reward, which takes part in the last choice.
    :param of: what it reads, as in :func:`~pyro_tilt.poutine.align`; by default the return value.
    :param value: a function of the carry and of the element of ``xs`` that made it to one number
        per particle, of which only the order counts; None takes the twists that the program states.
    :param int n: copies of a block.
    :param int block: steps in a block; the last one may be shorter.
    :param bool check_lineage: look for variables that do not move with their particle, as in
        :class:`~pyro_tilt.infer.SMC`.
    :raises TypeError: for a beta.
    :raises ValueError: for a program with observations or factors, without a scan or a value.
    :raises TwistError: for a value that is NaN, ``+inf`` or of a wrong shape.
    :raises StepError: if the program raises at a step; what was kept before is attached.
    :raises ZeroWeights: if every draw has reward -inf; the draws are attached to the error.

    Example::

        >>> from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion
        >>> case = tabular_masked_diffusion()
        >>> result = BlockBestOfN(
        ...     case.program, reward=case.reward, value=case.twist(), n=4, block=2,
        ...     num_samples=200, seed=0,
        ... ).run()
        >>> result.certificate.law
        'search'
        >>> bool(result.stats["reward"].mean() > case.base_reward_mean)
        True
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        reward: Any,
        of: Of = None,
        value: Value | None = None,
        n: int = 5,
        block: int = 5,
        **options: Any,
    ) -> None:
        self.n = check_count("n", n)
        steps = check_count("block", block)
        program = align_for_choice(type(self).__name__, program, reward, of, options)
        super().__init__(program, width=self.n, steps=steps, value=value, **options)

    def _choose(self, run: Run) -> Choose:
        def choose(values: Tensor) -> Tensor:
            # The first of equal maxima is what argmax returns.
            return values.argmax(-1)

        return choose

    @property
    def _target(self) -> str:
        return f"largest reward by blocks (n={self.n}, {self.steps} steps)"

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_factors(type(self).__name__, run.proposal)
        return super()._sample(run)

    def _result(self, run: Run, selected: Selected, cost: Cost, target: str) -> WeightedSamples:
        return self._draws(
            run,
            selected,
            cost,
            certificate=Certificate(
                target=target,
                law="search",
                covers="independent draws; of equal values the first drawn",
            ),
            beta=None,
            info={"n": float(self.n), "kl_upper_bound": selected.kl_upper_bound(self.n)},
        )

    def _warn(self, result: WeightedSamples) -> None:
        warn_of_excluded(result, f"all {self.n} copies of the last block")
