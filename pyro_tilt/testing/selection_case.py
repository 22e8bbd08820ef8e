# SPDX-License-Identifier: Apache-2.0
"""The test case for samplers that choose one of two draws by its weight.

Two are few enough to list the law of the choice. Some parts take a sampler that chooses among many
draws, or that has but one; this module needs pytest.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from pyro_tilt.infer import WeightedSamples
from pyro_tilt.testing.exact_programs import TwoCategoricals, two_categoricals
from pyro_tilt.testing.sampler_case import SamplerTestCase

__all__ = ["SelectionTestCase"]

# With two draws to choose from, both have weight zero now and then.
_LOST = pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")


class SelectionTestCase(SamplerTestCase):
    """What a choice of one of two draws by weight must pass, its law included.

    :cvar width: the option that says among how many draws to choose; ``options`` makes it two.
    :cvar observes: whether programs may have observations.
    """

    width: ClassVar[str] = "n"
    observes: ClassVar[bool] = True

    @classmethod
    def among(cls, count: int) -> SamplerTestCase:
        """The same case for a choice among ``count`` draws."""
        options = {**cls.options, cls.width: count}
        return type(cls.__name__, (cls,), {"options": options, "__test__": False})()

    def law(self, case: TwoCategoricals, result: WeightedSamples) -> Tensor:
        """Of two draws x, y the first is kept with probability w(x) / (w(x) + w(y))."""
        base = two_categoricals().log_base.exp()
        ratio = case.log_base.exp() * case.log_tilt.exp() / base
        both = ratio.unsqueeze(-1) + ratio
        # Where both weights are zero, the first is kept as it is.
        kept = torch.where(both > 0, 2.0 * ratio.unsqueeze(-1) / both, torch.ones_like(both))
        return base * (kept @ base)

    @_LOST
    @pytest.mark.parametrize("observed", [False, True])
    def test_law_over_states(self, observed: bool) -> None:
        super().test_law_over_states(self._seen(observed))

    @_LOST
    @pytest.mark.parametrize("observed", [False, True])
    def test_weights_give_the_target(self, observed: bool) -> None:
        super().test_weights_give_the_target(self._seen(observed))

    @_LOST
    @pytest.mark.parametrize("observed", [False, True])
    def test_evidence_is_unbiased(self, observed: bool) -> None:
        super().test_evidence_is_unbiased(self._seen(observed))

    def _seen(self, observed: bool) -> bool:
        if observed and not self.observes:
            pytest.skip("the sampler takes no observations")
        return observed

    def test_seed_reproduces_and_leaves_global_state(self) -> None:
        SamplerTestCase.test_seed_reproduces_and_leaves_global_state(self.among(64))

    def test_minus_inf_somewhere_never_survives(self) -> None:
        SamplerTestCase.test_minus_inf_somewhere_never_survives(self.among(64))

    def test_extreme_beta_does_not_overflow(self, beta: float = 1e6) -> None:
        SamplerTestCase.test_extreme_beta_does_not_overflow(self.among(64), beta)

    def test_beta_zero_is_the_base_bit_for_bit(self) -> None:
        SamplerTestCase.test_beta_zero_is_the_base_bit_for_bit(self.among(1))
