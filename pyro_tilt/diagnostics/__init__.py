# SPDX-License-Identifier: Apache-2.0
"""Reading results: summaries, estimators, plots, and export to ArviZ."""

from pyro_tilt.diagnostics.estimators import Estimate, kl_to_base, reward_gain, total_variation
from pyro_tilt.diagnostics.plots import (
    plot_acceptance,
    plot_ess,
    plot_evidence,
    plot_health,
    plot_reward,
    plot_weights,
)
from pyro_tilt.diagnostics.summary import Summary, summary
from pyro_tilt.diagnostics.to_arviz import to_arviz

__all__ = [
    "Estimate",
    "Summary",
    "kl_to_base",
    "plot_acceptance",
    "plot_ess",
    "plot_evidence",
    "plot_health",
    "plot_reward",
    "plot_weights",
    "reward_gain",
    "summary",
    "to_arviz",
    "total_variation",
]
