# SPDX-License-Identifier: Apache-2.0
"""Tilts of tilts."""

from __future__ import annotations

from pyro_tilt.distributions.registry import ExactTilt, find_tilt, register_tilt
from pyro_tilt.distributions.tilted import Tilted
from pyro_tilt.rewards import Reward


@register_tilt(Tilted, Reward)
def tilt_again(base: Tilted, reward: Reward) -> ExactTilt | None:
    r"""
    A tilt of a tilt is one tilt by the sum of the rewards.

    .. math::

        \frac{p\, e^{r_1} e^{r_2}}{Z_{12}}, \qquad
        \mathbb{E}_{q_1} e^{r_2} = Z_{12} / Z_1

    :param base: the first tilt.
    :param reward: the second reward, beta folded in.
    """
    first = base.exact_tilt()
    if first is not None and first.law is not None and first.method == "closed form":
        return find_tilt(first.law, reward)
    if first is None:
        return None
    both = find_tilt(base.base, base.scaled_reward + reward)
    if both is None:
        return None
    log_z = both.log_normalizer - first.log_normalizer
    return ExactTilt(both.law, log_z, both.method, both.error + first.error)
