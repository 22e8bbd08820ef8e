# SPDX-License-Identifier: Apache-2.0
"""What a summary says of draws that were cut off before their end."""

import pytest
import torch

from pyro_tilt import align
from pyro_tilt.diagnostics import summary
from pyro_tilt.infer import ImportanceSampler, Rejection
from pyro_tilt.language import TabularLM
from pyro_tilt.rewards import Bounded


def test_the_mass_that_was_cut_counts_by_weight(weighted):
    log_weights = torch.tensor([0.1, 0.3, 0.6]).double().log()
    flags = torch.tensor([False, True, False])
    fields = {"psis_log_weights": None, "pareto_k": None, "stats": {}, "base": None}
    samples = {"x": torch.zeros(3), "words_finished": flags, "tokens_finished": ~flags}
    samples["sum_finished"] = torch.ones(3)
    result = weighted(3, samples=samples, log_weights=log_weights, **fields)
    found = summary(result)
    expected = {"words_finished": pytest.approx(0.7), "tokens_finished": pytest.approx(0.3)}
    assert found.to_dict()["unfinished"] == expected
    assert sum("cut off" in text for text in found.warnings) == 2


@pytest.mark.parametrize("count,said", [(24, False), (26, True)])
def test_more_than_a_quarter_is_warned_of(weighted, count, said):
    flags = torch.arange(100) >= count
    result = weighted(100, beta=0.0, samples={"tokens_finished": flags}, pareto_k=None)
    found = summary(result)
    assert found.verdict == ("strained" if said else "ok")
    assert any("tokens_finished is False" in text for text in found.warnings) is said
    assert "cut off" in str(found)


@pytest.mark.parametrize("stop", [None, 1])
def test_sequences_of_a_table_are_told_apart_from_those_cut(stop):
    lm = TabularLM.random(4, 3, seed=2, stop_token=stop)
    result = ImportanceSampler(lm.program(), num_samples=4000, seed=0).run()
    found = summary(result)
    if stop is None:
        assert "tokens_finished" not in result.samples and found.numbers["unfinished"] is None
        return
    assert (result.samples["tokens_finished"] == lm.finished(result.samples["tokens"])).all()
    cut = float((lm.law() * ~lm.finished(lm.enumerate())).sum())
    # Five standard errors.
    error = 5.0 * (cut * (1.0 - cut) / 4000) ** 0.5
    assert found.numbers["unfinished"]["tokens_finished"] == pytest.approx(cut, abs=error)
    assert found.verdict == "strained" and cut > 0.3


def test_a_reward_may_read_whether_a_table_was_cut():
    lm = TabularLM.random(4, 3, seed=2, stop_token=1)

    reward = Bounded(lambda flag: flag.double() - 1.0, low=-1.0, high=0.0)
    aligned = align(lm.program(), reward, 3.0, of="tokens_finished")
    result = Rejection(aligned, num_samples=4000, seed=1).run()
    done = lm.finished(lm.enumerate())
    law = lm.law() * torch.where(done, 1.0, torch.tensor(-3.0).double().exp())
    cut = float((law * ~done).sum() / law.sum())
    assert float((~result.samples["tokens_finished"]).double().mean()) == pytest.approx(
        cut, abs=5.0 * (cut * (1.0 - cut) / 4000) ** 0.5
    )
