# SPDX-License-Identifier: Apache-2.0
"""One test case for every sampler over a Pyro program.

A concrete test subclasses :class:`SamplerTestCase`, names the sampler and runs through the same
laws, limits and bad inputs. Statistical gates have a false-alarm rate of at most 1e-5 each, and
the seeds are fixed. This module needs pytest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_tilt import rewards
from pyro_tilt.infer import Sampler, WeightedSamples
from pyro_tilt.poutine import align
from pyro_tilt.testing.exact_programs import (
    TwoCategoricals,
    conjugate_gaussian,
    two_categoricals,
)
from pyro_tilt.testing.gates import P_VALUE, Z_SCORE, hotelling

__all__ = ["SamplerTestCase"]


class SamplerTestCase:
    """What every sampler must pass; override the hooks where a certificate claims less.

    :cvar sampler: the class under test.
    :cvar options: options that every construction adds.
    """

    sampler: ClassVar[type[Sampler]]
    options: ClassVar[dict[str, Any]] = {}

    def make(self, program: Callable[..., Any], **options: Any) -> Sampler:
        """The sampler of ``program``; runs without a progress bar."""
        return self.sampler(program, **{"progress": False, **self.options, **options})

    def state_counts(self, case: TwoCategoricals, result: WeightedSamples) -> Tensor:
        """Unweighted counts of the states in a result."""
        return torch.bincount(case.state(result.samples), minlength=12).double()

    def law(self, case: TwoCategoricals, result: WeightedSamples) -> Tensor | None:
        """The exact law of the result's unweighted draws; None where they are base draws."""
        return case.probabilities if result.kind == "iid" else None

    def correction(self, result: WeightedSamples) -> Tensor:
        """Log weights under which the draws estimate the target's unnormalised mass unbiasedly."""
        if result.residual_log_weights is not None:
            return result.residual_log_weights
        return result.log_weights

    @pytest.mark.parametrize("observed", [False, True])
    def test_law_over_states(self, observed: bool) -> None:
        case = two_categoricals(observed=observed)
        statistic, freedom = 0.0, 0
        for seed in range(5):
            result = self.make(case.aligned(), num_samples=4000, seed=seed).run()
            law = self.law(case, result)
            if law is None:
                law = (case.log_base - (0 if not observed else _log_likelihood())).softmax(0)
            counts = self.state_counts(case, result)
            assert counts[law == 0].sum() == 0
            kept = law > 0
            expected = law[kept] * counts.sum()
            statistic += float(((counts[kept] - expected).square() / expected).sum())
            freedom += int(kept.sum()) - 1
        assert stats.chi2.sf(statistic, freedom) > P_VALUE

    @pytest.mark.parametrize("observed", [False, True])
    def test_weights_give_the_target(self, observed: bool) -> None:
        """Self-normalised weights recover the aligned law, each state's error gated jointly."""
        case = two_categoricals(observed=observed)
        estimates = []
        for seed in range(120):
            result = self.make(case.aligned(), num_samples=400, seed=1000 + seed).run()
            weights = self.correction(result).softmax(0)
            states = case.state(result.samples)
            estimates.append(torch.zeros(12).double().index_add_(0, states, weights))
        # The ratio estimator's bias, of order 1/400, is far below its spread over 120 runs.
        keep = case.probabilities > 0
        hotelling(torch.stack(estimates)[:, keep][:, :-1], case.probabilities[keep][:-1])

    @pytest.mark.parametrize("observed", [False, True])
    def test_evidence_is_unbiased(self, observed: bool) -> None:
        # Few draws a run: what is biased by the stopping of a stream is so by 1/N.
        case = two_categoricals(observed=observed)
        ratios = []
        for seed in range(300):
            result = self.make(case.aligned(), num_samples=3, seed=seed).run()
            ratios.append(math.exp(float(result.log_normalizer) - case.log_normalizer))
        score = (np.mean(ratios) - 1.0) / (np.std(ratios, ddof=1) / math.sqrt(len(ratios)))
        assert abs(score) < Z_SCORE

    def test_evidence_error_is_calibrated(self) -> None:
        case = conjugate_gaussian()
        scores = []
        for seed in range(100):
            result = self.make(case.aligned(), num_samples=500, seed=seed).run()
            error = float(result.log_normalizer) - case.log_normalizer
            scores.append(error / float(result.log_normalizer_error))
        # The mean square of 100 standard normal scores stays in [.45, 1.9] but for 1e-5.
        assert 0.45 < np.mean(np.square(scores)) < 1.9

    def test_continuous_moments(self) -> None:
        case = conjugate_gaussian()
        moments = []
        for seed in range(60):
            result = self.make(case.aligned(), num_samples=1500, seed=seed).run()
            weights = self.correction(result).softmax(0)
            z, x = result.samples["z"].double(), result.samples["x"].double()
            rows = torch.stack([z, x, z * z, z * x, x * x], -1)
            moments.append((weights.unsqueeze(-1) * rows).sum(0))
        second = case.covariance + torch.outer(case.mean, case.mean)
        exact = torch.stack([*case.mean, second[0, 0], second[0, 1], second[1, 1]])
        hotelling(torch.stack(moments), exact)

    def test_reward_stat_is_the_reward(self) -> None:
        case = conjugate_gaussian()
        result = self.make(case.aligned(), num_samples=200, seed=0).run()
        expected = case.reward(result.samples["x"])
        torch.testing.assert_close(result.stats["reward"], expected)
        assert result.beta == pytest.approx(case.beta)

    def test_beta_zero_is_the_base_bit_for_bit(self) -> None:
        for case in (conjugate_gaussian(beta=0.0), two_categoricals(beta=0.0)):
            for seed in range(5):
                result = self.make(case.aligned(), num_samples=1, seed=seed).run()
                pyro.set_rng_seed(seed)
                trace = pyro.poutine.trace(case.program).get_trace()
                for name, values in result.samples.items():
                    expected = trace.nodes[name]["value"]
                    assert expected is not None
                    assert torch.equal(values[0], expected)

    def test_raising_beta_raises_the_reward(self) -> None:
        """A wrong sign, or a beta that is its own inverse, fails; exact means by quadrature."""
        reward = rewards.Bounded(_squash, low=0.0, high=1.0)
        grid = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64)
        levels, means = _squash(grid), []
        for beta in (-2.0, -0.5, 0.0, 0.5, 3.0):
            result = self.make(_plain, reward=reward, beta=beta, num_samples=6000, seed=1).run()
            weights = self.correction(result).softmax(0)
            means.append(float((weights * result.stats["reward"]).sum()))
            law = (-0.5 * grid.square() + beta * levels).softmax(0)
            exact = float((law * levels).sum())
            size = 1.0 / float(weights.square().sum())
            spread = float(((levels - exact).square() * law).sum().sqrt()) / math.sqrt(size)
            assert abs(means[-1] - exact) < Z_SCORE * spread
        assert means == sorted(means)

    def test_seed_reproduces_and_leaves_global_state(self) -> None:
        case = two_categoricals()
        pyro.set_rng_seed(5)
        before = torch.get_rng_state()
        first = self.make(case.aligned(), num_samples=50, seed=7).run()
        assert torch.equal(before, torch.get_rng_state())
        again = self.make(case.aligned(), num_samples=50, seed=7).run()
        other = self.make(case.aligned(), num_samples=50, seed=8).run()
        assert torch.equal(case.state(first.samples), case.state(again.samples))
        assert torch.equal(first.log_weights, again.log_weights)
        assert not torch.equal(case.state(first.samples), case.state(other.samples))

    def test_unseeded_runs_follow_the_global_seed(self) -> None:
        case = conjugate_gaussian()
        draws = []
        for _ in range(2):
            pyro.set_rng_seed(11)
            sampler = self.make(case.aligned(), num_samples=20)
            draws.append((sampler.run().samples["x"], sampler.run().samples["x"]))
        assert torch.equal(draws[0][0], draws[1][0])
        assert torch.equal(draws[0][1], draws[1][1])
        assert not torch.equal(draws[0][0], draws[0][1])

    @pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
    def test_bad_seed_is_named(self, seed: Any) -> None:
        with pytest.raises(ValueError, match="seed"):
            self.make(_plain, seed=seed)

    def test_an_interrupt_leaves_nothing_broken(self) -> None:
        calls = 0

        def reward(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > 2:
                raise KeyboardInterrupt
            return _squash(x)

        bounded = rewards.Bounded(reward, low=0.0, high=1.0)
        sampler = self.make(_plain, reward=bounded, num_samples=500, max_batch=100, seed=0)
        pyro.set_rng_seed(3)
        before = torch.get_rng_state()
        with pytest.raises(KeyboardInterrupt):
            sampler.run()
        assert torch.equal(before, torch.get_rng_state())
        assert not pyro.poutine.runtime._PYRO_STACK
        calls = -(10**6)
        assert len(sampler.run()) == 500

    def test_no_bar_on_short_work(self, capfd: pytest.CaptureFixture[str]) -> None:
        case = conjugate_gaussian()
        quiet = {"num_samples": 50, "max_batch": 20, "seed": 0}
        self.make(case.aligned(), progress=None, **quiet).run()
        assert capfd.readouterr().err == ""
        self.make(case.aligned(), progress=True, **quiet).run()
        assert self.sampler.__name__ in capfd.readouterr().err

    def test_max_batch_bounds_the_rows_of_a_call(self) -> None:
        sizes: list[int] = []

        def program() -> Tensor:
            x = pyro.sample("x", dist.Normal(torch.tensor(0.5), torch.tensor(1.0)))
            sizes.append(x.numel())
            return x

        reward = rewards.Bounded(_squash, low=0.0, high=1.0)
        result = self.make(
            program, reward=reward, beta=2.0, num_samples=1000, max_batch=128, seed=0
        ).run()
        assert len(result) == 1000
        assert max(sizes) <= 128

    def test_chains_are_independent_runs(self) -> None:
        case = conjugate_gaussian()
        result = self.make(case.aligned(), num_samples=300, num_chains=4, seed=2).run()
        assert result.chain_sizes == (300,) * 4
        assert len(result) == 1200
        grouped = result.get_samples(group_by_chain=True)["x"]
        assert grouped.shape == (4, 300)
        assert len({float(chain[0]) for chain in result.samples["x"].reshape(4, 300)}) == 4
        single = self.make(case.aligned(), num_samples=300, seed=2).run()
        assert torch.equal(result.samples["x"][:300], single.samples["x"])

    def test_plates(self) -> None:
        goal = torch.tensor([0.5, -0.3, 1.0])

        def program(loc: Tensor) -> Tensor:
            with pyro.plate("items", len(loc)):
                x = pyro.sample("x", dist.Normal(loc, torch.tensor(1.0)))
                pyro.sample("vector", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            return x

        reward = rewards.Bounded(
            lambda x: -(x - goal).square().sum(-1), low=-math.inf, high=0.0, event_dim=1
        )
        loc = torch.tensor([0.0, 1.0, 2.0])
        means = []
        for seed in range(60):
            result = self.make(program, reward=reward, beta=0.5, num_samples=400, seed=seed).run(
                loc
            )
            assert result.samples["x"].shape == (400, 3)
            assert result.samples["vector"].shape == (400, 3, 2)
            weights = self.correction(result).softmax(0)
            means.append((weights.unsqueeze(-1) * result.samples["x"]).sum(0))
        hotelling(torch.stack(means), ((loc + goal) / 2).double())

    def test_empty_plate_is_refused_and_empty_values_are_not(self) -> None:
        def plated() -> Tensor:
            with pyro.plate("items", 0):
                return pyro.sample("y", dist.Normal(torch.zeros(0), torch.ones(0)))

        def empty() -> Tensor:
            pyro.sample("y", dist.Normal(torch.zeros(0), torch.ones(0)).to_event(1))
            return _plain()

        reward = rewards.Bounded(_squash, low=0.0, high=1.0)
        # Pyro has no plate of size zero, and says so before any sampling.
        with pytest.raises(ZeroDivisionError, match="size cannot be zero"):
            self.make(plated, reward=reward, num_samples=30, seed=0).run()
        result = self.make(empty, reward=reward, num_samples=30, seed=0).run()
        assert result.samples["y"].shape == (30, 0)
        assert result.samples["x"].shape == (30,)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtype(self, dtype: torch.dtype) -> None:
        def program() -> Tensor:
            loc = torch.tensor(0.5, dtype=dtype)
            return pyro.sample("x", dist.Normal(loc, torch.ones_like(loc)))

        reward = rewards.Bounded(_squash, low=0.0, high=1.0)
        result = self.make(program, reward=reward, beta=1.0, num_samples=30, seed=0).run()
        assert result.samples["x"].dtype == dtype
        assert result.log_weights.dtype == torch.float64
        assert result.log_normalizer.dtype == torch.float64

    def test_cost_counts_rows(self) -> None:
        calls = {"program": 0, "reward": 0}

        def program() -> Tensor:
            x = pyro.sample("x", dist.Normal(torch.tensor(0.5), torch.tensor(1.0)))
            calls["program"] += x.numel()
            return x

        def counting(x: Tensor) -> Tensor:
            calls["reward"] += x.numel()
            return _squash(x)

        reward = rewards.Bounded(counting, low=0.0, high=1.0)
        result = self.make(program, reward=reward, beta=2.0, num_samples=300, seed=0).run()
        # One plain run learns the program's sites and is not part of the cost.
        assert result.cost.base_draws == calls["program"] - 1
        assert result.cost.reward_calls == calls["reward"] - 1
        assert result.cost.seconds > 0

    @pytest.mark.parametrize("count", [0, -3, 2.5])
    def test_count_must_be_positive(self, count: float) -> None:
        with pytest.raises(ValueError, match="num_samples"):
            self.make(conjugate_gaussian().aligned(), num_samples=count)

    def test_beta_needs_a_reward(self) -> None:
        with pytest.raises(ValueError, match="reward"):
            self.make(_plain, beta=2.0)

    def test_two_names_of_one_count(self) -> None:
        with pytest.raises(ValueError, match="num_particles"):
            self.make(_plain, num_samples=3, num_particles=3)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_nan_and_plus_inf_rewards_raise(self, value: float) -> None:
        def reward(x: Tensor) -> Tensor:
            return torch.where(x > 0.0, torch.full_like(x, value), torch.zeros_like(x))

        bounded = rewards.Bounded(reward, low=-math.inf, high=0.0) if math.isnan(value) else reward
        with pytest.raises(ValueError, match="nan|inf"):
            self.make(_plain, reward=bounded, num_samples=100, seed=0).run()

    def test_minus_inf_everywhere_raises(self) -> None:
        reward = rewards.Constraint(lambda x: torch.zeros_like(x, dtype=torch.bool))
        with pytest.raises(ValueError, match="-inf|zero"):
            self.make(_plain, reward=reward, num_samples=100, seed=0).run()

    def test_minus_inf_somewhere_never_survives(self) -> None:
        reward = rewards.Constraint(lambda x: x > 0.3)
        result = self.make(_plain, reward=reward, num_samples=300, seed=0).run()
        assert (result.get_samples()["x"] > 0.3).all()

    def test_wrong_shape_raises(self) -> None:
        reward = rewards.Bounded(lambda x: torch.zeros(*x.shape, 2), low=0.0, high=0.0)
        with pytest.raises(ValueError, match="shape"):
            self.make(_plain, reward=reward, num_samples=10, seed=0).run()

    def test_a_raising_reward_is_not_swallowed(self) -> None:
        def reward(x: Tensor) -> Tensor:
            raise ZeroDivisionError("the user's own error")

        with pytest.raises(ZeroDivisionError, match="own error"):
            self.make(_plain, reward=reward, num_samples=10, seed=0).run()

    @pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
    @pytest.mark.parametrize("beta", [-3.0, 1e6])
    def test_extreme_beta_does_not_overflow(self, beta: float) -> None:
        def program() -> Tensor:
            return pyro.sample("x", dist.Uniform(torch.tensor(0.0), torch.tensor(1.0)))

        reward = rewards.Bounded(lambda x: torch.floor(4.0 * x) / 4.0, low=0.0, high=0.75)
        result = self.make(program, reward=reward, beta=beta, num_samples=100, seed=0).run()
        assert torch.isfinite(result.log_normalizer)
        if beta > 0:
            assert float(result.log_normalizer) == pytest.approx(0.75e6, abs=3.0)
            assert (result.get_samples()["x"] >= 0.75).all()

    def test_nested_align_adds_up(self) -> None:
        case = conjugate_gaussian(beta=1.3)
        nested = align(align(case.program, case.reward, 0.5), case.reward, 0.8)
        result = self.make(nested, num_samples=20_000, seed=0).run()
        tolerance = Z_SCORE * float(result.log_normalizer_error)
        assert float(result.log_normalizer) == pytest.approx(case.log_normalizer, abs=tolerance)


def _plain() -> Tensor:
    return pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))


def _squash(x: Tensor) -> Tensor:
    return torch.sigmoid(2.0 * x)


def _log_likelihood() -> Tensor:
    observed, plain = two_categoricals(observed=True), two_categoricals(observed=False)
    return observed.log_base - plain.log_base
