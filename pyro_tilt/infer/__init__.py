# SPDX-License-Identifier: Apache-2.0
"""Samplers over Pyro programs, and what they return."""

from pyro_tilt.infer.aisp import AISP
from pyro_tilt.infer.base_draws import BaseDraws
from pyro_tilt.infer.best_of_n import BestOfN
from pyro_tilt.infer.budget import beta_for_kl
from pyro_tilt.infer.certificate import Certificate, weakest
from pyro_tilt.infer.cost import Cost, CountRows, counted
from pyro_tilt.infer.each import RunsFailed, run_each
from pyro_tilt.infer.errors import AcceptanceTooLow, SamplerWarning, SamplingError, ZeroWeights
from pyro_tilt.infer.exp_best_of_n import ExpBestOfN
from pyro_tilt.infer.importance_sampler import ImportanceSampler
from pyro_tilt.infer.lcb import LCB
from pyro_tilt.infer.merge import merge
from pyro_tilt.infer.particle_check import check_particles
from pyro_tilt.infer.proposal import Draws, ProgramProposal
from pyro_tilt.infer.rejection import Rejection
from pyro_tilt.infer.sampler import Sampler
from pyro_tilt.infer.selection import BlockBestOfN, SoftBestOfM
from pyro_tilt.infer.smc import SMC
from pyro_tilt.infer.soft_best_of_n import SoftBestOfN
from pyro_tilt.infer.speculative import GSI, RewardGuided, RewardShifted, SpeculativeRejection
from pyro_tilt.infer.stepwise import StepwiseLCB
from pyro_tilt.infer.storage import load, save
from pyro_tilt.infer.tempered import TemperedSMC
from pyro_tilt.infer.tilts import ConvexTilt, DiffusionModel, LinearTilt, QuadraticTilt
from pyro_tilt.infer.transport import (
    MaxOf,
    ProximalOracle,
    ProximalProblem,
    ProximalTransport,
    TokenScores,
    find_proximal,
    register_proximal,
)
from pyro_tilt.infer.truncated_rejection import TruncatedRejection
from pyro_tilt.infer.weighted_samples import WeightedSamples

__all__ = [
    "AISP",
    "GSI",
    "LCB",
    "SMC",
    "AcceptanceTooLow",
    "BaseDraws",
    "BestOfN",
    "BlockBestOfN",
    "Certificate",
    "ConvexTilt",
    "Cost",
    "CountRows",
    "DiffusionModel",
    "Draws",
    "ExpBestOfN",
    "ImportanceSampler",
    "LinearTilt",
    "MaxOf",
    "ProgramProposal",
    "ProximalOracle",
    "ProximalProblem",
    "ProximalTransport",
    "QuadraticTilt",
    "Rejection",
    "RewardGuided",
    "RewardShifted",
    "RunsFailed",
    "Sampler",
    "SamplerWarning",
    "SamplingError",
    "SoftBestOfM",
    "SoftBestOfN",
    "SpeculativeRejection",
    "StepwiseLCB",
    "TemperedSMC",
    "TokenScores",
    "TruncatedRejection",
    "WeightedSamples",
    "ZeroWeights",
    "beta_for_kl",
    "check_particles",
    "counted",
    "find_proximal",
    "load",
    "merge",
    "register_proximal",
    "run_each",
    "save",
    "weakest",
]
