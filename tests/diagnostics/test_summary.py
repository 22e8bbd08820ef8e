# SPDX-License-Identifier: Apache-2.0
"""Summaries: the numbers against hand sums, the warnings against cases that earn them."""

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import scan
from pyro_tilt.diagnostics import kl_to_base, plot_steps, reward_gain, summary
from pyro_tilt.diagnostics.summary_text import WIDTH, plus_minus
from pyro_tilt.infer import SMC, BaseDraws, BestOfN, ExpBestOfN, merge
from pyro_tilt.ops.psis import pareto_smooth

THREE = {
    "samples": {"x": torch.tensor([0.0, 1.0, 4.0]), "m": torch.tensor([[1, 0], [0, 0], [1, 1]])},
    "log_weights": torch.tensor([0.2, 0.3, 0.5]).double().log(),
    "psis_log_weights": None,
    "pareto_k": None,
    "stats": {"reward": torch.tensor([1.0, 2.0, 5.0])},
    "base": BaseDraws(reward=torch.tensor([1.0, 3.0]), log_factors=torch.tensor([0.0, 0.0])),
    "beta": 0.5,
}


def test_numbers_against_sums_by_hand(weighted):
    found = summary(weighted(3, **THREE)).to_dict()
    assert found["draws"] == 3
    assert found["sites"]["x"]["mean"] == pytest.approx(2.3)
    assert found["sites"]["x"]["sd"] == pytest.approx(math.sqrt(0.3 + 8.0 - 2.3**2))
    assert found["sites"]["m"]["shape"] == [2]
    assert found["sites"]["m"]["mean"] == pytest.approx([0.7, 0.5])
    assert found["ess"]["value"] == pytest.approx(1.0 / (0.04 + 0.09 + 0.25))
    assert found["log_evidence"]["value"] == pytest.approx(math.log(1.0 / 3.0))
    assert found["reward"]["after"] == pytest.approx(0.2 + 0.6 + 2.5)
    assert found["reward"]["before"] == pytest.approx(2.0)
    assert found["reward"]["before_error"] == pytest.approx(1.0)
    deviation = np.array([0.2, 0.3, 0.5]) * (np.array([1.0, 2.0, 5.0]) - 3.3)
    error = math.sqrt(1.5 * (deviation**2).sum())
    assert found["reward"]["after_error"] == pytest.approx(error)


def test_reward_row_adds_up_and_agrees_with_the_estimators(weighted):
    result = weighted(500, scale=2.0)
    reward = summary(result).to_dict()["reward"]
    gain = reward_gain(result)
    assert reward["gain"] == pytest.approx(gain.value)
    assert reward["gain_error"] == pytest.approx(gain.error)
    assert reward["after"] - reward["before"] == pytest.approx(gain.value, abs=1e-9)
    kl = summary(result).to_dict()["kl"]
    assert (kl["value"], kl["error"]) == pytest.approx(tuple(kl_to_base(result)))


def test_before_is_weighted_by_the_observations(weighted):
    base = BaseDraws(reward=torch.tensor([0.0, 1.0]), log_factors=torch.tensor([1.0, 3.0]).log())
    found = summary(weighted(3, **{**THREE, "base": base})).to_dict()
    assert found["reward"]["before"] == pytest.approx(0.75)


def test_site_means_are_those_of_expectation(weighted):
    result = weighted(300, scale=3.0)
    found = summary(result).to_dict()["sites"]
    assert found["x"]["mean"] == pytest.approx(float(result.expectation("x")), abs=1e-9)
    np.testing.assert_allclose(found["y"]["mean"], result.expectation("y").numpy(), atol=1e-5)


def test_large_sites_are_named_but_not_averaged(weighted):
    found = summary(weighted(10, samples={"image": torch.zeros(10, 8, 8)}))
    assert found.to_dict()["sites"]["image"] == {"shape": [8, 8], "mean": None, "sd": None}
    assert "image (8 x 8)" in str(found)


def test_rejection_numbers(clipped):
    result = clipped(400, chains=2)
    found = summary(result).to_dict()
    assert found["acceptance"] == {
        "rate": pytest.approx(result.info["acceptance_rate"]),
        "proposals": 4321,
    }
    assert found["clipping"]["mass"] == pytest.approx(result.info["clipped_mass"])
    assert found["clipping"]["mass_upper"] == pytest.approx(1.5 * result.info["clipped_mass"])
    assert found["capped"] == 0
    assert found["pareto_k"] is None
    assert found["certificate"]["total_variation"] == 0.3
    assert found["cost"]["network_rows"] == 99


def test_the_table_shows_each_thing_a_reader_needs(clipped):
    text = str(summary(clipped(400, chains=2)))
    first, *rows = text.splitlines()
    assert first == "LCB: 800 iid draws in 2 runs of 400"
    labels = {row[:15].strip() for row in rows}
    wanted = {"law", "covers", "excludes", "log evidence", "ESS", "acceptance", "clipped mass"}
    assert wanted | {"capped draws", "reward", "KL spent", "cost", "x"} <= labels
    assert "bounded. The draws are within total variation 0.3" in text
    assert "confidence 0.95" in text
    assert "4,321 proposals" in text
    assert "(base) ->" in text
    assert all(len(row) <= WIDTH for row in rows)
    starts = {row[15] != " " for row in rows if row.startswith(("law", "ESS", "cost", "reward "))}
    assert starts == {True}


def test_good_weights_have_no_warnings(weighted):
    found = summary(weighted(2000, chains=4))
    assert found.verdict == "ok"
    assert found.warnings == []
    assert str(found).splitlines()[-1] == "verdict: ok"


@pytest.mark.parametrize(
    ("k", "verdict"), [(0.49, "ok"), (0.51, "strained"), (0.99, "strained"), (1.0, "broken")]
)
def test_k_hat_is_never_silent_above_its_threshold(weighted, k, verdict):
    # At 100 draws the threshold is 1 - 1/2, not 0.7.
    found = summary(weighted(100, scale=0.5, pareto_k=k))
    assert found.to_dict()["pareto_k"]["threshold"] == pytest.approx(0.5)
    assert found.verdict == verdict
    assert any("k-hat" in text for text in found.warnings) is (verdict != "ok")
    assert f"{k:.2f}, threshold 0.50: {verdict}" in str(found)


def test_unknown_k_hat_is_not_silent_either(weighted):
    found = summary(weighted(1000, scale=0.5, pareto_k=math.inf))
    assert found.verdict == "strained"
    assert "k-hat" in found.warnings[0]


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_k_hat_is_found_where_the_sampler_gave_none(weighted, scale):
    result = weighted(1000, scale=scale, pareto_k=None, psis_log_weights=None)
    k = float(pareto_smooth(result.log_weights)[1])
    stated = summary(result).to_dict()["pareto_k"]
    assert stated["value"] == pytest.approx(k)
    assert (stated["verdict"] == "ok") == (k <= stated["threshold"])
    assert (k > 0.67) == (scale > 1.0)


def test_few_particles_at_one_step_are_said(weighted):
    """Of two runs of 500 the second falls to 4 at its third step; its share counts, not its ESS."""
    ess = torch.tensor([[400.0, 300.0, 260.0], [450.0, 400.0, 4.0]])
    result = weighted(500, scale=0.3, chains=2, steps={"ess": ess})
    found = summary(result)
    assert found.to_dict()["lowest_ess"] == {"value": 4.0, "step": 3, "particles": 500}
    assert "4.0 of 500, at step 3" in " ".join(str(found).split())
    assert found.verdict == "broken" and "at step 3" in found.warnings[0]
    ess[1, 2] = 100.0
    assert summary(weighted(500, scale=0.3, chains=2, steps={"ess": ess})).verdict == "ok"


def test_searches_have_particles_of_their_own(weighted):
    """Three draws, each from a search by eight: an ESS of five is five of eight."""
    fields = {"kind": "iid", "steps": {"ess": torch.tensor([6.0, 5.0])}, "info": {"n": 8.0}}
    result = weighted(3, scale=0.0, psis_log_weights=None, pareto_k=None, **fields)
    expected = {"value": 5.0, "step": 2, "particles": 8}
    assert summary(result).to_dict()["lowest_ess"] == expected
    ax = plot_steps(result)
    assert "lowest ESS 62.5%" in ax.get_title(loc="left")
    assert max(ax.lines[0].get_ydata()) == 0.75
    plt.close(ax.figure)


def test_a_twisted_run_of_good_particles_is_ok():
    """Under the exact soft value each step weighs by noise of variance 1/4, without it by 3."""

    def program():
        def step(x, t):
            return pyro.sample(f"x_{t}", dist.Normal(x, 0.5))

        return scan("walk", step, torch.zeros(()), range(12))

    def run(**options):
        sampler = SMC(program, reward=lambda x: x, num_particles=500, seed=0, **options)
        return summary(sampler.run())

    good = run(twist=lambda x, t: x)
    assert good.verdict == "ok" and good.warnings == []
    assert 100.0 < good.to_dict()["lowest_ess"]["value"] < 450.0
    plain = run()
    assert plain.verdict != "ok" and any("effective sample" in each for each in plain.warnings)


def test_a_choice_shows_the_reward_of_its_base_draws():
    def program():
        return pyro.sample("x", dist.Normal(1.0, 1.0))

    result = BestOfN(program, reward=lambda x: x, n=4, num_samples=500, seed=0).run()
    reward = summary(result).to_dict()["reward"]
    assert abs(reward["before"] - 1.0) < 4.5 * reward["before_error"]
    # The largest of four standard normals has mean 1.0294.
    assert abs(reward["gain"] - 1.0294) < 4.5 * reward["gain_error"]
    chosen = ExpBestOfN(program, reward=lambda x: -x.square(), n=4, num_samples=50, seed=0).run()
    assert "acceptance_rate" not in chosen.info
    labels = [row.split()[0] for row in str(summary(chosen)).splitlines() if row]
    assert "proposals" in labels and "acceptance" not in labels


def test_the_table_says_which_weights_the_sites_take(weighted):
    note = "under the smoothed weights"
    assert note in str(summary(weighted(1000)))
    assert note not in str(summary(weighted(1000, psis_log_weights=None)))


def test_low_effective_sample_size_is_said(weighted):
    found = summary(weighted(1000, scale=6.0, pareto_k=0.1))
    assert any("effective sample size" in text for text in found.warnings)
    assert found.verdict in ("strained", "broken")


def test_one_draw(weighted):
    found = summary(weighted(1))
    assert found.verdict == "broken"
    assert "single weighted draw" in found.warnings[0]
    assert found.to_dict()["sites"]["x"]["sd"] is None
    assert str(found).startswith("ImportanceSampler: 1 weighted draw\n")
    assert summary(weighted(1, beta=0.0)).verdict == "ok"


def test_equal_weights_are_fine(weighted):
    found = summary(weighted(50, beta=0.0))
    assert found.verdict == "ok"
    assert found.to_dict()["ess"]["fraction"] == pytest.approx(1.0)


def test_capped_and_clipped_draws_are_said(clipped):
    found = summary(clipped(400, capped=7, baseline=0.0))
    assert any("7 of 400 draws hit the proposal cap" in text for text in found.warnings)
    assert any("clips" in text for text in found.warnings)
    assert found.verdict == "strained"
    assert found.to_dict()["capped"] == 7


def test_runs_that_disagree_are_said(weighted):
    near = weighted(500, scale=0.5)
    far = weighted(500, scale=0.5, shift=1.5)
    found = summary(merge(near, far))
    assert any("differs across runs" in text for text in found.warnings)
    found = summary(merge(near, near))
    assert not any("differs across runs" in text for text in found.warnings)
    # A spread of a tenth of a nat is far outside the errors of 500 weights near one.
    found = summary(merge(weighted(500, scale=0.1), weighted(500, scale=0.1, shift=0.6)))
    assert found.to_dict()["log_evidence"]["spread"] == pytest.approx(0.1 / math.sqrt(2.0))
    assert any("differs across runs" in text for text in found.warnings)


def test_rewards_of_minus_infinity(weighted):
    found = summary(weighted(1000, below=-0.5))
    reward = found.to_dict()["reward"]
    assert reward["before"] is None
    assert 0.2 < reward["before_impossible"] < 0.4
    assert math.isfinite(reward["after"])
    assert "of the base at -inf" in str(found)


def test_every_weight_zero(weighted):
    dead = torch.full((4,), -torch.inf)
    found = summary(weighted(4, log_weights=dead, psis_log_weights=None, pareto_k=None))
    assert found.verdict == "broken"
    assert any("every weight is zero" in text for text in found.warnings)
    json.dumps(found.to_dict(), allow_nan=False)
    str(found)


def test_json_has_no_nan(weighted, clipped, stepped):
    for result in (
        weighted(1),
        weighted(1000, below=0.0),
        weighted(10, beta=0.0),
        clipped(5, log_normalizer_error=torch.tensor(math.nan)),
        stepped(chains=1),
        stepped(chains=3),
        weighted(20, beta=None, base=None),
        weighted(20, stats={}, base=None, samples={}),
    ):
        text = json.dumps(summary(result).to_dict(), allow_nan=False)
        assert json.loads(text)["draws"] == len(result)
        assert str(summary(result))


def test_method_of_the_result_delegates(weighted):
    result = weighted(50)
    assert result.summary().to_dict() == summary(result).to_dict()


def test_plus_minus():
    assert plus_minus(1234.5678, 12.0) == "1235 ± 12"
    assert plus_minus(0.00123456, 1.2e-5) == "0.001235 ± 0.000012"
    assert plus_minus(-0.0, 0.0) == "0 ± 0"
    assert plus_minus(math.nan, 1.0) == "unknown"
    assert plus_minus(-math.inf, math.nan) == "-inf"


def test_labels_and_numbered_sites_are_listed_in_brief(weighted):
    count = 20
    samples = {"mood": torch.randint(3, (count,)), "grid": torch.randint(3, (count, 2, 5))}
    for t in range(65):
        samples[f"token_{t}"] = torch.randint(9, (count,))
        samples[f"x_{t}"] = torch.full((count,), float(t))
    samples |= {"a1": torch.ones(count), "a2": torch.full((count,), 2.0)}
    samples["done"] = torch.ones(count, dtype=torch.bool)
    text = str(summary(weighted(count, samples=samples)))
    lines = text.split("sd\n")[-1].split("\n---")[0].splitlines()
    assert lines[:3] == [
        "mood: discrete",
        "grid (2 x 5): discrete",
        "token_0 ... token_64: 65 discrete sites",
    ]
    assert [line.split()[:2] for line in lines[3:-1]] == [
        ["x_0", "0"],
        ["...", "63"],
        ["x_64", "64"],
        ["a1", "1"],
        ["a2", "2"],
        ["done", "1"],
    ]
