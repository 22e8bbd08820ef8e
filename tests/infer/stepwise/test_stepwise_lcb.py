# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import rewards, scan
from pyro_tilt.infer import LCB, AcceptanceTooLow, SamplerWarning, StepwiseLCB, counted
from pyro_tilt.ops import ClippedLaw
from pyro_tilt.testing.gates import P_VALUE, Z_SCORE

STATES, STEPS = 3, 3
_generator = torch.Generator().manual_seed(5)


def _table(*shape, scale=1.0):
    return scale * torch.randn(*shape, generator=_generator, dtype=torch.float64)


START = _table(STATES).log_softmax(0)
KERNELS = _table(STEPS, STATES, STATES).log_softmax(-1)
REWARD = _table(STATES, scale=1.5)
VALUES = _table(STEPS + 1, STATES)
# Some baselines clip much, others nothing.
BASELINES = 0.3 + _table(STEPS, STATES, scale=0.4)
NOISE = _table(STEPS, STATES)


def program(carry="value", factors=False):
    def step(c, t):
        y = c if carry == "value" else c["x"]
        x = pyro.sample(f"x_{t}", dist.Categorical(logits=KERNELS[t][y]))
        if factors:
            pyro.factor(f"f_{t}", NOISE[t][x])
        return x if carry == "value" else {"x": x, "steps": c["steps"] + 1, "seen": (x, y)}

    def chain():
        x = pyro.sample(f"x_{STEPS}", dist.Categorical(logits=START))
        if carry != "value":
            x = {"x": x, "steps": 0, "seen": (x, x)}
        last = scan("chain", step, x, range(STEPS - 1, -1, -1))
        return last if carry == "value" else last["x"]

    return chain


def value(c, t):
    x = c["x"] if isinstance(c, dict) else c
    return VALUES[STEPS if t is None else t][x]


def baseline(c, t):
    return BASELINES[t][c["x"] if isinstance(c, dict) else c]


reward = rewards.Bounded(lambda x: REWARD[x], low=float(REWARD.min()), high=float(REWARD.max()))


def tilts(factors=False):
    """A at each step, with the reward in the place of the last value."""
    A = torch.stack([REWARD, *VALUES[1:STEPS]])
    return A + NOISE if factors else A


def laws(factors=False):
    """The clipped law of every step and state."""
    A = tilts(factors).unsqueeze(1).expand(-1, STATES, -1)
    return ClippedLaw(KERNELS, A, BASELINES)


PATHS = torch.tensor(list(itertools.product(range(STATES), repeat=STEPS + 1)))


def path_law(kernels, start=START):
    """The law of paths (x_3, x_2, x_1, x_0) in the order of PATHS, as log probabilities."""
    total = start[PATHS[:, 0]]
    for k, t in enumerate(range(STEPS - 1, -1, -1)):
        total = total + kernels[t][PATHS[:, k], PATHS[:, k + 1]]
    return total


def path_index(result):
    sites = [result.paths[f"x_{t}"] for t in range(STEPS, -1, -1)]
    return sum(site * STATES ** (STEPS - k) for k, site in enumerate(sites))


def run(num_samples=20_000, seed=1, factors=False, carry="value", **options):
    options = {"baseline": baseline, "tilt_start": False, "keep_paths": True, **options}
    return LCB(
        program(carry, factors),
        reward=reward,
        value=value,
        num_samples=num_samples,
        seed=seed,
        progress=False,
        **options,
    ).run()


def chi_square(index, law):
    expected = law.exp() * len(index)
    observed = torch.bincount(index, minlength=len(law)).double()
    rare = expected < 5
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
        observed = torch.cat([observed[~rare], observed[rare].sum(0, keepdim=True)])
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > P_VALUE


@pytest.mark.parametrize(
    ("carry", "factors"), [("value", False), ("dict", False), ("value", True), ("dict", True)]
)
def test_paths_follow_the_product_of_clipped_kernels(carry, factors):
    result = run(carry=carry, factors=factors)
    assert isinstance(result.paths["x_1"], torch.Tensor)
    chi_square(path_index(result), path_law(laws(factors).log_prob))


def test_proposals_and_clipping_have_their_means():
    result, law = run(), laws()
    paths = path_law(law.log_prob).exp()
    cost, clip = torch.zeros(len(PATHS)).double(), torch.zeros(len(PATHS)).double()
    for k, t in enumerate(range(STEPS - 1, -1, -1)):
        y = PATHS[:, k]
        cost += law.expected_proposals[t][y]
        clip += (law.clipped_mass / (1 - law.clipped_mass))[t][y]
        assert result.steps["baseline_50"][k] in BASELINES[t]
    for got, exact in [
        (result.stats["proposals"].double(), float(paths @ cost)),
        (result.stats["clipping"], float(paths @ clip)),
    ]:
        assert abs(float(got.mean()) - exact) < Z_SCORE * float(got.std()) / len(got) ** 0.5
    # The bound, and the identities of the steps that it rests on.
    aim = path_law(law.target_log_prob).exp()
    distance = 0.5 * float((paths - aim).abs().sum())
    steps = torch.stack(
        [law.total_variation[t][PATHS[:, k]] for k, t in enumerate(range(STEPS - 1, -1, -1))]
    )
    direct = 0.5 * (law.log_prob.exp() - law.target_log_prob.exp()).abs().sum(-1)
    torch.testing.assert_close(law.total_variation, direct, atol=1e-12, rtol=0)
    kl = (law.log_prob.exp() * (law.log_prob - law.target_log_prob)).sum(-1)
    torch.testing.assert_close(law.kl_to_target, kl, atol=1e-12, rtol=0)
    assert distance <= float(paths @ steps.sum(0)) <= float(paths @ clip)
    kl_path = float(paths @ (path_law(law.log_prob) - path_law(law.target_log_prob)))
    sums = sum(
        float(paths @ law.kl_to_target[t][PATHS[:, k]])
        for k, t in enumerate(range(STEPS - 1, -1, -1))
    )
    assert math.isclose(kl_path, sums, abs_tol=1e-12)
    assert result.certificate.estimated_total_variation == min(1.0, result.info["clipping"])


def true_target(factors=False):
    A = torch.zeros(len(PATHS)).double() + REWARD[PATHS[:, -1]]
    if factors:
        for k, t in enumerate(range(STEPS - 1, -1, -1)):
            A += NOISE[t][PATHS[:, k + 1]]
    joint = path_law(KERNELS) + A
    return joint.softmax(0), float(joint.logsumexp(0))


@pytest.mark.parametrize("cap", [None, 2])
@pytest.mark.parametrize(
    ("tilt_start", "acceptances"),
    [(False, True), (True, True), (False, 5), (False, "fresh"), (True, "fresh")],
)
def test_path_weights_are_exact_and_the_evidence_is_unbiased(cap, tilt_start, acceptances):
    options = {"path_weights": acceptances, "tilt_start": tilt_start, "max_proposals": cap}
    if acceptances == "fresh":
        options["num_inner"] = 3
        if cap:
            with pytest.raises(ValueError, match="do not go together"):
                run(10, **options)
            return
    if cap:
        with pytest.warns(SamplerWarning, match="max_proposals"):
            result = run(40_000, factors=True, **options)
    else:
        result = run(40_000, factors=True, **options)
    target, log_z = true_target(factors=True)
    weights = (result.residual_log_weights + result.log_normalizer - log_z).exp()
    scale = len(weights) ** 0.5
    assert abs(float(weights.mean()) - 1) < Z_SCORE * float(weights.std()) / scale
    last = result.samples["x_0"]
    for j in range(STATES):
        exact = float(target[PATHS[:, -1] == j].sum())
        terms = weights * ((last == j).double() - exact)
        assert abs(float(terms.mean())) < Z_SCORE * float(terms.std()) / scale
    assert torch.isneginf(result.residual_log_weights).equal(result.stats["capped"])


def test_the_plug_in_normaliser_is_caught(monkeypatch):
    """The mutation e^b / N overshoots by -log(a) / (1 - a) at acceptance rate a."""

    def plug_in(found, baseline, log_factors, acceptances, cap):
        estimate = baseline - found.proposals.double().log()
        estimate = estimate - found.log_weights.minimum(baseline)
        return estimate if log_factors is None else estimate + log_factors

    monkeypatch.setattr("pyro_tilt.infer.stepwise.chains.path_weight_increment", plug_in)
    result = run(40_000, path_weights=True)
    _, log_z = true_target()
    weights = (result.residual_log_weights + result.log_normalizer - log_z).exp()
    terms = weights - 1
    assert float(terms.mean()) > 5 * Z_SCORE * float(terms.std()) / len(terms) ** 0.5
    law = laws()
    rate = law.acceptance_rate
    ratio = torch.where(rate < 1 - 1e-9, -rate.log() / (1 - rate), 1.0).log()
    # E[W / Z] = sum over paths of the target times the product of the overshoots.
    target, _ = true_target()
    over = sum(ratio[t][PATHS[:, k]] for k, t in enumerate(range(STEPS - 1, -1, -1)))
    exact = float(target @ over.exp())
    gap = float(weights.mean()) - exact
    assert abs(gap) < Z_SCORE * float(weights.std()) / len(weights) ** 0.5


def test_cap_law():
    with pytest.warns(SamplerWarning, match="rejected value"):
        result = run(max_proposals=2)
    law = laws()
    chi_square(path_index(result), path_law(law.capped_prob(2).log()))
    missed = (1 - law.acceptance_rate) ** 2
    survive = path_law(law.capped_prob(2).log()).exp()
    # A union bound from above, the largest single step from below.
    means = [
        float(survive @ missed[t][PATHS[:, k]]) for k, t in enumerate(range(STEPS - 1, -1, -1))
    ]
    share = float(result.stats["capped"].double().mean())
    slack = Z_SCORE * 0.5 / len(result) ** 0.5
    assert max(means) - slack < share < sum(means) + slack
    assert int(result.stats["proposals"].max()) <= 2 * STEPS


def exact_values():
    soft = [REWARD]
    for t in range(STEPS):
        soft.append((KERNELS[t] + soft[-1]).logsumexp(-1))
    return torch.stack(soft)


@pytest.mark.parametrize("rule", ["chernoff", "budget", "exchange"])
def test_exact_values_give_the_target(rule):
    soft = exact_values()
    result = LCB(
        program(),
        reward=reward,
        value=lambda x, t: soft[STEPS if t is None else t][x],
        baseline=rule,
        epsilon=1e-3,
        exchange_rate=1e5,
        budget=30.0,
        value_bound=(float(REWARD.min()), float(REWARD.max())),
        num_samples=20_000,
        seed=2,
        keep_paths=True,
    ).run()
    target, _ = true_target()
    chi_square(path_index(result), target.log())
    assert result.certificate.target == "value-tilted chain"
    assert result.certificate.law in ("bounded", "exact")
    assert "error of the values" in result.certificate.excludes


def test_the_start_is_tilted_only_where_asked():
    flat = {"baseline": lambda c, t: torch.full((len(c),), 4.0)}
    tilted = run(tilt_start=True, epsilon=1e-3, **flat)
    plain = run(tilt_start=False, **flat)
    law = (START + VALUES[STEPS]).log_softmax(0)
    chi_square(tilted.samples["x_3"], law)
    chi_square(plain.samples["x_3"], START)


def test_a_baseline_above_every_value_is_exact():
    high = float(torch.cat([REWARD, VALUES.flatten()]).max())
    result = run(
        500,
        baseline=lambda c, t: torch.full((len(c),), high + 1),
        value_bound=(-5.0, high),
    )
    assert result.certificate.law == "exact"
    assert float(result.stats["clipping"].max()) == 0.0


def test_the_upper_bound_covers():
    bound = (float(VALUES.min()), float(torch.cat([REWARD, VALUES.flatten()]).max()))
    law = laws()
    covered = 0
    for seed in range(10):
        result = run(5000, seed=seed, value_bound=bound, confidence=0.95)
        assert result.certificate.law == "bounded"
        low = BASELINES.clamp(*bound)
        clipped = ClippedLaw(law.base_log_prob, law.A, low)
        paths, aim = path_law(clipped.log_prob).exp(), path_law(clipped.target_log_prob).exp()
        covered += result.certificate.total_variation >= 0.5 * float((paths - aim).abs().sum())
        # Wide enough to hold, and no wider than the mean and the range explain.
        assert result.certificate.total_variation < 1.5 * result.info["clipping"] + 0.5
    assert covered == 10


def test_beta_zero_is_the_base_bit_for_bit():
    base = program()
    result = LCB(
        base,
        reward=lambda x: REWARD[x],
        beta=0.0,
        value=lambda x, t: torch.zeros(len(x)).double(),
        num_samples=1,
        seed=3,
        keep_paths=True,
    ).run()
    pyro.set_rng_seed(3)
    trace = pyro.poutine.trace(base).get_trace()
    for t in range(STEPS + 1):
        assert int(result.paths[f"x_{t}"]) == int(trace.nodes[f"x_{t}"]["value"])
    assert int(result.stats["proposals"]) == STEPS + 1


def test_a_network_kernel_runs_once_per_chain():
    net = counted(torch.nn.Linear(2, 2))

    def step(x, t):
        return pyro.sample(f"x_{t}", dist.Normal(net(x), 1.0).to_event(1))

    def walk():
        x = pyro.sample("x_3", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return scan("chain", step, x, range(2, -1, -1))

    result = StepwiseLCB(
        walk,
        reward=lambda x: x[..., 0].clamp(max=1.0),
        value=lambda x, t: x[..., 0].clamp(max=1.0),
        num_samples=200,
        num_inner=16,
        seed=0,
        check_lineage=False,
    ).run()
    assert result.info["proposals_per_step"] > 1.2
    assert result.cost.network_rows == 3 * 200


def test_same_seed_same_draws_and_chains_merge():
    one, two = (run(200, seed=7, num_chains=2) for _ in range(2))
    assert one.samples["x_0"].equal(two.samples["x_0"]) and one.num_chains == 2
    assert math.isnan(float(one.log_normalizer)) and not bool(one.log_weights.isnan().any())
    in_groups = run(30_000, max_batch=7_000)
    chi_square(path_index(in_groups), path_law(laws().log_prob))


@pytest.mark.parametrize(
    "law", [dist.Delta, lambda x: dist.Normal(x, torch.zeros_like(x), validate_args=False)]
)
def test_a_deterministic_kernel_is_refused(law):
    def chain():
        x = pyro.sample("x_1", dist.Normal(0.0, 1.0))
        return scan("chain", lambda x, t: pyro.sample("still", law(x)), x, [0])

    with pytest.raises(ValueError, match="site 'still': its kernel is deterministic"):
        LCB(chain, reward=lambda x: x, value=lambda x, t: x, num_samples=5).run()


def test_bad_values_name_the_step():
    def bad(x, t):
        return torch.full((len(x),), math.nan if t == 1 else 0.0)

    def wide(x, t):
        return torch.zeros(len(x), 2)

    sampler = {"reward": reward, "num_samples": 5}
    with pytest.raises(ValueError, match="scan 'chain', step 1: the value is NaN"):
        LCB(program(), value=bad, **sampler).run()
    with pytest.raises(ValueError, match="before the first step: the value has shape"):
        LCB(program(), value=wide, **sampler).run()
    with pytest.raises(ValueError, match="has none; declare them by"):
        LCB(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), value=bad).run()
    with pytest.raises(ValueError, match="above the bound"):
        run(100, value_bound=(-1.0, float(VALUES[1:3].max()) - 0.5))


def test_a_chain_that_never_accepts_ends_the_run():
    with pytest.raises(AcceptanceTooLow, match="scan 'chain', step 0"):
        run(10, baseline=lambda c, t: torch.full((len(c),), 60.0), min_acceptance=1e-3)
