# SPDX-License-Identifier: Apache-2.0
"""Whether values that came out no better than constants had something to learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from scipy import stats
from torch import Tensor

from pyro_tilt.infer.errors import ZeroWeights
from pyro_tilt.infer.twists.fitting import Calibration
from pyro_tilt.infer.twists.recording import Recording
from pyro_tilt.ops.importance import effective_sample_size
from pyro_tilt.ops.log_mgf import MIN_ESS

__all__ = ["beats_constants", "future_depends", "states_that_matter"]

# How often one of all steps may seem to beat its constant by chance.
LUCK = 0.01
# How often a future that does not depend on the state may seem to, over all steps looked at.
FALSE_ALARMS = 1e-3
# Constants that leave the returns a larger effective share are as good as any values.
_AS_GOOD = 0.99


def beats_constants(found: Sequence[Calibration]) -> bool:
    r"""
    Whether the values of any step beat its best constant, beyond what held-out noise explains.

    Of T steps, one counts whose mean gain exceeds its standard error by the normal quantile at
    :math:`1 - 0.01 / T`. Where constants are as good as any values, with an effective share above
    .99 at every step, there is nothing to beat.

    :param found: one per step; those without a loss do not count.
    """
    found = [each for each in found if each.loss == each.loss]
    if all(each.constant_share > _AS_GOOD for each in found):
        return True
    quantile = float(stats.norm.isf(LUCK / len(found)))
    return any(each.gain > quantile * each.gain_error + 1e-9 for each in found)


def states_that_matter(num_steps: int, run: Callable[[int], Recording]) -> int | None:
    """
    Position of a step on whose states the future is seen to depend, None where none is seen.

    Looks at the last step, the first and one between, and stops at the first that tells.

    :param num_steps: of the program.
    :param run: makes a run that forks after the step at a position.
    """
    places = list(dict.fromkeys((num_steps - 1, 0, num_steps // 2)))
    for place in places:
        try:
            made = run(place)
        except ZeroWeights:
            continue
        ahead = torch.stack(made.increments[place + 1 :] + [made.tail]).sum(0)
        mask = made.mattering(place)
        if mask is not None:
            ahead = ahead[mask.to(ahead.device)]
        if future_depends(*ahead.chunk(2), level=FALSE_ALARMS / len(places)):
            return place
    return None


def future_depends(first: Tensor, second: Tensor, *, level: float) -> bool:
    r"""
    Whether :math:`E[e^A \mid c]` varies with the state c, from two returns of each state.

    Given c the two are independent, so that the rank r of one and the weight
    :math:`w = e^A / E e^A` of the other have the covariance
    :math:`E[(E[r \mid c] - \bar r)(E[w \mid c] - 1)]`, which is zero where the values are
    constant, even if the law of A varies around them. A one-sided t test on it, silent where the
    weights have an effective sample size below 50.

    :param first: returns, shape (N,); ``-inf`` is legal.
    :param second: other returns from the same states, shape (N,).
    :param level: of the test.

    >>> values = torch.randn(500, generator=torch.manual_seed(0)).double()
    >>> future_depends(values, values, level=1e-3)
    True
    >>> future_depends(values, values.flip(0), level=1e-3)
    False
    """
    joined = torch.cat([first, second]).double().cpu()
    if (
        not len(joined)
        or not bool(joined.amax() > -math.inf)
        or float(effective_sample_size(joined)) < MIN_ESS
    ):
        return False
    weights = joined.softmax(0) * len(joined) - 1.0
    ranks = torch.as_tensor(stats.rankdata(joined.numpy())) / len(joined)
    w, r = weights.chunk(2), (ranks - ranks.mean()).chunk(2)
    products = r[0] * w[1] + r[1] * w[0]
    error = float(products.std()) / math.sqrt(len(products))
    if error == 0.0:
        return False
    return float(stats.t.sf(float(products.mean()) / error, len(products) - 1)) < level
