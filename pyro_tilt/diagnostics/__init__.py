# SPDX-License-Identifier: Apache-2.0
"""Reading results: summaries, estimators, plots, and export to ArviZ."""

from pyro_tilt.diagnostics.estimators import Estimate, kl_to_base, reward_gain, total_variation
from pyro_tilt.diagnostics.frontier import FrontierPoint, reward_kl_frontier
from pyro_tilt.diagnostics.plots import (
    plot_acceptance,
    plot_ess,
    plot_evidence,
    plot_frontier,
    plot_genealogy,
    plot_health,
    plot_proposals,
    plot_reward,
    plot_steps,
    plot_weights,
)
from pyro_tilt.diagnostics.summary import Summary, summary
from pyro_tilt.diagnostics.to_arviz import to_arviz

__all__ = [
    "Estimate",
    "FrontierPoint",
    "Summary",
    "kl_to_base",
    "plot_acceptance",
    "plot_ess",
    "plot_evidence",
    "plot_frontier",
    "plot_genealogy",
    "plot_health",
    "plot_proposals",
    "plot_reward",
    "plot_steps",
    "plot_weights",
    "reward_gain",
    "reward_kl_frontier",
    "summary",
    "to_arviz",
    "total_variation",
]
