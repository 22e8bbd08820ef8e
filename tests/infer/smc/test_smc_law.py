# SPDX-License-Identifier: Apache-2.0
"""SMC against tables of all states, and the bugs that those tables would show."""

import math

import pytest
import torch
from scipy import stats

from pyro_tilt.infer import SMC, ZeroWeights
from pyro_tilt.infer.smc.population import Population
from pyro_tilt.infer.smc.records import Group
from pyro_tilt.testing.gates import P_VALUE
from pyro_tilt.testing.hidden_markov import two_state_hmm
from pyro_tilt.testing.linear_gaussian import linear_gaussian_chain
from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion

SCHEMES = ["systematic", "stratified", "multinomial", "residual"]


def p_value(case, runs=600, size=4, **options):
    """Of the hypothesis that Z sum W 1{x_0 = j} averages to p(j) exp(beta r(j)) for all j.

    A run without any weight left counts as the zero that it estimates.
    """
    options = {"ess_threshold": 0.7, **options}
    sampler = SMC(
        case.aligned(), num_particles=size, check_lineage=False, progress=False, **options
    )
    exact = case.targets[0] * math.exp(case.log_normalizer)
    rows = torch.zeros(runs, len(exact), dtype=torch.float64)
    for row in rows:
        try:
            result = sampler.run()
        except ZeroWeights:
            continue
        mass = result.log_weights.exp() / size
        row.index_add_(0, result.samples["x_0"], mass)
    seen = exact > 0
    if bool(rows[:, ~seen].any()):
        return 0.0
    rows, exact = rows[:, seen], exact[seen]
    gap = rows.mean(0) - exact
    squared = runs * gap @ torch.linalg.solve(torch.cov(rows.T), gap)
    dim = len(exact)
    return float(stats.f.sf(float(squared) * (runs - dim) / (dim * (runs - 1)), dim, runs - dim))


@pytest.fixture(scope="module")
def table():
    return tabular_masked_diffusion(vocabulary=3, length=2, num_steps=4, seed=1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_four_particles_are_unbiased_for_every_state(table, scheme):
    assert p_value(table, resampling=scheme, twist=table.twist("half")) > P_VALUE


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", [None, "wrong"])
def test_every_trigger_and_twist_is_unbiased(table, threshold, kind):
    twist = None if kind is None else table.twist(kind)
    assert p_value(table, ess_threshold=threshold, twist=twist) > P_VALUE


def test_a_frozen_schedule_is_followed_and_unbiased(table):
    first = SMC(
        table.aligned(), num_particles=50, seed=0, twist=table.twist("wrong"), check_lineage=False
    ).run()
    again = SMC(table.aligned(), num_particles=50, seed=3, freeze_schedule=first).run()
    assert torch.equal(first.steps["resampled"], again.steps["resampled"])
    schedule = [True, False, True, False]
    result = SMC(table.aligned(), num_particles=8, freeze_schedule=schedule).run()
    assert result.steps["resampled"].tolist() == schedule
    assert p_value(table, freeze_schedule=schedule, twist=table.twist("wrong")) > P_VALUE


def test_a_guide_in_the_same_pass_is_unbiased(table):
    """Half of the sites from the optimal kernels, with a twist that does not fit them."""
    assert p_value(table, guide=table.guide, twist=table.twist("wrong")) > P_VALUE


CASES = {
    "table": tabular_masked_diffusion,
    "hidden": lambda: two_state_hmm(length=6),
    "gaussian": lambda: linear_gaussian_chain(num_steps=5, observed=True),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_exact_twists_and_kernels_make_all_weights_equal(name, threshold):
    case = CASES[name]()
    result = SMC(
        case.aligned(),
        num_particles=50,
        seed=0,
        guide=case.guide,
        twist=case.twist("exact"),
        ess_threshold=threshold,
    ).run()
    expected = torch.full_like(result.log_weights, case.log_normalizer)
    torch.testing.assert_close(result.log_weights, expected, rtol=0.0, atol=1e-10)
    assert result.cost.value_calls == 50 * case.num_steps


@pytest.mark.parametrize("kind", ["exact", "half", "wrong"])
@pytest.mark.parametrize("name", ["hidden", "gaussian"])
def test_evidence_of_state_space_models(name, kind):
    """Kalman and forward-backward evidence, for twists good and bad."""
    case = CASES[name]()
    result = SMC(
        case.aligned(), num_particles=500, num_chains=40, seed=0, twist=case.twist(kind)
    ).run()
    ratio = (result.chain_log_normalizers - case.log_normalizer).exp()
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert abs(float(ratio.mean()) - 1.0) < 4.8 * error
    assert error < {"exact": 0.02, "half": 0.1, "wrong": 0.3}[kind]
    assert float(result.log_normalizer_error) == pytest.approx(error, rel=0.5)


def test_genealogy_tells_the_error_of_the_evidence():
    case = two_state_hmm(length=8)
    sampler = SMC(case.aligned(), num_particles=400, resampling="multinomial", ess_threshold=0.9)
    results = [sampler.run() for _ in range(150)]
    assert min(int(result.steps["resampled"].sum()) for result in results) >= 2
    errors = torch.stack([result.log_normalizer - case.log_normalizer for result in results])
    stated = torch.stack([result.log_normalizer_error for result in results])
    # The ratio of mean squares of 150 scores lies in [.6, 1.6] but for 1e-5.
    assert 0.6 < float(errors.square().mean() / stated.square().mean()) < 1.6
    sampler = SMC(case.aligned(), num_particles=400, ess_threshold=1.0)
    assert sampler.run().log_normalizer_error.isnan()


@pytest.mark.parametrize("schedule", [(True, True, True), (False, True, False), (False,) * 3])
def test_the_variance_by_genealogy_is_unbiased(schedule):
    """The mean of Z-hat^2 (1 - V-hat) is Z^2, even with four particles in two states."""
    moves = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)
    likelihood = torch.tensor([[1.0, 0.3], [0.2, 0.9], [0.7, 0.4]], dtype=torch.float64)
    law = torch.tensor([0.6, 0.4], dtype=torch.float64)
    for row in likelihood:
        law = (law @ moves) * row
    exact = float(law.sum()) ** 2
    generator = torch.Generator().manual_seed(4)
    draws = torch.rand(6000, 4, 4, dtype=torch.float64, generator=generator)
    found = torch.empty(len(draws), dtype=torch.float64)
    for k, uniforms in enumerate(draws):
        population = Population(4, scheme="multinomial", generator=generator, schedule=schedule)
        state = (uniforms[0] < 0.4).long()
        for uniform, row in zip(uniforms[1:], likelihood):
            state = (uniform < moves[state, 1]).long()
            index = population.advance(row[state].log(), None, "")
            state = state if index is None else state[index]
        log_weights = population.finish(None)
        variance = population.evidence_variance(log_weights)
        found[k] = log_weights.exp().mean().square() * (1.0 - variance)
    # Beyond 4.5 standard errors: 7e-6.
    assert abs(float(found.mean()) - exact) < 4.5 * float(found.std()) / math.sqrt(len(found))


def _finite(case):
    return lambda state, t: case.twist("half")(state, t).clamp(min=-2.0)


def _keep_twist(self, index):
    self.resamplings += 1
    self.roots = index


def _without_removal(finish):
    def mutated(self, increment):
        self.twist = None
        return finish(self, increment)

    return mutated


def _drop_weights(advance):
    def mutated(self, increment, twist, where):
        index = advance(self, increment, twist, where)
        if index is None:
            self.log_z, self.log_weights = self.log_normalizer[-1], None
        return index

    return mutated


def _reuse_ancestors(advance):
    def mutated(self, increment, twist, where):
        index = advance(self, increment, twist, where)
        if index is not None:
            self.stale = index
        elif hasattr(self, "stale"):
            # As where ancestors are computed under the trigger and applied without it, and the
            # weights are set to zero at once.
            self.log_weights = None
            self._move(self.stale)
        return getattr(self, "stale", None)

    return mutated


def _keep_extreme(advance, combine):
    """Gathers the twists so far, particle by particle."""

    def mutated(self, increment, twist, where):
        kept = getattr(self, "kept", None)
        self.kept = twist if kept is None else combine(kept, twist)
        index = advance(self, increment, twist, where)
        if index is not None:
            self.kept = self.kept.index_select(0, index)
        return index

    return mutated


def _end_by_extreme(finish, combine):
    def mutated(self, increment):
        return finish(self, combine(self.kept, increment))

    return mutated


def _without_mean(finish):
    """An evidence of sums in place of means."""

    def mutated(self, increment):
        return finish(self, increment) + math.log(self.size)

    return mutated


def _weigh_the_start_twice(advance):
    """Particles that a first stage has drawn from the twisted start are weighted by it again."""

    def mutated(self, increment, twist, where):
        if not self.ess:
            increment = twist if increment is None else increment + twist
        return advance(self, increment, twist, where)

    return mutated


BUGS = ["twist", "removal", "weights", "ancestors", "records", "maximum", "sum", "mean", "double"]


@pytest.mark.parametrize("bug", BUGS)
def test_the_gate_sees_known_bugs(table, monkeypatch, bug):
    """Bugs of released steering codes, each of which leaves a plausible result."""
    if bug == "twist":
        monkeypatch.setattr(Population, "_move", _keep_twist)
    elif bug == "removal":
        monkeypatch.setattr(Population, "finish", _without_removal(Population.finish))
    elif bug == "weights":
        monkeypatch.setattr(Population, "advance", _drop_weights(Population.advance))
    elif bug == "ancestors":
        monkeypatch.setattr(Population, "advance", _reuse_ancestors(Population.advance))
    elif bug in ("maximum", "sum"):
        # Terminal potentials that end at the running maximum or sum in place of the reward.
        combine = torch.maximum if bug == "maximum" else torch.add
        monkeypatch.setattr(Population, "advance", _keep_extreme(Population.advance, combine))
        monkeypatch.setattr(Population, "finish", _end_by_extreme(Population.finish, combine))
    elif bug == "double":
        monkeypatch.setattr(Population, "advance", _weigh_the_start_twice(Population.advance))
    elif bug == "mean":
        monkeypatch.setattr(Population, "finish", _without_mean(Population.finish))
    else:
        monkeypatch.setattr(Group, "move", lambda self, index: None)
    schedule = {"weights": [False] * 4, "ancestors": [True, False, False, False]}.get(
        bug, [True, False, True, True]
    )
    assert p_value(table, twist=_finite(table), freeze_schedule=schedule) < 1e-7


@pytest.mark.parametrize("shift", [-5000.0, 5000.0])
def test_weights_far_from_one_are_those_near_it(shift):
    """Weights kept outside logarithms overflow or vanish here, in single and double precision."""
    generator = torch.Generator().manual_seed(0)
    increments = torch.randn(4, 30, dtype=torch.float64, generator=generator)
    found = []
    for offset in (0.0, shift):
        population = Population(
            30,
            scheme="systematic",
            generator=torch.Generator().manual_seed(1),
            schedule=(True, False, True, False),
        )
        index = [population.advance(row + offset, None, "") for row in increments]
        found.append((index, population.finish(None)))
    (near, weights), (far, shifted) = found
    for first, second in zip(near, far):
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)
    torch.testing.assert_close(shifted - 4 * shift, weights, rtol=0.0, atol=1e-8)
