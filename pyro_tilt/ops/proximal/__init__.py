# SPDX-License-Identifier: Apache-2.0
"""Proximal steps: transport costs, closed forms, certified searches, the ball constraint."""

from .accelerated import accelerated_ascent
from .ball import BallPlan, ball_plan
from .branch_and_bound import branch_and_bound
from .closed_forms import prox_linear, prox_max_affine, prox_quadratic, prox_support, prox_tokens
from .costs import (
    Hamming,
    Mahalanobis,
    NormPower,
    QuadraticCost,
    SquaredEuclidean,
    TransportCost,
    as_cost,
)
from .step import ProximalStep, UnboundedProximal

__all__ = [
    "BallPlan",
    "Hamming",
    "Mahalanobis",
    "NormPower",
    "ProximalStep",
    "QuadraticCost",
    "SquaredEuclidean",
    "TransportCost",
    "UnboundedProximal",
    "accelerated_ascent",
    "as_cost",
    "ball_plan",
    "branch_and_bound",
    "prox_linear",
    "prox_max_affine",
    "prox_quadratic",
    "prox_support",
    "prox_tokens",
]
