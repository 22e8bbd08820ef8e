# SPDX-License-Identifier: Apache-2.0
"""Exact laws of selection rules on finite sets of outcomes, and their bounds.

A law maps probabilities of outcomes and their rewards to the probabilities with which a rule
keeps them: for n draws, not in a limit. Every function works along the last dimension, in
logarithms inside; ``log=True`` takes and gives log probabilities.
"""

from pyro_tilt.language.laws.blockwise import blockwise
from pyro_tilt.language.laws.bounds import (
    gsi_kl_bound,
    relative_variance,
    smoothing_lens_bound,
    soft_best_of_n_kl_bound,
    soft_best_of_n_kl_rate,
    soft_best_of_n_range_bound,
)
from pyro_tilt.language.laws.guided import (
    exact_accept,
    gsi,
    gsi_acceptance,
    gsi_limit,
    reward_guided,
    tilted_rewards,
)
from pyro_tilt.language.laws.order_statistics import best_of_n
from pyro_tilt.language.laws.rejection import (
    ExpBestOfNParts,
    exp_best_of_n,
    exp_best_of_n_parts,
    truncated_rejection,
)
from pyro_tilt.language.laws.shifted import shifted_acceptance, shifted_speculative, token_tilt
from pyro_tilt.language.laws.soft import soft_best_of_n, tilt

__all__ = [
    "ExpBestOfNParts",
    "best_of_n",
    "blockwise",
    "exact_accept",
    "exp_best_of_n",
    "exp_best_of_n_parts",
    "gsi",
    "gsi_acceptance",
    "gsi_kl_bound",
    "gsi_limit",
    "relative_variance",
    "reward_guided",
    "shifted_acceptance",
    "shifted_speculative",
    "smoothing_lens_bound",
    "soft_best_of_n",
    "soft_best_of_n_kl_bound",
    "soft_best_of_n_kl_rate",
    "soft_best_of_n_range_bound",
    "tilt",
    "tilted_rewards",
    "token_tilt",
    "truncated_rejection",
]
