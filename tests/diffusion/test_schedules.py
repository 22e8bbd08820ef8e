# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: levels, end points, inverses, refusals."""

import math

import pytest

from pyro_tilt import diffusion
from pyro_tilt.diffusion import VE, VP, Level, RectifiedFlow, TableSchedule

SCHEDULES = [
    VP.linear(40),
    VP.cosine(40),
    VE.geometric(40, 80.0),
    RectifiedFlow(40),
    TableSchedule(
        [Level(math.cos(0.1 * t), math.sin(0.1 * t), float(t)) for t in range(1, 15)],
        [14.0, 9.0, 4.0, 1.0],
    ),
]


def test_vp_linear_is_the_stated_curve():
    levels = VP.linear(10, beta_min=0.2, beta_max=8.0).levels
    for k, level in enumerate(levels):
        t = 1 - k / 10
        total = 0.2 * t + 0.5 * 7.8 * t * t
        assert level.a == pytest.approx(math.exp(-0.5 * total), rel=1e-12)
        assert level.a**2 + level.s**2 == pytest.approx(1.0, rel=1e-12)


def test_vp_cosine_is_the_stated_curve():
    for level in VP.cosine(10).levels:
        phase = 0.5 * math.pi * (level.time + 0.008) / 1.008
        first = 0.5 * math.pi * 0.008 / 1.008
        assert level.a == pytest.approx(math.cos(phase) / math.cos(first), rel=1e-9)


def test_geometric_and_straight_levels():
    sigmas = [level.s for level in VE.geometric(5, 16.0, sigma_min=1.0).levels]
    assert sigmas == pytest.approx([16.0, 8.0, 4.0, 2.0, 1.0, 0.0])
    levels = RectifiedFlow(4, end=0.8).levels
    assert [level.s for level in levels] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert all(level.a + level.s == pytest.approx(1.0) for level in levels)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_time_at_is_the_inverse_of_the_ratio(schedule):
    for level in schedule.levels[:-1]:
        again = schedule.level(schedule.time_at(level.ratio))
        assert again.ratio == pytest.approx(level.ratio, rel=1e-6)
        assert again.a == pytest.approx(level.a, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_starting_lower_keeps_the_levels_below(schedule):
    ratio = 0.5 * (schedule.levels[1].ratio + schedule.levels[2].ratio)
    lower = schedule.starting_at(ratio)
    assert lower.start.ratio == pytest.approx(ratio, rel=1e-9)
    assert lower.levels[1:] == schedule.levels[2:]
    # A level of the grid is not visited twice.
    assert schedule.starting_at(schedule.levels[1].ratio).steps == schedule.steps - 1


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=repr)
def test_a_new_grid_has_the_steps_asked_for(schedule):
    other = schedule.starting_at(0.7, 25)
    assert other.steps == 25 and other.start.ratio == pytest.approx(0.7)
    assert schedule.with_steps(7).steps == 7
    assert schedule.with_steps(7).start == schedule.start


@pytest.mark.parametrize(
    "make",
    [
        lambda: RectifiedFlow(10, end=1.0),
        lambda: VP.cosine(10, end=1.0),
        lambda: TableSchedule([Level(0.0, 1.0, 2.0), Level(0.6, 0.8, 1.0)], [2.0, 1.0]),
    ],
)
def test_no_signal_at_a_visited_time_is_refused(make):
    with pytest.raises(ValueError, match="a = 0 at time"):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VP.linear(0), "steps"),
        (lambda: VP.linear(2.5), "steps"),
        (lambda: VP.linear(10, beta_min=0.0), "beta_min"),
        (lambda: VP.linear(10, beta_min=5.0, beta_max=1.0), "beta_min"),
        (lambda: VE.geometric(10, 0.001), "sigma_min"),
        (lambda: VE([3.0, 4.0, 0.0]), "decrease"),
        (lambda: VE([3.0, 1.0]), "clean"),
        (lambda: VP.linear(10).starting_at(0.0), "positive"),
        (lambda: SCHEDULES[4].starting_at(1e4), "trained"),
    ],
)
def test_bad_schedules_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_repr_states_the_end_points():
    assert repr(diffusion.RectifiedFlow(7)) == "RectifiedFlow(steps=7, a_T=0.001, s_T=0.999)"
