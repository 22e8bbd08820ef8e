# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pytest
import torch

from pyro_tilt.examples.digits import digits_program, ink_reward, load_classifier, load_denoiser
from pyro_tilt.examples.digits.ink_tilt import (
    CHAINS,
    InkSettings,
    as_diffusion,
    at_rows,
    compare_ink,
    ink_page,
    ink_table,
    ways,
)
from pyro_tilt.examples.digits.model import predict_noise, reverse_steps
from pyro_tilt.infer import LinearTilt

SMALL = InkSettings(rows=1200, reference=200, steps=10, caps=(1.0, math.inf))


@pytest.fixture(scope="module")
def denoiser():
    return load_denoiser()


@pytest.fixture(scope="module")
def found(denoiser):
    return compare_ink(denoiser, load_classifier("b"), SMALL)


@pytest.mark.parametrize("steps", [10, 40])
def test_the_diffusion_takes_the_steps_of_the_program(denoiser, steps):
    """Times, schedule, clipping and the last step agree."""
    base, schedule = as_diffusion(denoiser, steps), reverse_steps(steps)
    levels = base.schedule.levels
    assert len(levels) == steps + 1
    image = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for step, now, then in zip(schedule, levels, levels[1:], strict=False):
        mean, std = base.step(image, now, then)
        image = step.mean(image, predict_noise(denoiser, image, step.timestep))
        torch.testing.assert_close(mean, image, rtol=0, atol=1e-5)
        assert std == pytest.approx(step.std)
        image = image + step.std * torch.randn_like(image)


def test_no_tilt_draws_the_base(denoiser):
    base, reward = as_diffusion(denoiser, 10), ink_reward()
    result = LinearTilt(base, reward, beta=0.0, num_samples=400, seed=0, progress=False).run()
    pyro.set_rng_seed(1)
    with pyro.plate("particles", 400):
        ink = reward(digits_program(denoiser, steps=10)).double()
    mine = reward(result.samples["x_0"]).double()
    error = float(((ink.var() + mine.var()) / 400).sqrt())
    # False alarms: 1e-5 of a standard normal.
    assert abs(float(mine.mean() - ink.mean())) < 4.42 * error


def test_every_way_gains_ink_at_equal_rows(found):
    base, rows = found
    assert base.shape == (200, 1, 8, 8)
    assert len(rows) == 1 + len(ways(load_denoiser(), SMALL))
    assert rows[0].outcome.network_rows == 200 * 10
    for row in rows[1:]:
        assert abs(row.outcome.network_rows / SMALL.rows - 1.0) <= 0.1, row.outcome.method
    for row in rows:
        # Half a standard deviation of the base; the tilt itself gains about one and a half.
        assert row.gain > 0.5, row.outcome.method
        assert 1.0 <= row.ess <= row.outcome.draws


def test_z_is_reported_where_the_network_is_shifted(denoiser, found):
    _, rows = found
    z = {row.outcome.method: row.z_max for row in rows if row.z_max is not None}
    slope = 50.0 * float(ink_reward().theta.norm())
    first = as_diffusion(denoiser, 10).schedule.levels[0].ratio
    assert z == {
        "LinearTilt, max_z = 1": pytest.approx(1.0),
        "LinearTilt, no cap on z": pytest.approx(slope * first),
    }


def test_budget_is_met_by_a_price_that_is_only_known_afterwards(denoiser):
    make = ways(denoiser, SMALL)["LinearTilt, max_z = 1"]
    seen = []

    def watched(draws, seed):
        seen.append(draws)
        return make(draws, seed)

    # The warm start costs more than the guess of one base run for each draw.
    result = at_rows(watched, 1600, 10.0, seed=0)
    assert seen[0] == 160 and seen[-1] < 160
    assert all(draws % CHAINS == 0 for draws in seen)
    assert abs(result.cost.network_rows / 1600 - 1.0) <= 0.1


def test_table_and_page_show_every_way(found):
    base, rows = found
    text = ink_table(rows)
    assert len({line.count("|") for line in text.splitlines()}) == 1
    figure = ink_page(base, rows[1:])
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0].startswith("base: mean ink 0.3")
    for row, title in zip(rows[1:], titles[1:], strict=True):
        assert row.outcome.method in text and title.startswith(row.outcome.method)
