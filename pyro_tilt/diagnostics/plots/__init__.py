# SPDX-License-Identifier: Apache-2.0
"""Plots of results, in plain matplotlib."""

from pyro_tilt.diagnostics.plots.acceptance import plot_acceptance
from pyro_tilt.diagnostics.plots.ess import plot_ess
from pyro_tilt.diagnostics.plots.evidence import plot_evidence
from pyro_tilt.diagnostics.plots.frontier import plot_frontier
from pyro_tilt.diagnostics.plots.genealogy import plot_genealogy
from pyro_tilt.diagnostics.plots.health import plot_health
from pyro_tilt.diagnostics.plots.proposals import plot_proposals
from pyro_tilt.diagnostics.plots.reward import plot_reward
from pyro_tilt.diagnostics.plots.steps import plot_steps
from pyro_tilt.diagnostics.plots.weights import plot_weights

__all__ = [
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
]
