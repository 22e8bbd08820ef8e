# SPDX-License-Identifier: Apache-2.0
import json
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine

from pyro_tilt import align, rewards
from pyro_tilt.examples.digits import (
    digits_program,
    ink_reward,
    load_denoiser,
    reads_as,
    steering_values,
)
from pyro_tilt.examples.digits.__main__ import main
from pyro_tilt.examples.digits.classifier import load_classifier
from pyro_tilt.examples.digits.model import reverse_steps
from pyro_tilt.examples.digits.steering import spend, targets
from pyro_tilt.examples.digits.steering_methods import CHAINS, Method, SteeringSettings, methods
from pyro_tilt.examples.digits.steering_outcome import Target, describe
from pyro_tilt.examples.digits.steering_report import markdown
from pyro_tilt.examples.digits.steering_values import (
    BoundedValue,
    digits_with_estimates,
    fit_bounded_value,
    posterior_mean_value,
)
from pyro_tilt.infer import LCB, SMC, Certificate, WeightedSamples

STEPS = 5


@pytest.fixture(scope="module")
def denoiser():
    return load_denoiser()


@pytest.fixture(scope="module")
def reward():
    return reads_as(load_classifier("a"), 3)


@pytest.fixture(scope="module")
def value(denoiser, reward):
    return fit_bounded_value(
        denoiser, reward, 2.0, steps=STEPS, num_paths=600, updates=150, progress=False
    )


def test_both_programs_draw_the_same_digits(denoiser):
    def run(program):
        pyro.set_rng_seed(5)
        with pyro.plate("particles", 20):
            return poutine.trace(program).get_trace(denoiser, steps=10).nodes

    plain, foreseeing = run(partial(digits_program, record="all")), run(digits_with_estimates)
    sites = [name for name in plain if name.startswith("x_")]
    assert sites == [name for name in foreseeing if name.startswith("x_")]
    assert sites == ["x_T", *(f"x_{left}" for left in range(9, -1, -1))]
    for name in sites:
        torch.testing.assert_close(
            plain[name]["value"], foreseeing[name]["value"], rtol=0, atol=2e-3
        )


def test_foreseeing_program_needs_two_steps(denoiser):
    with pytest.raises(ValueError, match="at least 2"):
        digits_with_estimates(denoiser, steps=1)


@pytest.mark.parametrize("program", [partial(digits_program, record="all"), digits_with_estimates])
def test_carry_holds_all_that_later_steps_read(denoiser, reward, program):
    # The lineage check raises where a variable does not move with its particle.
    aligned = align(partial(program, denoiser, steps=STEPS), reward, 2.0)
    result = SMC(aligned, num_particles=32, check_lineage=True, seed=0, progress=False).run()
    assert result.cost.base_draws == 32


def test_posterior_mean_costs_no_row_and_reads_its_own_image(denoiser, reward):
    seen = []

    def watch(carry, left):
        seen.append((carry, left))
        return torch.zeros(len(carry[0]))

    aligned = align(partial(digits_with_estimates, denoiser, steps=STEPS), reward, 2.0)
    result = SMC(
        aligned, num_particles=8, twist=watch, check_lineage=False, seed=0, progress=False
    ).run()
    assert result.cost.network_rows == 8 * STEPS
    value = posterior_mean_value(reward, 2.0, steps=STEPS)
    schedule = reverse_steps(STEPS)
    assert [left for _, left in seen] == [4, 3, 2, 1]
    for carry, left in seen:
        at = schedule[STEPS - left]
        clean = (carry[0] - at.noise * denoiser(carry[0], at.timestep)) / at.signal
        expected = 2.0 * at.signal**2 * reward(clean.clamp(-1.0, 1.0))
        torch.testing.assert_close(value(carry, left), expected, rtol=1e-3, atol=1e-3)


def test_bounded_value_is_within_its_bound_and_tells_threes(denoiser, reward, value):
    low, high = value.bound
    assert high == 0.0
    images = 3.0 * torch.randn(500, 1, 8, 8)
    for left in range(1, STEPS):
        found = value(images, left)
        assert low <= found.min() and found.max() <= high
    assert (value.report.rows, len(value.report.log_loss)) == (600 * STEPS, STEPS - 1)
    # The last noisy image all but shows the digit; the first hardly does.
    assert value.report.log_loss[-1] < 0.6 * value.report.constant_log_loss
    assert value.report.log_loss[0] > value.report.log_loss[-1]


def test_bounded_value_is_the_log_of_a_mean():
    # Pixels that say nothing leave the mean of y; a top other than 0 shifts the value.
    class Silent(torch.nn.Module):
        def forward(self, pixels, place):
            return pixels.new_zeros(len(pixels))

    value = BoundedValue(Silent(), torch.randn(2, 50, 64), log_mean=-1.5, top=0.7)
    found = value(torch.randn(4, 1, 8, 8), 1)
    # The bend near the floor adds log(1 + e^-6).
    assert found == pytest.approx(torch.full((4,), -0.8), abs=3e-3)


def test_network_is_trusted_as_far_as_unseen_paths_bear_it_out():
    class Sure(torch.nn.Module):
        def forward(self, pixels, place):
            return (3.0 if place else -3.0) * pixels[:, 0]

    torch.manual_seed(0)
    images = torch.randn(2, 4000, 64)
    value = BoundedValue(Sure(), images, log_mean=-0.6931, top=0.0)
    # The truth has half the slope that the network claims at one step, and the other sign before.
    targets = torch.bernoulli((1.5 * images[1, :, 0]).sigmoid())
    steering_values._temper(value, images[1:].repeat(2, 1, 1), targets)
    assert value.trust[0] == 0.0
    assert value.trust[1] == pytest.approx(0.5, abs=0.1)


def test_fit_repeats_from_its_seed_and_leaves_the_random_state(denoiser, reward):
    state = torch.get_rng_state()
    options = {"steps": 3, "num_paths": 40, "updates": 3, "progress": False}
    first, second = (fit_bounded_value(denoiser, reward, 2.0, **options) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    pairs = zip(first.network.parameters(), second.network.parameters())
    assert all(torch.equal(one, other) for one, other in pairs)


def test_fit_refuses_an_unbounded_reward(denoiser):
    with pytest.raises(ValueError, match="upper bound"):
        fit_bounded_value(denoiser, ink_reward(), 50.0)


def test_stepwise_lcb_asks_the_network_once_per_chain(denoiser, reward, value):
    aligned = align(partial(digits_program, denoiser, steps=STEPS, record="all"), reward, 2.0)
    result = LCB(
        aligned,
        value=value,
        num_samples=20,
        num_inner=4,
        tilt_start=False,
        check_lineage=False,
        seed=0,
        progress=False,
    ).run()
    last = result.steps["proposals"][-1].item()
    # One row for each of the laws, then one for every digit proposed or drawn for its baseline.
    least = 20 * (STEPS - 1 + 4 + last)
    assert least - 1 <= result.cost.network_rows <= least + 20 * last
    assert result.steps["proposals"].sum() > result.steps["proposals"].shape[0]


def _result(log_weights, rewards_, **options):
    images = (2 * rewards_ - 1).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return WeightedSamples(
        samples={"x_0": images},
        log_weights=log_weights,
        certificate=Certificate(target="joint tilt", law="consistent"),
        stats={"reward": rewards_, **options.pop("stats", {})},
        **options,
    )


INK = Target("ink", ink_reward(), 2.0, lambda x: (x.mean((1, 2, 3)) > 0).double(), "dark")


def test_row_of_weighted_chains_agrees_with_arithmetic():
    reward = torch.tensor([0.2, 0.8, 0.4, 0.6])
    result = _result(
        2.0 * reward.double(),
        reward,
        kind="weighted",
        beta=2.0,
        chain_sizes=(2, 2),
        stats={"ancestor": torch.tensor([1, 1, 0, 1])},
    )
    row = describe("some", result, INK)
    weights = (2.0 * reward.double()).softmax(0)
    mean = (weights * reward).sum().item()
    log_z = (2.0 * reward.double()).exp().mean().log().item()
    assert row.reward[0] == pytest.approx(mean)
    parts = (weights * (reward - mean)).reshape(2, 2).sum(1)
    assert row.reward[1] == pytest.approx((2 * parts.square().sum()).sqrt().item())
    assert row.kl == pytest.approx(2.0 * mean - log_z)
    assert row.confirmed == pytest.approx(weights[[1, 3]].sum().item())
    assert row.ancestors == 3
    assert row.corrected is None and not row.kl_is_bound


def test_row_of_corrected_draws_takes_the_residual_weights():
    reward = torch.tensor([0.1, 0.9, 0.9])
    result = _result(
        torch.full((3,), 0.4),
        reward,
        kind="iid",
        beta=2.0,
        log_normalizer=torch.tensor(0.4),
        log_normalizer_error=torch.tensor(0.1),
        residual_log_weights=torch.tensor([0.5, 0.25, 0.25]).log(),
    )
    row = describe("some", result, INK)
    assert row.reward[0] == pytest.approx(1.9 / 3)
    assert row.corrected[0] == pytest.approx(0.5)
    assert row.corrected_ess == pytest.approx(1 / 0.375)
    assert row.kl == pytest.approx(2.0 * 0.5 - 0.4, abs=1e-6)
    assert row.ancestors == 3
    text = markdown({INK: [row]}, 10)
    assert "0.5000" in text and "(3)" in text and "consistent (joint tilt)" in text


def test_spend_keeps_to_the_budget(denoiser, reward):
    settings = SteeringSettings(
        steps=STEPS, training_paths=40, training_updates=4, proposals=3, num_inner=2, acceptances=2
    )
    target = targets(settings, load_classifier("a"), load_classifier("b"))[0]
    found = {each.name: each for each in methods(denoiser, target, settings)}
    for name in ("SMC, tempered posterior mean", "best of 6 runs", "best of 3 by blocks"):
        result = spend(found[name], 1200, 3)
        assert abs(result.cost.network_rows - 1200) <= 6 * STEPS * CHAINS
    exact = spend(found["rejection of whole runs"], 1200, 3)
    assert exact.cost.network_rows == 1200 and 3 <= len(exact) <= 80
    assert [m.setup_rows > 0 for m in found.values()].count(True) == 4


def test_spend_sizes_a_run_by_its_pilot():
    asked = []

    class Sampler:
        def __init__(self, n):
            self.n = n

        def run(self):
            from pyro_tilt.infer import Cost

            return _result(
                torch.zeros(self.n),
                torch.full((self.n,), 0.5),
                kind="iid",
                cost=Cost(network_rows=7 * self.n),
            )

    def make(n, seed):
        asked.append((n, seed))
        return Sampler(n)

    result = spend(Method("some", make), 700, 5)
    assert len(result) == 100 and result.cost.network_rows == 700
    assert asked[0][0] == 4 * CHAINS and asked[0][1] != asked[1][1] == 5


def test_steer_writes_table_numbers_and_pictures(tmp_path, capsys):
    main(
        ["--steer", "--out", str(tmp_path), "--rows", "300", "--reference", "80", "--steps", "4"]
        + ["--training-paths", "40", "--training-updates", "4", "--proposals", "2"]
        + ["--num-inner", "2", "--acceptances", "2"]
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "steering.png",
        "steering.md",
        "steering.json",
    }
    facts = json.loads((tmp_path / "steering.json").read_text())
    threes, ink = facts["targets"]["reads as a 3"], facts["targets"]["more ink"]
    assert len(threes) == 12 + 1 and len(ink) == 10 + 1
    laws = {row["method"]: row["law"] for row in threes}
    assert laws["rejection of whole runs"] == "exact"
    assert laws["SMC, learned probability"] == "consistent"
    assert laws["SVDD, tempered posterior mean"] == "search"
    assert threes[0]["ancestors"] == 80
    assert all(row["network_rows"] > 0 and row["draws"] > 0 for row in threes + ink)
    assert "images" not in threes[0]
    printed = capsys.readouterr().out
    assert "## more ink, beta = 50" in printed
    assert (tmp_path / "steering.png").stat().st_size > 10_000


def test_targets_are_those_of_the_settings():
    reader, judge = load_classifier("a"), load_classifier("b")
    three, ink = targets(SteeringSettings(digit=3), reader, judge)
    assert isinstance(three.reward, rewards.Bounded) and isinstance(ink.reward, rewards.Linear)
    images = torch.randn(20, 1, 8, 8)
    assert torch.equal(three.confirm(images), (judge(images).argmax(-1) == 3).double())
    assert ink.confirm(images).max() <= 1.0
