# SPDX-License-Identifier: Apache-2.0
"""Linear tilts of a diffusion against exactly tilted mixtures."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import diffusion, rewards
from pyro_tilt.infer import LinearTilt, SamplerWarning
from pyro_tilt.infer.tilts import linear_tilt_draws
from pyro_tilt.testing.gates import P_VALUE, Z_SCORE

F64 = torch.float64
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
LOCS = torch.tensor([[-2.5, -0.5], [1.0, 1.5], [2.0, -1.5]], dtype=F64)
SCALES = torch.tensor([[0.5, 0.4], [0.4, 0.6], [0.5, 0.5]], dtype=F64)
THETA = torch.tensor([0.9, -0.5], dtype=F64)


def mixture(dtype=F64):
    parts = dist.Normal(LOCS.to(dtype), SCALES.to(dtype)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(WEIGHTS.to(dtype)), parts)


def model(schedule=None):
    return diffusion.MixtureDiffusion(mixture(), schedule or diffusion.VP.linear(60))


def exact_law(theta):
    return model().tilted_law(rewards.Linear(theta)).law


def sixths(law, draws):
    """Counts of the draws over 3 x 4 cells, by nearest mode and by quadrant about it."""
    parts = law.component_distribution
    mode = (draws.unsqueeze(1) - parts.mean).square().sum(-1).argmin(-1)
    signs = (draws > parts.mean[mode]).long()
    return torch.bincount(mode * 4 + signs[:, 0] * 2 + signs[:, 1], minlength=12).double()


def check_law(draws, law, *, fraction=1.0):
    """
    Chi-square of the draws against as many exact ones (a two-sample test over twelve cells).

    ``fraction`` thins the draws where a known discretisation error must stay below the noise.
    """
    draws = draws[: int(fraction * len(draws))]
    torch.manual_seed(77)
    ours, theirs = sixths(law, draws), sixths(law, law.sample((20 * len(draws),))) / 20
    scale = 1 + 1 / 20
    statistic = float(((ours - theirs).square() / (theirs * scale)).sum())
    return stats.chi2.sf(statistic, 11)


SETTINGS = {
    "VP ancestral": (diffusion.VP.linear(150), "ancestral", 1.0),
    "VP ddim": (diffusion.VP.linear(150), "ancestral", 0.0),
    "VP eta half": (diffusion.VP.cosine(150), "ancestral", 0.5),
    "VE heun": (diffusion.VE.geometric(40, 80.0), "heun", 1.0),
    "RF euler": (diffusion.RectifiedFlow(150), "euler", 1.0),
    "RF heun": (diffusion.RectifiedFlow(50), "heun", 1.0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tilt_is_drawn_under_every_sampler(name):
    """4000 draws: the discretisation, of order 1e-3 in the cells, stays below their noise."""
    schedule, sampler, eta = SETTINGS[name]
    result = LinearTilt(
        model(schedule), THETA, sampler=sampler, eta=eta, num_samples=4000, seed=5
    ).run()
    assert check_law(result.samples["x_0"], exact_law(THETA)) > P_VALUE


def test_the_gate_sees_the_base_law_and_a_tilt_of_half_the_size():
    law = exact_law(THETA)
    for theta in (0 * THETA, 0.5 * THETA, -THETA):
        wrong = linear_tilt_draws(model(), theta, 2000)
        assert check_law(wrong, law) < P_VALUE


@pytest.mark.parametrize("schedule", [diffusion.VP.linear(60), diffusion.VE.geometric(60, 80.0)])
def test_a_shifted_start_is_the_shifted_prediction(schedule):
    """The same noise gives the same draws to 1e-10, whatever the levels."""
    base = model(schedule)
    found = {}
    for form in ("start", "prediction"):
        torch.manual_seed(4)
        found[form] = linear_tilt_draws(base, THETA, 200, form=form)
    assert float((found["start"] - found["prediction"]).abs().max()) <= 1e-10


def test_a_shifted_start_is_wrong_without_all_of_the_noise():
    """Why ``form='start'`` is refused: the unmodified DDIM from the shifted start is far off."""
    base = model(diffusion.VP.linear(60))
    levels = base.schedule.levels
    shift = levels[0].s ** 2 / levels[0].a
    torch.manual_seed(0)
    x = base.start((2000,)) + shift * THETA
    for now, then in zip(levels, levels[1:]):
        x, _ = base.step(x, now, then, sampler="ancestral", eta=0.0)
    assert float((x.mean(0) - exact_law(THETA).mean).norm()) > 1.0
    for sampler, eta in (("ancestral", 0.0), ("ancestral", 0.9), ("heun", 1.0), ("euler", 1.0)):
        with pytest.raises(ValueError, match="form='start' is wrong"):
            LinearTilt(base, THETA, sampler=sampler, eta=eta, form="start")


def test_popular_guidances_are_not_the_tilt():
    """Adding theta / a without the shift, and the gradient through the denoiser, both miss."""
    base, exact = model(diffusion.VP.linear(150)), exact_law(THETA).mean
    right = LinearTilt(base, THETA, num_samples=3000, seed=1).run().samples["x_0"]
    wrong = {kind: guided_draws(base, THETA, 3000, kind) for kind in ("unshifted", "gradient")}
    spread = float(exact_law(THETA).variance.sum().sqrt()) / math.sqrt(3000)
    assert float((right.mean(0) - exact).norm()) < Z_SCORE * spread + 0.02
    for draws in wrong.values():
        assert float((draws.mean(0) - exact).norm()) > 0.1


def guided_draws(base, theta, n, kind):
    """Ancestral sampling with a guided prediction of the data."""

    def denoise(x, level):
        if kind == "unshifted":
            return base.denoise(x, level) + level.s**2 / level.a**2 * theta
        x = x.detach().requires_grad_()
        clean = base.denoise(x, level)
        pull = torch.autograd.grad((clean * theta).sum(), x)[0]
        return clean.detach() + level.s**2 / level.a * pull

    torch.manual_seed(2)
    x, levels = base.start((n,)), base.schedule.levels
    for now, then in zip(levels, levels[1:]):
        mean, std = base.step(x, now, then, denoise=denoise)
        x = mean.detach() + std * torch.randn_like(x)
    return x


def test_a_theta_for_every_draw():
    thetas = torch.stack([THETA, -THETA]).repeat_interleave(2000, 0)
    torch.manual_seed(3)
    for form in ("start", "prediction"):
        draws = linear_tilt_draws(
            model(diffusion.VP.linear(100)), thetas, form=form, max_batch=1500
        )
        assert check_law(draws[:2000], exact_law(THETA)) > P_VALUE
        assert check_law(draws[2000:], exact_law(-THETA)) > P_VALUE


def test_beta_multiplies_theta():
    twice = LinearTilt(model(), THETA, beta=2.0, num_samples=50, seed=0).run()
    once = LinearTilt(model(), 2 * THETA, num_samples=50, seed=0).run()
    assert torch.equal(twice.samples["x_0"], once.samples["x_0"])
    torch.testing.assert_close(twice.stats["reward"], twice.samples["x_0"] @ THETA)
    assert twice.beta == 2.0
    torch.testing.assert_close(twice.log_normalizer, model().log_normalizer(2 * THETA))


def test_kl_and_reweighting():
    result = LinearTilt(
        model(diffusion.VP.linear(100)), THETA, beta=0.8, num_samples=6000, seed=0
    ).run()
    law = exact_law(0.8 * THETA)
    kl = 0.8 * float(law.mean @ THETA) - float(model().log_normalizer(0.8 * THETA))
    spread = float((result.stats["reward"] * 0.8).std()) / math.sqrt(6000)
    assert abs(result.info["kl"] - kl) < Z_SCORE * spread + 0.01
    moved = result.reweight(1.0).expectation("x_0")
    assert float((moved - exact_law(THETA).mean).abs().max()) < 0.1


def test_beta_zero_is_the_base_program_bit_for_bit():
    base = model()
    result = LinearTilt(base, THETA, beta=0.0, num_samples=1, seed=11).run()
    pyro.set_rng_seed(11)
    assert torch.equal(result.samples["x_0"][0], base.program()())


def test_the_offset_of_the_reward_enters_the_evidence_alone():
    reward = rewards.Linear(THETA, offset=2.0)
    with_offset = LinearTilt(model(), reward, beta=0.5, num_samples=20, seed=0).run()
    without = LinearTilt(model(), THETA, beta=0.5, num_samples=20, seed=0).run()
    assert torch.equal(with_offset.samples["x_0"], without.samples["x_0"])
    assert float(with_offset.log_normalizer - without.log_normalizer) == pytest.approx(1.0)


def test_what_a_result_says():
    base = model()
    result = LinearTilt(base, THETA, num_samples=30, num_chains=2, seed=0, max_batch=7).run()
    assert result.kind == "iid" and len(result) == 60 and result.num_chains == 2
    cert = result.certificate
    assert cert.target == "continuous-time tilt of the diffusion" and cert.law == "consistent"
    assert "discretisation" in cert.excludes and "network" not in cert.excludes
    ratios = torch.tensor([level.ratio for level in base.schedule.levels[:-1]], dtype=F64)
    torch.testing.assert_close(result.steps["z"][0], ratios * THETA.norm())
    assert result.info["z_max"] == pytest.approx(float(ratios[0] * THETA.norm()))
    assert result.cost.base_draws == 60 and result.cost.network_rows is None
    assert result.info["denoiser_rows"] == len(result) * base.schedule.steps
    chains = result.samples["x_0"].reshape(2, 30, 2)
    assert not torch.equal(chains[0], chains[1])
    again = LinearTilt(base, THETA, num_samples=30, num_chains=2, seed=0, max_batch=7).run()
    assert torch.equal(again.samples["x_0"], result.samples["x_0"])


@pytest.mark.parametrize("max_z", [1.0, 3.0])
def test_a_warm_start_draws_the_tilt(max_z):
    """With the cap on z the mode weights come from the reweighted start: more draws are needed."""
    base, n = model(), 5000
    result = LinearTilt(base, THETA, max_z=max_z, num_samples=n, seed=3).run()
    assert result.info["z_max"] == pytest.approx(max_z)
    assert result.kind == "weighted" and result.certificate.law == "consistent"
    assert "resampled" in result.certificate.excludes
    assert result.certificate.budget == "steps and num_samples"
    left = len(result.stats["ancestor"].unique()) / n
    assert 0.1 < left < 0.9
    # Resampling leaves about n * start_ess independent ancestors; a gate on a thinned sample is
    # then conservative, as its noise covers that of the ancestors.
    share = 0.5 * result.info["start_ess"] / result.info["rungs"]
    assert check_law(result.samples["x_0"][torch.randperm(n)], exact_law(THETA), fraction=share) > (
        P_VALUE
    )


def test_a_ladder_reaches_a_large_tilt():
    """Of the base draws a few in ten thousand are where the tilt is: one rung would not do."""
    base, theta = model(), torch.tensor([0.5, -4.0], dtype=F64)
    result = LinearTilt(base, theta, max_z=2.0, num_samples=3000, seed=0).run()
    assert result.info["rungs"] >= 3
    law = exact_law(theta)
    spread = (law.variance / 250).sqrt()
    gap = (result.samples["x_0"].mean(0) - law.mean).abs()
    assert bool((gap < Z_SCORE * spread).all())
    # The evidence falls short by a bias of first order in the steps: .16 at 60, .07 at 200.
    fine = Stranger(model(diffusion.VP.linear(400)))
    estimated = LinearTilt(
        fine, theta, max_z=2.0, ess_threshold=0.6, num_samples=3000, seed=1
    ).run()
    error = Z_SCORE * float(estimated.log_normalizer_error) + 0.04
    assert estimated.info["rungs"] >= 4
    assert abs(float(estimated.log_normalizer) - float(model().log_normalizer(theta))) < error


class Stranger:
    """The same model without the exact normaliser, as a network has none."""

    exact = False

    def __init__(self, base):
        self.base, self.schedule, self.event_shape = base, base.schedule, base.event_shape
        self.dtype, self.device = base.dtype, base.device
        self.denoise, self.step = base.denoise, base.step
        self.evaluations, self.program = base.evaluations, base.program


def test_an_inexact_model_has_a_cap_and_an_estimated_evidence():
    base = Stranger(model())
    result = LinearTilt(base, THETA, num_samples=3000, seed=0).run()
    assert result.info["z_max"] == pytest.approx(1.0)
    assert "network error" in result.certificate.excludes
    exact = float(model().log_normalizer(THETA))
    assert abs(float(result.log_normalizer) - exact) < Z_SCORE * float(result.log_normalizer_error)
    assert 0.0 < float(result.log_normalizer_error) < 0.1
    cold = LinearTilt(base, THETA, max_z=1e6, num_samples=100, seed=0).run()
    assert abs(float(cold.log_normalizer) - exact) < 1e-3


class Extrapolating(Stranger):
    """A network that is right near the data and grows with the state beyond them."""

    def __init__(self, base, reach=4.0, slope=0.02):
        super().__init__(base)

        def denoise(x, level):
            size = x.norm(dim=-1, keepdim=True)
            return base.denoise(x, level) + slope * x * (1.0 - reach / size).clamp(min=0.0)

        self.denoise = denoise
        self.step = lambda x, now, then, *, denoise=None, **options: base.step(
            x, now, then, denoise=denoise or self.denoise, **options
        )


def test_a_negative_divergence_is_told_with_z_and_what_to_do():
    theta, base = torch.tensor([2.0, 0.0], dtype=F64), Extrapolating(model())
    options = {"num_samples": 500, "seed": 0, "sampler": "heun"}
    with pytest.warns(SamplerWarning, match="below zero") as caught:
        far = LinearTilt(base, theta, max_z=math.inf, **options).run()
    assert far.info["kl"] < 0.0
    (told,) = [str(each.message) for each in caught]
    assert f"z = {far.info['z_max']:.3g} standard deviations" in told
    assert "set max_z (now inf; 1 by default)" in told
    near = LinearTilt(base, theta, **options).run()
    exact = LinearTilt(model(), theta, num_samples=5000, seed=1).run()
    assert near.info["kl"] == pytest.approx(exact.info["kl"], abs=0.3)


@pytest.mark.parametrize("size", [1e-3, 0.05])
def test_a_divergence_near_zero_is_not_taken_for_a_negative_one(size):
    """Noise alone makes about half of these estimates negative, and warnings are errors here."""
    negative, few = 0, model(diffusion.VP.linear(25))
    for seed in range(12):
        result = LinearTilt(few, size * THETA, num_samples=200, seed=seed).run()
        negative += result.info["kl"] < 0.0
    assert negative > 1


@pytest.mark.parametrize(
    ("theta", "words"),
    [
        (torch.zeros(3), "event shape"),
        (torch.zeros(3, 64, 64), "latent"),
        (torch.zeros(5, 2), "event shape"),
        (torch.tensor([math.nan, 0.0]), "finite"),
        (torch.tensor([math.inf, 0.0]), "finite"),
    ],
)
def test_bad_tilts_are_refused(theta, words):
    with pytest.raises(ValueError, match=words):
        LinearTilt(model(), theta)


def test_bad_options_are_refused():
    base = model()
    with pytest.raises(TypeError, match="diffusion model"):
        LinearTilt(mixture(), THETA)
    with pytest.raises(ValueError, match="sampler"):
        LinearTilt(base, THETA, sampler="dpm")
    with pytest.raises(ValueError, match="eta"):
        LinearTilt(base, THETA, eta=1.5)
    with pytest.raises(ValueError, match="max_z"):
        LinearTilt(base, THETA, max_z=0.0)
    with pytest.raises(ValueError, match="beta"):
        LinearTilt(base, THETA, beta=math.nan)
    with pytest.raises(ValueError, match="rows"):
        linear_tilt_draws(base, torch.zeros(4, 2), 5)
    with pytest.raises(TypeError, match="no arguments"):
        LinearTilt(base, THETA, num_samples=2).run(1.0)


def test_a_model_that_breaks_down_is_named():
    class Broken(Stranger):
        def __init__(self, base):
            super().__init__(base)
            self.step = lambda x, now, then, **_: (x * math.nan, 0.0)

    with pytest.raises(ValueError, match="not finite"):
        LinearTilt(Broken(model()), THETA, num_samples=5).run()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "sampler"),
    [
        (diffusion.VP.linear(400), "ancestral"),
        (diffusion.VE.geometric(80, 80.0), "heun"),
        (diffusion.RectifiedFlow(400), "euler"),
    ],
)
def test_weights_of_a_tilt_that_turns_the_mixture_over(schedule, sampler):
    """
    Weights .5, .3, .2 become .0181, .5088, .4731 at |theta| = 1.25, within .008 of 40,000 draws.

    The standard error of a weight is at most .0025, so that the noise alone passes with a
    probability of .998, and with fixed seeds always.
    """
    wanted = torch.tensor([0.0181, 0.5088, 0.4731], dtype=F64)
    theta = 1.25 * torch.tensor([0.6, 0.8], dtype=F64)
    scales = torch.tensor([[0.5, 0.4], [0.4, 0.6], [0.5, 0.5]], dtype=F64)
    gains = (wanted / WEIGHTS).log()
    along = gains - gains[0] - 0.5 * (scales.square() - scales[0].square()) @ theta.square()
    across = torch.tensor([-0.8, 0.6], dtype=F64)
    locs = (along / 1.25**2).unsqueeze(-1) * theta + torch.tensor(
        [[0.0], [1.5], [-1.5]], dtype=F64
    ) * across
    parts = dist.Normal(locs, scales).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts)
    base = diffusion.MixtureDiffusion(law, schedule)
    exact = base.tilted_law(rewards.Linear(theta)).law
    torch.testing.assert_close(exact.mixture_distribution.probs, wanted, atol=1e-4, rtol=0)
    draws = LinearTilt(base, theta, sampler=sampler, num_samples=40_000, seed=0).run()
    parts = exact.component_distribution
    scores = parts.log_prob(draws.samples["x_0"].unsqueeze(-2)) + wanted.log()
    assert float((scores.softmax(-1).mean(0) - wanted).abs().max()) < 0.008
