# SPDX-License-Identifier: Apache-2.0
"""The evidence under learned twists: its exact mean and its exact variance."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.messenger import Messenger

from pyro_tilt import scan
from pyro_tilt.infer import SMC
from pyro_tilt.infer.smc import population
from pyro_tilt.infer.twists import learn_twists
from pyro_tilt.testing.gates import Z_SCORE

OPTIONS = {
    "resampling": "multinomial",
    "ess_threshold": 1.0,
    "check_lineage": False,
    "max_plate_nesting": 0,
    "progress": False,
}


class Table:
    """A chain over K states, its steps counted down to 0, with a reward of the last state."""

    def __init__(self, initial, kernel, reward, steps):
        self.initial, self.kernel, self.reward, self.steps = initial, kernel, reward, steps
        self.values = [reward]
        for _ in range(steps):
            self.values.append((kernel.log() + self.values[-1]).logsumexp(-1))
        self.evidence = float((initial.log() + self.values[-1]).logsumexp(0).exp())

    def program(self):
        def step(s, t):
            return pyro.sample(f"s_{t}", dist.Categorical(self.kernel[s]))

        start = pyro.sample("start", dist.Categorical(self.initial))
        return scan("chain", step, start, range(self.steps - 1, -1, -1))

    def tables(self, twist):
        """Log twists after each step, in the order of the steps."""
        states = torch.arange(len(self.initial))
        return [twist(states, t).double() for t in range(self.steps - 1, -1, -1)]

    def relative_variance(self, tables, n):
        """
        Of the evidence with n particles, multinomially resampled by the twist after every step.

        The second moment follows two particles back in time: with probability 1/n they have the
        same parent, otherwise two independent ones.
        """
        tables = [table - table.max() for table in tables]
        last = (self.reward - tables[-1]).exp()
        pair = torch.outer(last, last)
        pair = (1 - 1 / n) * pair + pair.diagonal()[:, None] / n
        for table, before in zip(reversed(tables), [*reversed(tables[:-1]), None]):
            twist = table.exp()
            pair = pair * torch.outer(twist, twist)
            apart, together = self.kernel @ pair @ self.kernel.T, self.kernel @ pair.diagonal()
            if before is None:
                second = (1 - 1 / n) * self.initial @ apart @ self.initial
                second = second + self.initial @ together / n
            else:
                entered = before.exp()
                pair = (1 - 1 / n) * apart / torch.outer(entered, entered)
                pair = pair + (together / entered.square())[:, None] / n
        return float(second) / self.evidence**2 - 1.0


def walk(beta, steps, size=61):
    """A walk that reverts slowly, on a grid, with a reward that grows along it."""
    grid = torch.linspace(-4.0, 6.0, size, dtype=torch.float64)
    kernel = (-0.5 * ((grid - 0.95 * grid[:, None]) / 0.31).square()).softmax(-1)
    return grid, Table((-0.5 * grid.square()).softmax(0), kernel, beta * grid, steps)


class _Script(Messenger):
    """Gives every latent site the value that was written down, and notes its probability."""

    def __init__(self, values):
        super().__init__()
        self.values, self.log_prob = iter(values), 0.0

    def _pyro_sample(self, msg):
        if not msg["is_observed"]:
            msg["value"], msg["done"] = torch.tensor(next(self.values)), True

    def _pyro_post_sample(self, msg):
        if not msg["is_observed"]:
            self.log_prob += float(msg["fn"].log_prob(msg["value"]).expand(2).sum())


@pytest.fixture(scope="module")
def small():
    initial = torch.tensor([0.7, 0.3], dtype=torch.float64)
    kernel = torch.tensor([[0.8, 0.2], [0.35, 0.65]], dtype=torch.float64)
    table = Table(initial, kernel, torch.tensor([-1.0, 2.0], dtype=torch.float64), 2)
    twist = learn_twists(
        table.program,
        reward=lambda s: table.reward[s],
        features=lambda s: s.float().unsqueeze(-1),
        num_particles=200,
        steps=40,
        seed=0,
        progress=False,
    )
    return table, twist


def test_the_mean_over_every_outcome_of_a_run_is_the_evidence(small, monkeypatch):
    """All draws of two particles and all choices of ancestors, with their probabilities."""
    table, twist = small
    pairs = list(itertools.product((0, 1), repeat=2))
    mass = mean = second = tilted = 0.0
    for draws in itertools.product(pairs, repeat=3):
        for ancestors in itertools.product(pairs, repeat=2):
            script, choices, log_choice = _Script(draws), iter(ancestors), [0.0]

            def chosen(weights, n, generator, choices=choices, log_choice=log_choice):
                index = torch.tensor(next(choices))
                log_choice[0] += float((weights / weights.sum()).log()[index].sum())
                return index

            def program(script=script):
                with script:
                    return table.program()

            monkeypatch.setitem(population.by_weight, "multinomial", chosen)
            result = SMC(
                program, reward=lambda s: table.reward[s], num_particles=2, twist=twist, **OPTIONS
            ).run()
            chance = math.exp(script.log_prob + log_choice[0])
            estimate = float(result.log_normalizer.exp())
            share = result.log_weights.softmax(0)[result.samples["s_0"] == 1].sum()
            mass, mean = mass + chance, mean + chance * estimate
            second, tilted = second + chance * estimate**2, tilted + chance * estimate * share
    assert mass == pytest.approx(1.0, abs=1e-12)
    assert mean == pytest.approx(table.evidence, rel=1e-12)
    last = table.initial @ table.kernel @ table.kernel * table.reward.exp()
    assert float(tilted) == pytest.approx(float(last[1]), rel=1e-12)
    variance = table.relative_variance(table.tables(twist), 2)
    assert second / mean**2 - 1.0 == pytest.approx(variance, rel=1e-9)


@pytest.fixture(scope="module")
def long():
    grid, table = walk(beta=3.0, steps=12)
    twist = learn_twists(
        table.program,
        reward=lambda s: table.reward[s],
        features=lambda s: grid[s].float().unsqueeze(-1),
        num_particles=2000,
        steps=150,
        seed=5,
        progress=False,
    )
    return table, twist


def test_learned_twists_leave_little_variance_at_a_strong_tilt(long):
    """Exact variances, so that neither luck nor heavy tails decide."""
    table, twist = long
    exact = table.values[-2::-1]
    variance = {
        scale: table.relative_variance([scale * each for each in exact], 64)
        for scale in (0.0, 0.5, 0.75, 1.0)
    }
    assert variance[0.0] > variance[0.5] > variance[0.75] > variance[1.0]
    learned = table.relative_variance(table.tables(twist), 64)
    assert learned < variance[0.75]


def test_evidence_is_unbiased_on_a_long_chain(long):
    """The error of the mean is the exact one: that of the runs misses the tail it did not see."""
    table, twist = long
    runs, n = 200, 64
    result = SMC(
        table.program,
        reward=lambda s: table.reward[s],
        num_particles=n,
        num_chains=runs,
        twist=twist,
        seed=9,
        **OPTIONS,
    ).run()
    ratio = result.chain_log_normalizers.exp() / table.evidence
    deviation = math.sqrt(table.relative_variance(table.tables(twist), n))
    assert deviation < 1.0
    assert abs(float(ratio.mean()) - 1.0) < Z_SCORE * deviation / math.sqrt(runs)


@pytest.mark.slow
def test_few_runs_at_a_stronger_tilt_lie_below_the_evidence():
    """Unbiased, and yet the mean of 200 runs is mostly too low, under the exact twist too."""
    _, table = walk(beta=6.0, steps=20)
    exact = table.values[-2::-1]
    n, runs, repeats = 4, 200, 100
    # One run of many groups of n particles: the same law, written out in torch.
    generator = torch.Generator().manual_seed(2)
    count = runs * repeats
    state = torch.multinomial(table.initial, count * n, True, generator=generator)
    total, entered = torch.zeros(count, dtype=torch.float64), torch.zeros(count, n).double()
    for values in exact:
        state = torch.multinomial(table.kernel[state.flatten()], 1, generator=generator)
        state = state.reshape(count, n)
        weights = values[state] - entered
        total += weights.logsumexp(1) - math.log(n)
        index = torch.multinomial(weights.softmax(1), n, True, generator=generator)
        state = state.gather(1, index)
        entered = values[state]
    total += (table.reward[state] - entered).logsumexp(1) - math.log(n)
    means = (total.exp() / table.evidence).reshape(repeats, runs).mean(1)
    deviation = math.sqrt(table.relative_variance(exact, n))
    # The exact deviation of a mean of 200 runs, and how much of it 200 runs show.
    assert deviation / math.sqrt(runs) > 2.0
    # A law symmetric about its mean would do so with a probability below 1e-5.
    assert int((means < 1.0).sum()) >= 72
