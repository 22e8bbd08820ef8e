# SPDX-License-Identifier: Apache-2.0
"""Learned twists against exact soft values."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import scan
from pyro_tilt.infer import ZeroWeights
from pyro_tilt.infer.smc import TwistError
from pyro_tilt.infer.twists import SharedNetwork, StepHeads, learn_twists, load_twist
from pyro_tilt.testing.gates import Z_SCORE
from pyro_tilt.testing.hidden_markov import two_state_hmm
from pyro_tilt.testing.linear_gaussian import linear_gaussian_chain
from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion


def one_hot(state):
    return torch.nn.functional.one_hot(state.long(), 64).float()


def upper(weights):
    """
    Bounds the sum of weights times squared standard normals, but with probability 1e-5.

    (Laurent and Massart 2000, Annals of Statistics 28, Lemma 1.)
    """
    x = math.log(1e5)
    return float(
        weights.sum() + 2.0 * (x * weights.square().sum()).sqrt() + 2.0 * x * weights.max()
    )


# What the optimiser may add: a root mean square of 0.1 in the log value under the aligned law costs
# one percent of the effective sample size.
OPTIMISER = 0.1


def table_gate(case, doubled, place, num_particles):
    r"""
    Bounds the error, under the aligned law, of a table of log mean returns of single states.

    A state s seen n p(s) times has the variance (E[e^{2A}] / E[e^A]^2 - 1) / (n p(s)), and the
    aligned law has q(s) / p(s) = e^{V(s)} / Z. The calibrated shift adds its own.
    """
    alive = case.targets[place] > 0
    p, values = case.marginals[place][alive], case.log_soft_values[place][alive]
    spread = (doubled.log_soft_values[place][alive] - 2.0 * values).exp() - 1.0
    single = (values - case.log_normalizer).exp() * spread / num_particles
    shift = (p * spread).sum() / num_particles
    return math.sqrt(upper(single)) + math.sqrt(upper(shift.reshape(1))) + OPTIMISER


def tilted_error(case, twist, place):
    """Root mean squared error of the log value under the aligned law of the state."""
    law, exact = case.targets[place], case.log_soft_values[place]
    alive = law > 0
    gap = (twist(torch.arange(len(law)), place) - exact)[alive]
    return float((law[alive] * gap.square()).sum().sqrt())


def learn_table(**options):
    case = tabular_masked_diffusion()
    defaults = {"features": one_hot, "num_particles": 4000, "held_out": 1.0, "steps": 200}
    defaults |= {"progress": False, "seed": 0, "reward": case.reward, "beta": case.beta}
    return case, learn_twists(case.program, **{**defaults, **options})


@pytest.fixture(scope="module")
def tabular():
    return learn_table()


def test_values_of_the_table_are_found(tabular):
    """No worse than a table of means of the first round's paths alone."""
    case, twist = tabular
    doubled = tabular_masked_diffusion(beta=2.0 * case.beta)
    for place in range(3):
        assert tilted_error(case, twist, place) < table_gate(case, doubled, place, 4000)


def test_a_shared_network_finds_them_too():
    case, twist = learn_table(network="shared", rounds=1, seed=2)
    doubled = tabular_masked_diffusion(beta=2.0 * case.beta)
    assert isinstance(twist.network, SharedNetwork)
    for place in range(3):
        assert tilted_error(case, twist, place) < table_gate(case, doubled, place, 4000)


def test_held_out_means_are_one_on_a_fresh_run():
    """The base mean of e^{V - f} is one up to the error of the 4000 paths that set the shift."""
    case, twist = learn_table(rounds=1)
    doubled = tabular_masked_diffusion(beta=2.0 * case.beta)
    report = twist.report
    assert report.loss.shape == report.shift.shape == (1, 3)
    assert (report.loss < report.constant_loss).all()
    for place in range(3):
        law = case.marginals[place]
        values = twist(torch.arange(64), place)
        mean = float(law @ (case.log_soft_values[place] - values).exp())
        second = float(law @ (doubled.log_soft_values[place] - 2.0 * values).exp())
        assert abs(mean - 1.0) < Z_SCORE * math.sqrt((second - mean**2) / 4000)
        # The share of effective draws is that of the law.
        assert abs(float(report.effective_share[0, place]) * second / mean**2 - 1.0) < 0.5
    assert report.paths == 3 * 4000 and report.seconds > 0


def test_dead_states_have_small_finite_values(tabular):
    case, twist = tabular
    dead = int((case.reward_table == -torch.inf).nonzero()[0])
    value = float(twist(torch.tensor([dead]), 0))
    # Learning can only tell that fewer than one of the paths to it had a weight.
    rarest = math.log(1.0 / (4000 * float(case.marginals[0][dead])))
    assert -30.0 < value < rarest


def quadratics(x):
    return torch.stack((x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2), -1)


def test_quadratic_values_are_found_as_well_as_theory_allows():
    r"""
    The values are quadratic, and so is the family fitted.

    The minimiser of the loss has the covariance H^{-1} G H^{-1} / n with H = E[u u'] and
    G = E[(E[e^{2A}] / E[e^A]^2 - 1) u u'] over the base, u the constant and the features.
    """
    beta, n = 1.0, 4000
    case, doubled, base = (linear_gaussian_chain(beta=b) for b in (beta, 2.0 * beta, 0.0))
    twist = learn_twists(
        case.program,
        reward=case.reward,
        beta=beta,
        features=quadratics,
        network=StepHeads(5, 5, depth=0),
        rounds=1,
        steps=600,
        lr=5e-2,
        num_particles=n,
        held_out=1.0,
        seed=1,
        progress=False,
    )
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    for t in range(5):
        x = base.means[t] + noise @ torch.linalg.cholesky(base.covariances[t]).T
        u = torch.cat((torch.ones(len(x), 1, dtype=torch.float64), quadratics(x)), -1)
        spread = (doubled.log_soft_value(x, t) - 2.0 * case.log_soft_value(x, t)).exp() - 1.0
        tilt = (case.log_soft_value(x, t) - case.log_normalizer).exp()
        inverse = (u.T @ u / len(x)).inverse()
        covariance = inverse @ (u.T @ (spread[:, None] * u) / len(x)) @ inverse / n
        moments = u.T @ (tilt[:, None] * u) / len(x)
        weights = torch.linalg.eigvals(covariance @ moments).real
        gate = OPTIMISER + math.sqrt(upper(weights))
        gate += math.sqrt(upper(spread.mean().reshape(1) / n))
        gap = twist(x, t) - case.log_soft_value(x, t)
        assert float((tilt * gap.square()).mean().sqrt()) < gate


def test_observations_count_as_what_is_to_come():
    case = two_state_hmm()
    n = 4000
    twist = learn_twists(
        case.program,
        reward=case.reward,
        beta=case.beta,
        features=lambda z: torch.nn.functional.one_hot(z.long(), 2).float(),
        rounds=1,
        steps=150,
        num_particles=n,
        held_out=1.0,
        ess_threshold=0.0,
        seed=4,
        progress=False,
    )
    # Second moments of the returns, by the recursion of the first with all weights squared.
    kernel = torch.tensor([[0.85, 0.15], [0.3, 0.7]]).double().log()
    levels, scales = torch.tensor([-0.8, 1.1]).double(), torch.tensor([0.9, 1.3]).double()
    emission = dist.Normal(levels, scales).log_prob(case.observations.unsqueeze(-1))
    double, law = 2.0 * case.log_soft_values[-1], [torch.tensor([0.35, 0.65]).double()]
    for _ in range(case.num_steps):
        law.append(law[-1] @ kernel.exp())
    for t in range(case.num_steps, 0, -1):
        states = torch.arange(2)
        exact = case.log_soft_value(states, t)
        spread = (double - 2.0 * exact).exp() - 1.0
        # The table's error of each state, and that of the shift of the step.
        error = (spread / (n * law[t])).sqrt() + ((law[t] @ spread) / n).sqrt()
        assert ((twist(states, t) - exact).abs() < Z_SCORE * error + OPTIMISER).all()
        double = (kernel + 2.0 * emission[t - 1] + double).logsumexp(-1)


def _walk(xs=range(3, -1, -1)):
    start = pyro.sample("start", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def step(carry, t):
        x, total = carry
        x = pyro.sample(f"x_{t}", dist.Normal(0.8 * x, 0.5).to_event(1))
        return x, total + x[..., 0]

    return scan("chain", step, (start, start[..., 0]), xs)[1]


def _same_elements():
    count = iter(range(2))

    def step(x, y):
        return pyro.sample(f"x_{next(count)}", dist.Normal(x, 1.0))

    return scan("chain", step, torch.zeros(()), [0.5, 0.5])


def _learn(**options):
    merged = {"steps": 30, "rounds": 2, "num_particles": 300, "progress": False, "seed": 7}
    return learn_twists(_walk, reward=lambda s: s, beta=0.5, **{**merged, **options})


def _carry(n=50):
    x = torch.linspace(-2.0, 2.0, 2 * n).reshape(n, 2)
    return x, x[:, 0] - 1.0


def test_seeds_reproduce_and_leave_the_caller_alone():
    state = torch.get_rng_state()
    first, again, other = _learn(), _learn(), _learn(seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    for t in range(4):
        assert torch.equal(first(_carry(), t), again(_carry(), t))
        assert not torch.equal(first(_carry(), t), other(_carry(), t))


@pytest.mark.parametrize("network", ["heads", "shared"])
def test_saved_twists_are_the_same_bit_for_bit(tmp_path, network):
    twist = _learn(network=network)
    twist.save(tmp_path / "twist.pt")
    back = load_twist(tmp_path / "twist.pt")
    piped = pickle.loads(pickle.dumps(twist))
    for t in range(4):
        assert torch.equal(back(_carry(), t), twist(_carry(), t))
        assert torch.equal(piped(_carry(), t), twist(_carry(), t))
    assert torch.equal(back.report.loss, twist.report.loss)
    assert [path.name for path in tmp_path.iterdir()] == ["twist.pt"]


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no learned twist"):
        load_twist(path)
    twist = _learn(rounds=1)
    twist.save(path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format": 99}, path)
    with pytest.raises(ValueError, match="format 99"):
        load_twist(path)


def _first(carry):
    return carry[0]


def test_a_saved_file_holds_no_code(tmp_path):
    own = StepHeads(2, 4, depth=0)
    twist = _learn(network=torch.nn.ModuleList([own])[0], features=_first)
    path = tmp_path / "twist.pt"
    twist.save(path)
    assert b"_first" not in path.read_bytes()
    with pytest.raises(ValueError, match="features="):
        load_twist(path)
    back = load_twist(path, features=_first)
    assert torch.equal(back(_carry(), 1), twist(_carry(), 1))


class _Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, features, step):
        return (self.layer(features) * (1.0 + step)).squeeze(-1)


def test_a_network_of_ones_own(tmp_path):
    twist = _learn(network=_Own())
    twist.save(tmp_path / "own.pt")
    with pytest.raises(ValueError, match="network="):
        load_twist(tmp_path / "own.pt")
    back = load_twist(tmp_path / "own.pt", network=_Own())
    assert torch.equal(back(_carry(), 2), twist(_carry(), 2))
    moved = twist.to(torch.float64)
    carry = tuple(part.double() for part in _carry())
    torch.testing.assert_close(moved(carry, 2), twist(_carry(), 2), atol=1e-4, rtol=1e-4)
    assert twist.value_calls == 100


def test_features_of_one_scale_are_left_as_they_are():
    program = hidden_walk()
    options = {"num_particles": 50, "rounds": 1, "steps": 1, "seed": 0, "progress": False}
    plain = learn_twists(program, standardize=False, **options)
    scaled = learn_twists(program, **options)
    assert bool((plain.mean == 0.0).all()) and bool((plain.spread == 1.0).all())
    assert bool((scaled.spread > 1.5).all())


def hidden_walk():
    def step(x, t):
        return pyro.sample(f"x_{t}", dist.Normal(x, 3.0))

    def program():
        last = scan("walk", step, torch.zeros(()), range(3))
        pyro.factor("end", 0.1 * last)

    return program


def test_bad_input():
    with pytest.raises(ValueError, match="without a reward"):
        learn_twists(_walk, beta=1.0)
    with pytest.raises(ValueError, match="'heads', 'shared'"):
        _learn(network="deep")
    with pytest.raises(ValueError, match=r"\(N, d\), got \(300,\)"):
        _learn(features=lambda carry: carry[1])
    with pytest.raises(ValueError, match="equal elements"):
        learn_twists(_same_elements, reward=lambda x: x, num_particles=20)
    with pytest.raises(ValueError, match="steps must be an integer"):
        _learn(steps=0.5)
    with pytest.raises(ZeroWeights, match="none of 300 paths"):
        learn_twists(
            _walk,
            reward=lambda s: s * 0.0 - torch.inf,
            num_particles=300,
            steps=10,
            progress=False,
        )
    with pytest.raises(ValueError, match="no steps"):
        learn_twists(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), reward=lambda x: x)
    twist = _learn()
    with pytest.raises(ValueError, match="none of the 4 steps"):
        twist(_carry(), 9)
    with pytest.raises(TwistError, match="NaN"):
        twist((torch.full((2, 2), torch.nan), torch.zeros(2)), 1)
