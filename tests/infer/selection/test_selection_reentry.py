# SPDX-License-Identifier: Apache-2.0
"""What a step that is entered again costs and draws, and what is left where one breaks."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt.infer import BestOfN, counted
from pyro_tilt.infer.selection import BlockBestOfN, SoftBestOfM
from pyro_tilt.infer.smc import LineageError, StepError, TwistError
from pyro_tilt.poutine import scan
from pyro_tilt.testing.gates import P_VALUE, Z_SCORE

pytestmark = pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
STEPS, DRAWS, M = 5, 30, 7


def network_walk(step_of=None, steps=STEPS, network=None):
    """A walk whose kernel is a network of the state."""
    torch.manual_seed(0)
    network = counted(torch.nn.Linear(2, 2)) if network is None else network

    def plain(x, t):
        law = dist.Normal(network(x), torch.tensor([0.3, 0.7])).to_event(1)
        return pyro.sample(f"x_{t}", law)

    step = plain if step_of is None else step_of(network)

    def program():
        start = pyro.sample("start", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return scan("walk", step, start, range(steps))

    return program


def total(x, t=None):
    return x.sum(-1)


def soft(program, **options):
    defaults = {"reward": total, "value": total, "m": M, "num_samples": DRAWS, "seed": 0}
    return SoftBestOfM(program, **{"progress": False, **defaults, **options})


def blocks(program, **options):
    defaults = {"reward": total, "value": total, "n": M, "num_samples": DRAWS, "seed": 0}
    return BlockBestOfN(program, **{"progress": False, **defaults, **options})


def test_the_kernel_of_a_state_is_evaluated_once():
    result = soft(network_walk()).run()
    # The first step starts from M states of each draw, the others from the one that was kept.
    assert result.cost.network_rows == DRAWS * (M + STEPS - 1)
    assert result.cost.base_draws == DRAWS * M
    assert result.cost.value_calls == DRAWS * M * (STEPS - 1)
    pieces = soft(network_walk(), max_batch=4 * M).run()
    assert pieces.cost.network_rows == result.cost.network_rows
    assert soft(network_walk(), m=1).run().cost.network_rows == DRAWS * STEPS


@pytest.mark.parametrize(("block", "shared"), [(1, 4), (2, 2), (3, 1), (5, 0)])
def test_only_the_first_step_of_a_block_shares_its_state(block, shared):
    result = blocks(network_walk(), block=block).run()
    assert result.cost.network_rows == DRAWS * (M * (STEPS - shared) + shared)


def two_sites(network):
    def step(x, t):
        noise = pyro.sample(f"noise_{t}", dist.Normal(torch.zeros(2), 0.1).to_event(1))
        return pyro.sample(f"x_{t}", dist.Normal(network(x) + noise, 0.5).to_event(1))

    return step


def moved_on(network):
    def step(x, t):
        return 2.0 * pyro.sample(f"x_{t}", dist.Normal(network(x), 0.5).to_event(1))

    return step


def weighed(network):
    def step(x, t):
        x = pyro.sample(f"x_{t}", dist.Normal(network(x), 0.5).to_event(1))
        pyro.factor(f"f_{t}", 0.1 * x.sum(-1))
        return x

    return step


@pytest.mark.parametrize("step_of", [two_sites, moved_on, weighed])
def test_steps_that_are_more_than_their_kernel_run_for_every_proposal(step_of):
    result = soft(network_walk(step_of)).run()
    assert result.cost.network_rows == DRAWS * M * STEPS


def changing(network):
    """Steps of one site at first, of two later: what may be shared changes on the way."""

    def step(x, t):
        x = pyro.sample(f"x_{t}", dist.Normal(network(x), 0.5).to_event(1))
        if t == 2:
            x = pyro.sample("more", dist.Normal(x, 0.5).to_event(1))
        return x

    return step


def test_a_step_that_turns_out_to_be_more_is_run_again_for_all():
    result = soft(network_walk(changing)).run()
    # First step, shared, shared and again for all, then for all.
    assert result.cost.network_rows == DRAWS * (M + 1 + (1 + M) + M + M)
    assert list(result.samples) == ["start", "x_4"]


def coin(x, t):
    return pyro.sample(f"x_{t}", dist.Bernoulli(logits=2.0 * x - 0.6 + 0.1 * t))


def coins(repeated):
    def step(x, t):
        x = coin(x, t)
        return pyro.deterministic(f"copy_{t}", x) if repeated else x

    def program():
        return scan("coins", step, pyro.sample("start", dist.Bernoulli(0.4)), range(3))

    return program


@pytest.mark.parametrize("repeated", [False, True])
def test_shared_and_repeated_steps_have_the_enumerated_law(repeated):
    """Two proposals from states 0 and 1, with a value that is 1.2 x and the same reward."""
    weight = torch.tensor([0.0, 1.2]).double().exp()
    w1, w0 = weight[1] / weight.sum(), weight[0] / weight.sum()

    def one_of_two(p):
        return p**2 + 2 * p * (1 - p) * w1 / (w0 + w1)

    share = torch.tensor(0.4).double()
    kernel = torch.sigmoid(
        torch.tensor([[2.0 * x - 0.6 + 0.1 * t for x in (0, 1)] for t in range(3)]).double()
    )
    # The start belongs to the first piece: pairs of (start, x_0) are drawn together.
    law = one_of_two(share * kernel[0, 1] + (1 - share) * kernel[0, 0])
    for t in (1, 2):
        law = law * one_of_two(kernel[t, 1]) + (1 - law) * one_of_two(kernel[t, 0])
    result = soft(
        coins(repeated),
        reward=lambda x: 1.2 * x,
        value=lambda x, t: 1.2 * x,
        m=2,
        num_samples=40_000,
    ).run()
    found = int(result.samples["x_2"].sum())
    assert stats.binomtest(found, 40_000, float(law)).pvalue > P_VALUE


def test_the_proposals_of_a_state_are_independent_draws():
    """With equal values the choice is blind: rows of different places must have the same law."""
    flat = {"reward": lambda x: 0.0 * x[..., 0], "value": lambda x, t: 0.0 * x[..., 0]}
    kept = soft(network_walk(steps=2), m=3, num_samples=20_000, **flat).run()
    plain = soft(network_walk(steps=2), m=1, num_samples=20_000, seed=1).run()
    for a, b in zip(kept.samples["x_1"].T, plain.samples["x_1"].T):
        assert stats.ks_2samp(a.numpy(), b.numpy()).pvalue > P_VALUE
    # Two draws of one state do not agree more than the law says.
    near = (kept.samples["x_1"][:, 0].sort().values.diff() == 0).sum()
    assert int(near) < 20


def breaking(at):
    def make(network):
        def step(x, t):
            if t == at and x.dim() > 1:
                raise ZeroDivisionError("the program's own error")
            return pyro.sample(f"x_{t}", dist.Normal(network(x), 0.5).to_event(1))

        return step

    return network_walk(make)


@pytest.mark.parametrize("sampler", [soft, blocks])
def test_what_was_chosen_before_an_error_is_kept(sampler):
    options = {"block": 1} if sampler is blocks else {}
    with pytest.raises(StepError, match="scan 'walk', step 3: ZeroDivisionError") as caught:
        sampler(breaking(3), check_lineage=False, **options).run()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    partial = caught.value.partial
    assert len(partial) == DRAWS and list(partial.samples) == ["start", "x_2"]
    assert "step 2" in partial.certificate.target and "reward" not in partial.stats
    # These are the draws of the run that does not break.
    seen = []
    value = {"value": lambda x, t: (seen.append(x), total(x))[1]}
    sampler(breaking(99), check_lineage=False, **options, **value).run()
    rows = seen[2].reshape(DRAWS, M, 2)
    assert (partial.samples["x_2"].unsqueeze(1) == rows).all(-1).any(1).all()
    with pytest.raises(StepError, match="step 0") as caught:
        sampler(breaking(0), check_lineage=False, **options).run()
    assert caught.value.partial is None


def test_whole_draws_are_kept_before_those_on_their_way():
    calls = {"rows": 0}

    def value(x, t):
        calls["rows"] += len(x)
        return total(x) * (math.nan if calls["rows"] > 3 * 5 * M * (STEPS - 1) else 1.0)

    with pytest.raises(TwistError, match="step 0: the value is NaN") as caught:
        soft(network_walk(), value=value, max_batch=5 * M, check_lineage=False).run()
    partial = caught.value.partial
    assert len(partial) == 15 and list(partial.samples) == ["start", "x_4"]
    first = soft(network_walk(), max_batch=5 * M, check_lineage=False).run()
    assert torch.equal(partial.samples["x_4"], first.samples["x_4"][:15])
    assert partial.certificate.target == "joint tilt"
    assert bool(torch.isfinite(partial.stats["reward"]).all())


def test_an_error_after_the_last_step_keeps_the_choice_before_it():
    def reward(x):
        return total(x) * (math.nan if x.dim() > 1 else 1.0)

    with pytest.raises(StepError, match="after scan 'walk'.*NaN") as caught:
        soft(network_walk(), reward=reward, check_lineage=False).run()
    assert list(caught.value.partial.samples) == ["start", "x_3"]


def test_a_number_of_steps_that_differs_is_named():
    lengths = iter([3, 4])

    def program():
        x = pyro.sample("start", dist.Normal(0.0, 1.0))
        return scan(
            "walk", lambda x, t: pyro.sample(f"x_{t}", dist.Normal(x, 1.0)), x, range(next(lengths))
        )

    with pytest.raises(ValueError, match="scan 'walk' has 4 steps here and 3 in the plain run"):
        soft(program, reward=lambda x: x, value=lambda x, t: x, check_lineage=False).run()
    with pytest.raises(ValueError, match="no scan with steps"):
        soft(network_walk(steps=0)).run()


def forgetful():
    start = pyro.sample("start", dist.Normal(0.0, 1.0))

    def step(x, t):
        return pyro.sample(f"x_{t}", dist.Normal(0.5 * x + start, 1.0))

    return scan("walk", step, torch.zeros_like(start), range(3))


@pytest.mark.parametrize("sampler", [soft, blocks])
def test_a_forgotten_variable_is_found_before_the_run(sampler):
    options = {"reward": lambda x: x, "value": lambda x, t: x}
    with pytest.raises(LineageError, match="x_1"):
        sampler(forgetful, **options).run()


def test_a_deterministic_step_changes_nothing():
    """The last step of many diffusions draws nothing."""

    def make(network):
        def step(x, t):
            if t == STEPS - 1:
                return pyro.sample(f"x_{t}", dist.Delta(network(x), event_dim=1))
            return pyro.sample(f"x_{t}", dist.Normal(network(x), 0.5).to_event(1))

        return step

    result = soft(network_walk(make)).run()
    assert result.cost.network_rows == DRAWS * (M + STEPS - 1)


def test_a_block_of_all_steps_is_still_best_of_n():
    options = {"reward": total, "n": 4, "num_samples": 50, "seed": 3, "progress": False}
    whole = BestOfN(network_walk(), **options).run()
    block = BlockBestOfN(network_walk(), block=STEPS, **options).run()
    assert torch.equal(whole.samples["x_4"], block.samples["x_4"])


def test_weights_of_shared_steps_give_the_evidence():
    """Gaussian walk with a linear reward, whose evidence is known."""
    scale, beta = torch.tensor(0.8), 0.7

    def program():
        x = pyro.sample("start", dist.Normal(0.3, 1.0))
        return scan("walk", lambda x, t: pyro.sample(f"x_{t}", dist.Normal(x, scale)), x, range(4))

    result = soft(
        program, reward=lambda x: x, beta=beta, value=lambda x, t: 0.5 * x, num_samples=20_000
    ).run()
    exact = beta * 0.3 + 0.5 * beta**2 * (1.0 + 4 * 0.8**2)
    gap = float(result.log_normalizer) - exact
    assert abs(gap) < Z_SCORE * float(result.log_normalizer_error)
