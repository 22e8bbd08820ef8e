# SPDX-License-Identifier: Apache-2.0
"""The contract of a distribution: shapes, normalised densities, gradients, errors."""

import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_tilt import rewards
from pyro_tilt.distributions import Tilted, Tractability


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def sine(x):
    return torch.sin(x)


def product(x):
    return 0.1 * x.prod(-1)


VECTOR = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())


def test_closed_form_shapes_and_values():
    loc = double([[0.0], [1.0]])
    theta, beta = double([0.5, -1.0, 2.0]), double([[2.0], [0.25]])
    tilted = Tilted(dist.Normal(loc, 1.5), rewards.Linear(theta, 0), beta)
    assert tilted.batch_shape == (2, 3)
    assert tilted.event_shape == ()
    slope = beta * theta
    torch.testing.assert_close(tilted.log_normalizer, loc * slope + 1.125 * slope**2)
    torch.testing.assert_close(tilted.mean, loc + 2.25 * slope)
    x = torch.randn(4, 1, 2, 3).double()
    expected = dist.Normal(loc, 1.5).log_prob(x) + slope * x - tilted.log_normalizer
    torch.testing.assert_close(tilted.log_prob(x), expected)
    torch.testing.assert_close(tilted.unnormalized_log_prob(x), expected + tilted.log_normalizer)
    assert tilted.sample((5, 1)).shape == (5, 1, 2, 3)
    assert tilted.sample().dtype == torch.float64
    assert tilted.log_prob(double(0.3)).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: Tilted(dist.Normal(t(0.3), t(2.0)), rewards.Linear(t(-0.7))),
        lambda t: Tilted(dist.Normal(t(0.3), t(2.0)), lambda x: torch.sin(2 * x), t(1.5)),
        lambda t: Tilted(dist.Gamma(t(2.0), t(1.0)), lambda x: -x.sqrt(), 3.0),
        lambda t: Tilted(
            dist.Normal(t(0.3), t(2.0)), torch.cos, log_normalizer=lambda base: t(0.0)
        ),
    ],
)
def test_densities_integrate_to_what_they_say(make, dtype):
    tilted = make(lambda value: torch.tensor(value, dtype=dtype))
    x = torch.linspace(1e-4, 60, 60_001, dtype=dtype)
    if isinstance(tilted.base, dist.Normal):
        x = torch.linspace(-30, 30, 60_001, dtype=dtype)
    mass = torch.trapezoid(tilted.log_prob(x).double().exp(), x.double())
    given = tilted.tractability.normalizer == "given"
    unnormalised = torch.trapezoid(tilted.unnormalized_log_prob(x).double().exp(), x.double())
    expected = unnormalised if given else 1.0
    assert mass.item() == pytest.approx(float(expected), abs=2e-5)
    assert tilted.log_prob(x).dtype == dtype


@pytest.mark.parametrize(
    ("base", "reward"),
    [
        (dist.Normal(0.5, 2.0), rewards.Linear(torch.tensor(1.0))),
        (dist.StudentT(3.0), sine),
        (dist.Bernoulli(0.3), sine),
        (dist.Normal(torch.zeros(2), 1.0).to_event(1), product),
        (dist.Normal(0.0, 1.0), rewards.Constraint(lambda x: x > 0)),
    ],
)
@pytest.mark.parametrize("beta", [0.0, 0, torch.tensor(0.0), torch.zeros(3, 1)])
def test_beta_zero_is_the_base_bit_for_bit(base, reward, beta):
    tilted = Tilted(base, reward, beta)
    if isinstance(beta, torch.Tensor):
        base = base.expand(torch.broadcast_shapes(base.batch_shape, beta.shape))
    torch.manual_seed(7)
    ours = tilted.sample((50,))
    torch.manual_seed(7)
    theirs = base.sample((50,))
    assert torch.equal(ours, theirs)
    assert torch.equal(tilted.log_prob(theirs), base.log_prob(theirs))
    assert torch.equal(tilted.log_normalizer, torch.zeros(base.batch_shape))
    assert torch.equal(kl_divergence(tilted, tilted.base), torch.zeros(base.batch_shape))
    assert tilted.tractability.sampling == "exact"


def test_gradient_at_beta_zero_is_the_mean_reward():
    beta = double(0.0).requires_grad_()
    tilted = Tilted(dist.Normal(double(0.7), 1.0), rewards.Linear(double(2.0)), beta)
    (slope,) = torch.autograd.grad(tilted.log_normalizer, beta)
    assert slope.item() == pytest.approx(1.4)


def test_gradients_of_beta_reward_and_base():
    beta, theta, loc = (double(v).requires_grad_() for v in (0.7, [1.5, -0.4], [0.2, 0.1]))
    base = dist.Normal(loc, 1.0).to_event(1)
    tilted = Tilted(base, rewards.Linear(theta), beta)
    with torch.no_grad():
        tilted.sample()
    x = double([0.3, -1.0])
    grads = torch.autograd.grad(tilted.log_prob(x), [beta, theta, loc])
    slope = (beta * theta).detach()
    score = x - loc.detach() - slope
    torch.testing.assert_close(grads[0], theta.detach() @ score)
    torch.testing.assert_close(grads[1], beta.detach() * score)
    torch.testing.assert_close(grads[2], score)


BATCHED = {
    "closed form": lambda: Tilted(
        dist.Normal(0.0, 1.0), rewards.Linear(double([1.0, -2.0, 0.5]), 0), double([[1.0], [2.0]])
    ),
    "quadrature": lambda: Tilted(
        dist.Normal(double(0.0), double([1.0, 2.0, 3.0])), sine, double([[1.0], [2.0]])
    ),
    "enumeration": lambda: Tilted(
        dist.Bernoulli(double([0.2, 0.5, 0.9])), sine, double([[1.0], [2.0]])
    ),
    "given": lambda: Tilted(
        dist.Poisson(double([1.0, 2.0, 3.0])), sine, double([[1.0], [2.0]]),
        log_normalizer=double([[0.1], [0.2]]),
    ),
    "bounded": lambda: Tilted(
        dist.Poisson(double([1.0, 2.0, 3.0])), rewards.Bounded(sine, -1, 1), double([[1.0], [2.0]]),
        log_normalizer=lambda base: 0.1 * base.rate,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BATCHED))
@pytest.mark.parametrize("first", [False, True])
def test_expand_repeats_the_law(name, first):
    tilted = BATCHED[name]()
    if first:
        tilted.sample()
    wide = tilted.expand((4, 2, 3)).expand((5, 4, 2, 3))
    assert isinstance(wide, Tilted)
    assert wide.batch_shape == (5, 4, 2, 3)
    x = torch.bernoulli(torch.full((5, 4, 2, 3), 0.5)).double()
    assert torch.equal(wide.log_prob(x), tilted.log_prob(x))
    assert wide.log_normalizer.shape == (5, 4, 2, 3)
    assert torch.equal(wide.log_normalizer, tilted.log_normalizer.expand(5, 4, 2, 3))
    assert wide.sample((6,)).shape == (6, 5, 4, 2, 3)
    draws = wide.sample((60,)).flatten(0, 2)
    assert len(draws[:, 0, 0].unique()) > 1
    # Elements of the batch keep their own law.
    gap = draws.mean(0) - tilted.sample((1200,)).mean(0)
    assert (gap.abs() < 6 * draws.std(0) * math.sqrt(2 / 1200)).all()


def test_expand_of_a_batch_of_one():
    tilted = Tilted(dist.Normal(double([[0.0], [4.0]]), 1.0), sine, double([[1.0], [-2.0]]))
    wide = tilted.expand((2, 3))
    x = torch.randn(2, 3).double()
    assert torch.equal(wide.log_prob(x), tilted.log_prob(x))
    draws = wide.sample((4000,))
    assert (draws.mean((0, 2)) - tilted.mean[:, 0]).abs().max() < 0.1
    with pytest.raises((RuntimeError, ValueError)):
        tilted.expand((3, 3))


def test_to_event_and_mask():
    tilted = Tilted(dist.Normal(double([0.0, 1.0, 2.0]), 1.0), sine, 2.0)
    x = torch.randn(4, 3).double()
    event = tilted.to_event(1)
    assert event.event_shape == (3,)
    torch.testing.assert_close(event.log_prob(x), tilted.log_prob(x).sum(-1))
    assert event.sample((2,)).shape == (2, 3)
    masked = tilted.mask(torch.tensor([True, False, True]))
    assert (masked.log_prob(x)[:, 1] == 0).all()
    assert torch.equal(masked.log_prob(x)[:, 2], tilted.log_prob(x)[:, 2])
    base = dist.Normal(double([0.0, 1.0, 2.0]), 1.0)
    torch.testing.assert_close(
        kl_divergence(event, base.to_event(1)), kl_divergence(tilted, base).sum()
    )


def test_support_enumeration_and_flags_are_those_of_the_base():
    tilted = Tilted(dist.Gamma(2.0, 1.0), sine)
    assert tilted.support is tilted.base.support
    assert not tilted.has_rsample
    assert not tilted.has_enumerate_support
    discrete = Tilted(dist.Categorical(torch.ones(2, 3)), lambda x: x * 1.0)
    assert discrete.has_enumerate_support
    assert discrete.enumerate_support().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert discrete.enumerate_support(expand=False).shape == (3, 1)


def test_an_unknown_normaliser_is_refused_with_the_ways_out():
    tilted = Tilted(VECTOR, product)
    x = torch.ones(3, 2).double()
    for ask in (lambda: tilted.log_prob(x), lambda: tilted.log_normalizer):
        with pytest.raises(NotImplementedError) as error:
            ask()
        for word in (
            "log_normalizer=",
            '"constant"',
            "joint_tilt",
            "align",
            "enumerable",
            "scalar",
        ):
            assert word in str(error.value)
    for name in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match=name):
            getattr(tilted, name)
    with pytest.raises(NotImplementedError):
        tilted.entropy()
    with pytest.raises(NotImplementedError, match="not known exactly"):
        kl_divergence(tilted, VECTOR)
    assert tilted.tractability.normalizer == "unknown"
    expected = VECTOR.log_prob(x) + product(x)
    torch.testing.assert_close(tilted.unnormalized_log_prob(x), expected)


def test_given_normalisers():
    x = torch.randn(3, 2).double()
    score = VECTOR.log_prob(x) + product(x)
    constant = Tilted(VECTOR, product, log_normalizer="constant")
    assert torch.equal(constant.log_prob(x), score)
    with pytest.raises(NotImplementedError, match="does not vary"):
        _ = constant.log_normalizer
    assert torch.equal(Tilted(VECTOR, product, log_normalizer=1.25).log_prob(x), score - 1.25)
    batched = Tilted(VECTOR, product, log_normalizer=double([0.5, 1.0, 2.0]))
    assert batched.batch_shape == (3,)
    assert torch.equal(batched.log_prob(x), score - double([0.5, 1.0, 2.0]))
    seen = []

    def normalizer(base):
        seen.append(base)
        return base.loc.sum()

    called = Tilted(VECTOR, product, log_normalizer=normalizer)
    called.log_prob(x)
    called.expand((3,)).log_prob(x)
    assert seen == [VECTOR]
    # What is given wins over what would be found, and draws come from the exact law.
    wins = Tilted(dist.Normal(0.0, 1.0), rewards.Linear(torch.tensor(2.0)), log_normalizer=9.0)
    assert wins.log_normalizer == 9.0
    assert wins.tractability == Tractability("exact", "given", 0.0, wins.tractability.reason)
    assert wins.sample((1000,)).mean() > 1.5
    with pytest.raises(ValueError, match="broadcast to the batch shape"):
        Tilted(VECTOR, product, log_normalizer=lambda base: torch.zeros(3)).log_prob(x)


def test_bad_arguments_are_refused_at_once():
    base = dist.Normal(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"event_dim=1.*event shape \(\)"):
        Tilted(base, rewards.Linear(torch.ones(3)))
    with pytest.raises(ValueError, match=r"base \(3,\), reward \(\), beta \(2,\)"):
        Tilted(base, sine, torch.ones(2))
    with pytest.raises(ValueError, match="beta must be finite"):
        Tilted(base, sine, math.nan)
    with pytest.raises(ValueError, match="beta must be finite"):
        Tilted(base, sine, torch.tensor([1.0, math.inf, 0.0]))
    with pytest.raises(TypeError, match="beta must be a number"):
        Tilted(base, sine, "1")
    with pytest.raises(TypeError, match="base must be a distribution"):
        Tilted(torch.zeros(3), sine)
    with pytest.raises(TypeError):
        Tilted(base, torch.zeros(3))
    with pytest.raises(ValueError, match="only word"):
        Tilted(base, sine, log_normalizer="unknown")
    with pytest.raises(TypeError, match="log_normalizer must be"):
        Tilted(base, sine, log_normalizer=[1.0])
    with pytest.raises(ValueError, match="tilt first and mask after"):
        Tilted(base.mask(torch.tensor([True, False, True])), sine)


def test_bad_rewards_are_refused_in_log_prob():
    tilted = Tilted(VECTOR, lambda x: x.sum(-1) * math.nan, log_normalizer=0.0)
    with pytest.raises(ValueError, match="NaN for 3 of 3"):
        tilted.log_prob(torch.ones(3, 2).double())
    tilted = Tilted(VECTOR, lambda x: x, log_normalizer=0.0)
    with pytest.raises(ValueError, match=r"shape \(3,\), got shape \(3, 2\)"):
        tilted.log_prob(torch.ones(3, 2).double())


def test_kl_to_the_base_is_the_reward_gained_less_log_z():
    base = dist.MultivariateNormal(double([1.0, -1.0]), double([[2.0, 0.3], [0.3, 0.5]]))
    theta = double([0.4, 1.1])
    tilted = Tilted(base, rewards.Linear(theta), 1.5)
    expected = 1.5 * (tilted.mean @ theta) - tilted.log_normalizer
    torch.testing.assert_close(kl_divergence(tilted, base), expected)
    # Against another member of the family, and between two tilts.
    other = Tilted(base, rewards.Linear(theta), -0.5)
    cross = kl_divergence(tilted, other)
    torch.testing.assert_close(cross, kl_divergence(tilted.law, other.law))
    assert cross > kl_divergence(tilted, base)


def test_kl_without_a_pair_of_torch_has_a_gradient():
    theta = double([0.4, -0.6]).requires_grad_()
    base = dist.Gumbel(double(0.5), 1.5)
    tilted = Tilted(base, rewards.Linear(theta, event_dim=0), 0.5)
    kl = kl_divergence(tilted, base)
    torch.testing.assert_close(kl, 0.5 * theta * tilted.mean - tilted.log_normalizer)
    (gradient,) = torch.autograd.grad(kl.sum(), theta)
    torch.testing.assert_close(gradient, 0.25 * theta * tilted.variance)
    wide = tilted.expand([3, 2])
    torch.testing.assert_close(kl_divergence(wide, wide.base), kl.expand(3, 2))
    with torch.no_grad():
        assert not kl_divergence(tilted, base).requires_grad
    # From any other law of that family it is not known.
    with pytest.raises(NotImplementedError):
        kl_divergence(tilted, dist.Gumbel(double(0.0), 1.0))


def test_what_a_law_does_not_know_is_named():
    tilted = Tilted(dist.Normal(double(0.0), 1.0), lambda x: -x.abs())
    for ask in (tilted.cdf, tilted.icdf):
        with pytest.raises(NotImplementedError, match=r"Tilted\.i?cdf: QuadratureLaw has none"):
            ask(double(0.3))


def test_a_negative_beta_of_a_constraint_is_explained():
    positive = rewards.Constraint(lambda x: x > 0)
    for base in (dist.Normal(0.0, 1.0), dist.Bernoulli(0.5)):
        with pytest.raises(ValueError, match=r"negative beta turns -inf into \+inf"):
            Tilted(base, positive, -1.0).sample()


def test_a_tilt_of_a_tilt_is_one_tilt():
    base = dist.Normal(double(0.5), 2.0)
    inner = Tilted(base, rewards.Linear(double(1.0)), 0.5)
    outer = Tilted(inner, rewards.Quadratic(double(-0.3), double(0.0)), 2.0)
    both = Tilted(base, rewards.Linear(double(0.5)) + rewards.Quadratic(double(-0.6), double(0.0)))
    assert outer.tractability.normalizer == "closed form"
    x = torch.randn(5).double()
    torch.testing.assert_close(outer.log_prob(x), both.log_prob(x))
    torch.testing.assert_close(outer.log_normalizer, both.log_normalizer - inner.log_normalizer)
    boxed = Tilted(Tilted(base, torch.tanh), sine)
    expected = Tilted(base, lambda x: torch.tanh(x) + torch.sin(x))
    torch.testing.assert_close(boxed.log_prob(x), expected.log_prob(x), atol=1e-8, rtol=0.0)
    unknown = Tilted(Tilted(VECTOR, product), product)
    with pytest.raises(NotImplementedError):
        unknown.log_prob(torch.zeros(2).double())
    assert unknown.sample((10,)).shape == (10, 2)


def test_pickles_after_use():
    tilted = Tilted(dist.Normal(double(0.0), 1.0), sine, double(1.0).requires_grad_())
    value = tilted.log_prob(double(0.4))
    again = pickle.loads(pickle.dumps(tilted))
    torch.testing.assert_close(again.log_prob(double(0.4)), value)


def test_repr_and_tractability_say_what_it_is():
    tilted = Tilted(dist.Normal(0.0, 1.0), rewards.Linear(torch.tensor(1.5)), 2.0)
    assert repr(tilted) == (
        "Tilted(Normal(loc: 0.0, scale: 1.0), Linear(theta=tensor(1.5), event_dim=0), beta=2.0)"
    )
    known = tilted.tractability
    assert (known.sampling, known.normalizer, known.error) == ("exact", "closed form", 0.0)
    bounded = Tilted(VECTOR, rewards.Bounded(product, -1, 1)).tractability
    assert (bounded.sampling, bounded.normalizer) == ("rejection", "unknown")
    learned = Tilted(VECTOR, product).tractability
    assert learned.sampling == "lcb"
    assert "consistent" in learned.reason
