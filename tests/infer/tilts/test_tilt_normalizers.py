# SPDX-License-Identifier: Apache-2.0
"""Normalisers of linear tilts against closed forms."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import diffusion, rewards
from pyro_tilt.infer import SamplerWarning
from pyro_tilt.infer.tilts import (
    SharedNormalizers,
    line_normalizer,
    linear_tilt_draws,
    shared_normalizers,
    telescoping_normalizer,
    telescoping_size,
    thermodynamic_normalizer,
)
from pyro_tilt.testing.gates import Z_SCORE

F64 = torch.float64
THETA = torch.tensor([0.9, -0.5], dtype=F64)


def model(steps=60):
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    locs = torch.tensor([[-2.5, -0.5], [1.0, 1.5], [2.0, -1.5]], dtype=F64)
    scales = torch.tensor([[0.5, 0.4], [0.4, 0.6], [0.5, 0.5]], dtype=F64)
    mixture = dist.MixtureSameFamily(
        dist.Categorical(weights), dist.Normal(locs, scales).to_event(1)
    )
    return diffusion.MixtureDiffusion(mixture, diffusion.VP.linear(steps))


def test_telescoping_size_is_hoeffdings():
    rungs, draws = telescoping_size(1.7, 3.0, epsilon=0.2, delta=0.01)
    assert rungs == 6
    each = 0.2 / (2 * (1 + math.e) * math.e * 6)
    # Draws in an interval of length e, a two-sided failure of delta / N at most for each mean.
    failure = 2 * math.exp(-2 * draws * each**2 / math.e**2)
    assert failure <= 0.01 / rungs < 2 * math.exp(-2 * (draws - 2) * each**2 / math.e**2)
    assert telescoping_size(0.0, 3.0, epsilon=0.2, delta=0.01)[0] == 1


@pytest.mark.parametrize("estimate", ["telescoping", "thermodynamic"])
def test_sampled_normalizers(estimate):
    """The slack is for the time discretisation of the draws, of order 1e-2 at 100 steps."""
    base, exact = model(100), float(model().log_normalizer(THETA))
    torch.manual_seed(0)
    if estimate == "telescoping":
        found = telescoping_normalizer(base, THETA, radius=4.5, num_samples=1500)
        assert found.rows == 5 * 1500 * 100
    else:
        found = thermodynamic_normalizer(base, THETA, num_samples=1000)
        assert found.rows == 6 * 1000 * 100
    assert 0.0 < found.error < 0.1
    assert abs(found.value - exact) < Z_SCORE * found.error + 0.01


@pytest.mark.parametrize("ratio", [10.0, 30.0, 100.0])
def test_the_line_integral_needs_no_draw(ratio):
    base, exact = model(), float(model().log_normalizer(THETA))
    found = line_normalizer(base, THETA, ratio=ratio)
    assert abs(found.value - exact) < found.error
    # The remainder of the extrapolated value goes as the fourth power of 1 / sigma.
    assert abs(found.value - exact) < 300.0 / ratio**4 + 1e-9
    assert found.rows == 34


def test_the_line_integral_around_another_centre():
    base, exact = model(), float(model().log_normalizer(THETA))
    found = line_normalizer(base, THETA, ratio=100.0, centre=torch.tensor([3.0, -3.0], dtype=F64))
    assert abs(found.value - exact) < found.error < 0.01


def test_draws_of_few_tilts_serve_many():
    """Anchors pooled by MBAR: every normaliser within its error, on a grid between them."""
    base = model(100)
    anchors = torch.stack([k / 2 * THETA for k in range(-1, 3)])
    torch.manual_seed(0)
    shared = shared_normalizers(base, anchors, num_samples=1500)
    wanted = torch.stack([k / 5 * THETA for k in range(-2, 6)])
    values, errors = shared.log_normalizer(wanted)
    exact = base.log_normalizer(wanted)
    assert float(errors.max()) < 0.1
    assert bool(((values - exact).abs() < Z_SCORE * errors + 0.01).all())
    zero, none = shared.log_normalizer(torch.zeros(1, 2, dtype=F64))
    assert float(zero.abs()) < 1e-8 and float(none) < 1e-6
    assert float(shared.effective(wanted).min()) > 0.05


def test_pooling_exact_draws_is_right_on_average():
    """Draws without discretisation: the pooled estimates of 40 runs average to the truth."""
    base = model()
    anchors = torch.stack([0.5 * THETA, THETA])
    torch.manual_seed(5)
    laws = [base.mixture, *(base.tilted_law(rewards.Linear(t)).law for t in anchors)]
    tilts = torch.cat([torch.zeros(1, 2, dtype=F64), anchors])
    found, errors = [], []
    for _ in range(40):
        draws = torch.cat([law.sample((300,)) for law in laws])
        shared = SharedNormalizers.fit(tilts, draws, torch.tensor([300, 300, 300]))
        value, error = shared.log_normalizer(THETA[None])
        found.append(value)
        errors.append(error)
    values, stated = torch.cat(found), torch.cat(errors)
    gap = float(values.mean() - base.log_normalizer(THETA))
    assert abs(gap) < Z_SCORE * float(values.std()) / math.sqrt(40) + 0.003
    # The stated error is that which the runs show, within what 40 of them can tell.
    assert 0.6 < float(stated.mean() / values.std()) < 1.6


def test_pooled_errors_are_those_of_repeated_runs():
    """Normal laws two standard deviations apart; 200 runs tell a spread within 5 %."""
    torch.manual_seed(6)
    anchors = torch.tensor([[0.0], [2.0], [4.0]], dtype=F64)
    found, stated = [], []
    for _ in range(200):
        draws = torch.cat([anchor + torch.randn(300, 1, dtype=F64) for anchor in anchors])
        shared = SharedNormalizers.fit(anchors, draws, torch.tensor([300, 300, 300]))
        value, error = shared.log_normalizer(anchors[2:])
        found.append(float(value))
        stated.append(float(error))
    values = torch.tensor(found, dtype=F64)
    spread = float(values.std())
    # The bias of the logarithm is about half of the variance.
    assert abs(float(values.mean()) - 8.0) < Z_SCORE * spread / math.sqrt(200) + spread**2
    assert 1 - Z_SCORE * 0.05 < sum(stated) / 200 / spread < 1 + Z_SCORE * 0.05


def test_a_tilt_far_from_every_anchor_is_known_as_such():
    base = model()
    shared = shared_normalizers(base, 0.2 * THETA[None], num_samples=400)
    assert float(shared.effective(12 * THETA[None])) < 0.05


def test_bad_arguments():
    with pytest.raises(ValueError, match="radius"):
        telescoping_normalizer(model(), THETA, radius=-1.0)
    with pytest.raises(ValueError, match="event shape"):
        line_normalizer(model(), torch.zeros(3))


def test_a_radius_that_the_draws_exceed():
    with pytest.raises(ValueError, match="does not bound the norm of the data: half of the draws"):
        telescoping_normalizer(model(), THETA, radius=0.01, num_samples=100)
    norms = linear_tilt_draws(model(), torch.zeros_like(THETA), 400).norm(dim=-1)
    between = 0.5 * float(norms.median() + norms.max())
    with pytest.warns(SamplerWarning, match=r"draws have a norm above radius = .* Raise radius"):
        telescoping_normalizer(model(), 0.01 * THETA, radius=between, num_samples=400)


def test_the_mean_of_a_tilt_from_one_prediction():
    """What the line integral rests on: at high noise D(m + sigma^2 theta) is the tilted mean."""
    base = model()
    level = base.schedule.start
    point = level.a * level.ratio**2 * THETA
    draws = linear_tilt_draws(model(200), THETA, 2000)
    gap = base.denoise(point, level) - draws.mean(0)
    assert bool((gap.abs() < Z_SCORE * draws.std(0) / math.sqrt(2000) + 0.02).all())
