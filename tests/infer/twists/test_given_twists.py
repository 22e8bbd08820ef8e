# SPDX-License-Identifier: Apache-2.0
"""Twists that need no training."""

import pickle

import numpy as np
import pytest
import torch

from pyro_tilt import rewards
from pyro_tilt.infer import SMC
from pyro_tilt.infer.smc import TwistError
from pyro_tilt.infer.twists import (
    ExactTwist,
    PosteriorMeanTwist,
    StepKeys,
    Tempered,
    Twist,
    carry_features,
)
from pyro_tilt.poutine import align
from pyro_tilt.testing.gates import Z_SCORE
from pyro_tilt.testing.linear_gaussian import linear_gaussian_chain


def _shrink(x, t):
    return 0.5**t * x


class _Denoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor([2.0, -1.0]))

    def forward(self, x, t):
        return x * self.slope


@pytest.fixture(scope="module")
def chain():
    return linear_gaussian_chain(beta=3.0, num_steps=5)


def _evidences(case, twist, chains=200, particles=32):
    aligned = align(case.program, case.reward, case.beta)
    sampler = SMC(
        aligned,
        num_particles=particles,
        num_chains=chains,
        twist=twist,
        ess_threshold=1.0,
        seed=5,
        progress=False,
        check_lineage=False,
        max_plate_nesting=0,
    )
    return sampler.run().chain_log_normalizers - case.log_normalizer


def _posterior_mean(case):
    """E[x_0 | x_t] by the transition matrices, one step at a time."""
    A, b = case.system.transition, case.system.shift

    def denoise(x, t):
        for _ in range(t):
            x = x @ A.mT + b
        return x

    return denoise


def test_posterior_mean_is_the_closed_form_of_a_linear_chain(chain):
    twist = PosteriorMeanTwist(_posterior_mean(chain), chain.reward, chain.beta)
    A, b = chain.system.transition, chain.system.shift
    # At t = 0 the soft value is beta r, and its coefficients pass back through the drift alone.
    P, q, k = chain.hessians[0], chain.slopes[0], chain.constants[0]
    x = torch.randn(7, 2, dtype=torch.float64)
    for t in range(6):
        expected = 0.5 * ((x @ P) * x).sum(-1) + x @ q + k
        torch.testing.assert_close(twist(x, t), expected)
        k, q, P = k + q @ b + 0.5 * b @ P @ b, A.mT @ (q + P @ b), A.mT @ P @ A
    torch.testing.assert_close(twist(x, 0), chain.log_soft_value(x, 0))
    assert not torch.allclose(twist(x, 1), chain.log_soft_value(x, 1), atol=0.05)


def test_posterior_mean_is_exact_up_to_a_constant_for_a_linear_reward(chain):
    theta = torch.tensor([0.7, -0.4], dtype=torch.float64)
    twist = PosteriorMeanTwist(_posterior_mean(chain), rewards.Linear(theta), 2.0)
    A, L = chain.system.transition, chain.system.noise
    x = torch.randn(5, 2, dtype=torch.float64)
    slope, constant = 2.0 * theta, 0.0
    for t in range(1, 4):
        spread = slope @ L
        constant = constant + 0.5 * spread @ spread
        slope = A.mT @ slope
        x0 = torch.zeros(1, 2, dtype=torch.float64)
        torch.testing.assert_close(twist(x, t) - twist(x0, t), x @ slope)
    assert constant > 0.0


def test_other_twists_leave_the_evidence_unbiased(chain):
    for twist in (
        PosteriorMeanTwist(_posterior_mean(chain), chain.reward, chain.beta),
        ExactTwist(chain.twist("wrong")),
        Tempered(ExactTwist(chain.twist("exact")), [0.1, 0.2, 0.5, 0.5, 1.0], xs=range(4, -1, -1)),
    ):
        ratio = _evidences(chain, twist).exp()
        assert abs(ratio.mean() - 1.0) < Z_SCORE * ratio.std() / len(ratio) ** 0.5


def test_the_weights_of_a_tempered_twist_telescope(chain):
    # Without resampling every twist must cancel from the final weights, whatever its scale.
    aligned = align(chain.program, chain.reward, chain.beta)
    options = {"num_particles": 50, "ess_threshold": 0.0, "seed": 2, "progress": False}
    plain = SMC(aligned, **options).run().log_weights
    for schedule in (lambda t: 1.0 / (1 + t), lambda t: 0.0 if t > 2 else 0.9):
        twist = Tempered(chain.twist("exact"), schedule)
        found = SMC(aligned, twist=twist, **options).run().log_weights
        torch.testing.assert_close(found, plain, atol=1e-10, rtol=1e-10)


def test_tempered_scales_and_keeps_zero_at_zero():
    twist = Tempered(lambda x, t: x, [0.0, 0.25, 1.0], xs=[9, 4, 0])
    x = torch.tensor([-torch.inf, 2.0])
    assert twist(x, 9).tolist() == [0.0, 0.0]
    assert twist(x, 4).tolist() == [-torch.inf, 0.5]
    assert twist(x, 0).tolist() == [-torch.inf, 2.0]


@pytest.mark.parametrize(
    ("schedule", "xs", "text"),
    [
        ([0.5, 0.2, 1.0], range(3), "must rise"),
        ([0.5, 0.6, 0.9], range(3), "to 1 at the last"),
        ([-0.5, 0.6, 1.0], range(3), "must rise"),
        ([0.5, 1.0], range(3), "2 numbers for 3 steps"),
        ([0.5, 1.0], None, "needs xs"),
        (lambda t: 1.0, range(3), "xs belongs"),
    ],
)
def test_bad_schedules(schedule, xs, text):
    with pytest.raises(ValueError, match=text):
        Tempered(lambda x, t: x, schedule, xs=xs)


def test_a_schedule_function_must_stay_in_the_unit_interval():
    with pytest.raises(ValueError, match="outside"):
        Tempered(lambda x, t: x, lambda t: 1.5)(torch.zeros(2), 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor([0.0, torch.nan]), "NaN for 1 of 2"),
        (torch.tensor([0.0, torch.inf]), r"\+inf for 1 of 2"),
        (torch.zeros(2, 3), r"shape \(N,\), got \(2, 3\)"),
        (torch.zeros(()), r"got \(\)"),
        (1.0, "got float"),
    ],
)
def test_bad_values_are_named(value, text):
    twist = ExactTwist(lambda x, t: value)
    with pytest.raises(TwistError, match=f"ExactTwist after step 7.*{text}"):
        twist(torch.zeros(2), 7)


def test_a_nan_twist_ends_a_run_with_a_named_error(chain):
    aligned = align(chain.program, chain.reward, chain.beta)
    twist = ExactTwist(lambda x, t: x[..., 0] * (torch.nan if t == 2 else 1.0))
    with pytest.raises(TwistError, match="ExactTwist after step 2"):
        SMC(aligned, twist=twist, num_particles=20, progress=False).run()


def test_rows_are_counted_and_minus_inf_is_legal():
    twist = ExactTwist(lambda x, t: x)
    twist(torch.tensor([0.0, -torch.inf, 1.0]))
    twist(torch.zeros(4, 1))
    assert twist.value_calls == 7
    assert twist(torch.zeros(4, 1)).shape == (4,)


def test_twists_pickle_and_move():
    twist = Tempered(
        PosteriorMeanTwist(_Denoiser(), rewards.Linear(torch.tensor([1.0, 3.0])), 2.0),
        [0.5, 1.0],
        xs=range(1, -1, -1),
    )
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    expected = 0.5 * 2.0 * (2.0 * x[:, 0] - 3.0 * x[:, 1])
    back = pickle.loads(pickle.dumps(twist))
    assert isinstance(back, Twist)
    torch.testing.assert_close(back(x, 1), expected)
    moved = twist.to(torch.float64)
    assert moved(x.double(), 1).dtype == torch.float64
    assert twist(x, 1).dtype == torch.float32
    assert ExactTwist(_shrink).to(torch.float64).fn is _shrink


def test_step_keys_tell_steps_apart():
    rows = torch.arange(60.0).reshape(3, 20)
    for xs in (range(5, 0, -1), [0.3, 0.2], rows, list(enumerate(rows)), ["a", None, (1, "b")]):
        keys = StepKeys(xs)
        assert [keys(x) for x in xs] == list(range(len(xs)))
        again = StepKeys.from_list(keys.to_list())
        assert [again(x) for x in xs] == list(range(len(xs)))
    assert StepKeys([3, 1])(torch.tensor(1)) == StepKeys([3, 1])(np.int64(1)) == 1
    with pytest.raises(ValueError, match="steps 0 and 2 .* equal"):
        StepKeys([1.0, 2.0, 1])
    with pytest.raises(ValueError, match="none of the 2 steps"):
        StepKeys([1, 2])(3)
    with pytest.raises(TypeError, match="is a dict"):
        StepKeys([{}])
    with pytest.raises(ValueError, match="no steps"):
        StepKeys([])


def test_features_of_nested_carries():
    carry = ({"a": torch.ones(3, 2, 2)}, torch.tensor([1, 2, 3]), 5.0)
    found = carry_features(carry)
    assert found.shape == (3, 5) and found[:, 4].tolist() == [1.0, 2.0, 3.0]
    assert carry_features(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(TypeError, match="features="):
        carry_features(3.0)
