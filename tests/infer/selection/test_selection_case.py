# SPDX-License-Identifier: Apache-2.0
"""SoftBestOfM on programs of one step, whose law for finite m is an enumeration."""

import pytest
import torch

from pyro_tilt.infer.selection import SoftBestOfM
from pyro_tilt.poutine import scan
from pyro_tilt.testing.exact_programs import two_categoricals
from pyro_tilt.testing.sampler_case import SamplerTestCase


def one_step(program):
    """The program as the only step of a scan."""

    def stepped(*args):
        return scan("whole", lambda carry, x: program(*args), None, range(1))

    return stepped


class TestSoftBestOfM(SamplerTestCase):
    sampler = SoftBestOfM
    options = {"m": 2, "check_lineage": False}

    def make(self, program, **options):
        return super().make(one_step(program), **options)

    def law(self, case, result):
        """Of two draws x, y the first is kept with probability w(x) / (w(x) + w(y))."""
        base = two_categoricals().log_base.exp()
        ratio = case.log_base.exp() * case.log_tilt.exp() / base
        kept = 2.0 * ratio.unsqueeze(-1) / (ratio.unsqueeze(-1) + ratio)
        # Where both weights are zero, the first is kept as it is.
        kept = torch.where(ratio.unsqueeze(-1) + ratio > 0, kept, torch.ones_like(kept))
        return base * (kept @ base)

    @pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
    @pytest.mark.parametrize("observed", [False, True])
    def test_law_over_states(self, observed):
        super().test_law_over_states(observed)

    @pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
    @pytest.mark.parametrize("observed", [False, True])
    def test_weights_give_the_target(self, observed):
        super().test_weights_give_the_target(observed)

    @pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
    @pytest.mark.parametrize("observed", [False, True])
    def test_evidence_is_unbiased(self, observed):
        super().test_evidence_is_unbiased(observed)

    def test_seed_reproduces_and_leaves_global_state(self):
        TestManyProposals().test_seed_reproduces_and_leaves_global_state()

    def test_minus_inf_somewhere_never_survives(self):
        TestManyProposals().test_minus_inf_somewhere_never_survives()

    def test_extreme_beta_does_not_overflow(self, beta=1e6):
        SamplerTestCase.test_extreme_beta_does_not_overflow(TestManyProposals(), beta)

    def test_beta_zero_is_the_base_bit_for_bit(self):
        TestOneProposal().test_beta_zero_is_the_base_bit_for_bit()


class TestManyProposals(TestSoftBestOfM):
    """Enough proposals that one of positive weight is always among them."""

    options = {"m": 64, "check_lineage": False}
    __test__ = False

    test_seed_reproduces_and_leaves_global_state = (
        SamplerTestCase.test_seed_reproduces_and_leaves_global_state
    )
    test_minus_inf_somewhere_never_survives = (
        SamplerTestCase.test_minus_inf_somewhere_never_survives
    )


class TestOneProposal(TestSoftBestOfM):
    options = {"m": 1, "check_lineage": False}
    __test__ = False

    test_beta_zero_is_the_base_bit_for_bit = SamplerTestCase.test_beta_zero_is_the_base_bit_for_bit
