# SPDX-License-Identifier: Apache-2.0
"""Engines without Pyro programs: weights, resampling, pooled rejection, Chernoff baselines."""

from .baselines import (
    Baseline,
    budget_baseline,
    chernoff_baseline,
    chernoff_bound,
    exact_chernoff_baseline,
    exchange_baseline,
    exchange_loss,
    log_chernoff_constant,
)
from .calibration import calibrate, calibration_shift
from .clipped_law import (
    ClippedLaw,
    clipped_mass_from_accepted,
    clipped_mass_from_proposals,
    clipped_mass_upper,
    total_variation_from_accepted,
)
from .importance import (
    effective_sample_size,
    log_evidence,
    log_mean_exp,
    normalize,
    summarize,
)
from .log_mgf import LogMgf, log_mgf
from .pool import PoolExhausted, PoolResult, acceptance_generator, pooled_rejection
from .pool_batched import BatchedPoolResult, pooled_rejection_batched
from .psis import khat_threshold, pareto_smooth
from .reindex import register_reindex, reindex
from .resampling import multinomial, residual, stratified, systematic

__all__ = [
    "Baseline",
    "BatchedPoolResult",
    "ClippedLaw",
    "LogMgf",
    "PoolExhausted",
    "PoolResult",
    "acceptance_generator",
    "budget_baseline",
    "calibrate",
    "calibration_shift",
    "chernoff_baseline",
    "chernoff_bound",
    "clipped_mass_from_accepted",
    "clipped_mass_from_proposals",
    "clipped_mass_upper",
    "effective_sample_size",
    "exact_chernoff_baseline",
    "exchange_baseline",
    "exchange_loss",
    "khat_threshold",
    "log_chernoff_constant",
    "log_evidence",
    "log_mean_exp",
    "log_mgf",
    "multinomial",
    "normalize",
    "pareto_smooth",
    "pooled_rejection",
    "pooled_rejection_batched",
    "register_reindex",
    "reindex",
    "residual",
    "stratified",
    "summarize",
    "systematic",
    "total_variation_from_accepted",
]
