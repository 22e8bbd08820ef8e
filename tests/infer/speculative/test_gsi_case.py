# SPDX-License-Identifier: Apache-2.0
"""GSI through the shared case: with the program as its own draft it is soft best-of-n."""

import pyro
import pytest

from pyro_tilt.infer import GSI
from pyro_tilt.poutine.align import AlignedProgram
from pyro_tilt.testing.exact_programs import two_categoricals
from pyro_tilt.testing.sampler_case import SamplerTestCase
from pyro_tilt.testing.selection_case import SelectionTestCase


class TestGSICase(SelectionTestCase):
    sampler = GSI
    observes = False
    options = {"n": 2, "threshold": -float("inf")}

    def make(self, program, **options):
        base = program.program if isinstance(program, AlignedProgram) else program
        if not isinstance(program, AlignedProgram):
            options.setdefault("reward", lambda x: x)
        return super().make(program, draft=base, **options)


# A beta of zero or below has no ratio in units of the reward, two rewards have no one threshold,
# both programs run (see the rows in test_gsi.py), and this case always gives a reward.
for _part in (
    "test_beta_zero_is_the_base_bit_for_bit",
    "test_raising_beta_raises_the_reward",
    "test_nested_align_adds_up",
    "test_cost_counts_rows",
    "test_beta_needs_a_reward",
):
    assert callable(getattr(SamplerTestCase, _part))
    setattr(TestGSICase, _part, None)


def test_observations_are_refused():
    case = two_categoricals(observed=True)
    with pytest.raises(ValueError, match="observations"):
        GSI(
            case.program, draft=case.program, reward=lambda x: 0.0 * x[0].double(), num_samples=5
        ).run()
    assert not pyro.poutine.runtime._PYRO_STACK
