# SPDX-License-Identifier: Apache-2.0
"""Learned twists against exact soft values."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import scan
from pyro_tilt.infer import SMC, ZeroWeights
from pyro_tilt.infer.smc import TwistError
from pyro_tilt.infer.twists import SharedNetwork, StepHeads, learn_twists, load_twist
from pyro_tilt.poutine import align
from pyro_tilt.testing.gates import Z_SCORE
from pyro_tilt.testing.hidden_markov import two_state_hmm
from pyro_tilt.testing.linear_gaussian import linear_gaussian_chain
from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion


def one_hot(state):
    return torch.nn.functional.one_hot(state.long(), 64).float()


def tilted_error(case, twist, place):
    """Root mean squared error of the log value under the aligned law of the state."""
    law, exact = case.targets[place], case.log_soft_values[place]
    alive = law > 0
    gap = (twist(torch.arange(len(law)), place) - exact)[alive]
    return float((law[alive] * gap.square()).sum().sqrt())


@pytest.fixture(scope="module")
def tabular():
    case = tabular_masked_diffusion()
    options = {"features": one_hot, "num_particles": 4000, "progress": False, "seed": 0}
    twist = learn_twists(case.program, reward=case.reward, beta=case.beta, steps=200, **options)
    return case, twist


@pytest.fixture(scope="module")
def chain():
    case = linear_gaussian_chain(beta=8.0)
    twist = learn_twists(
        case.program,
        reward=case.reward,
        beta=case.beta,
        rounds=3,
        steps=200,
        seed=1,
        progress=False,
    )
    return case, twist


def test_values_of_the_table_are_found(tabular):
    case, twist = tabular
    for place in range(3):
        assert tilted_error(case, twist, place) < 0.12


def test_held_out_means_are_one_on_a_fresh_run(tabular):
    case, twist = tabular
    report = twist.report
    assert report.loss.shape == report.shift.shape == (2, 3)
    assert (report.loss < report.constant_loss).all()
    # Over the states of the base the mean of e^{A - f} is that of exact over learned values.
    for place in range(3):
        law = case.marginals[place]
        values = twist(torch.arange(64), place)
        ratio = (case.log_soft_values[place] - values).exp()
        assert abs(float((law * ratio)[law > 0].sum()) - 1.0) < 0.15
    assert report.paths == 2 * 8000 and report.seconds > 0


def test_dead_states_have_small_finite_values(tabular):
    case, twist = tabular
    dead = int((case.reward_table == -torch.inf).nonzero()[0])
    value = float(twist(torch.tensor([dead]), 0))
    assert -30.0 < value < -4.0


def test_a_shared_network_finds_them_too():
    case = tabular_masked_diffusion()
    twist = learn_twists(
        case.program,
        reward=case.reward,
        beta=case.beta,
        network="shared",
        features=one_hot,
        rounds=1,
        steps=200,
        num_particles=4000,
        seed=2,
        progress=False,
    )
    assert isinstance(twist.network, SharedNetwork)
    assert max(tilted_error(case, twist, place) for place in range(3)) < 0.15


def test_better_twists_make_steadier_evidence(chain):
    case, learned = chain
    aligned = align(case.program, case.reward, case.beta)
    spread = {}
    for name in ("none", "half", "learned", "exact"):
        twist = learned if name == "learned" else None if name == "none" else case.twist(name)
        result = SMC(
            aligned,
            num_particles=64,
            num_chains=300,
            twist=twist,
            ess_threshold=1.0,
            seed=3,
            check_lineage=False,
            progress=False,
            max_plate_nesting=0,
        ).run()
        ratio = (result.chain_log_normalizers - case.log_normalizer).exp()
        assert abs(ratio.mean() - 1.0) < Z_SCORE * ratio.std() / len(ratio) ** 0.5
        spread[name] = float(result.chain_log_normalizers.std())
    assert spread["none"] > 1.5 * spread["half"]
    # All four share the variance of the first draw; the seeds are common to them.
    assert spread["half"] > spread["learned"] > 0.97 * spread["exact"]


def test_learned_values_are_near_the_exact_ones_where_the_target_is(chain):
    case, learned = chain
    errors = []
    for t in range(5):
        law = dist.MultivariateNormal(case.means[t], case.covariances[t])
        states = law.sample((2000,))
        exact = case.log_soft_value(states, t)
        # A constant of the step cancels from the weights, so both errors leave it out.
        error, half = (learned(states, t) - exact).std(), (0.5 * exact).std()
        errors.append((float(error), float(half)))
    # At this beta the returns have heavy tails, and single steps are fitted no better than this.
    assert all(error < half for error, half in errors), errors
    assert sum(e**2 for e, _ in errors) < 0.5 * sum(h**2 for _, h in errors)


def test_observations_count_as_what_is_to_come():
    case = two_state_hmm()
    twist = learn_twists(
        case.program,
        reward=case.reward,
        beta=case.beta,
        features=lambda z: torch.nn.functional.one_hot(z.long(), 2).float(),
        network="heads",
        steps=150,
        num_particles=2000,
        seed=4,
        progress=False,
    )
    xs = list(twist.keys.to_list())
    for x in xs:
        states = torch.arange(2)
        exact = case.log_soft_value(states, int(x))
        assert (twist(states, int(x)) - exact).abs().max() < 0.25


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
