# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from pyro_tilt.rewards import BlackBox, Linear, evaluate, log_tilt


def test_good_reward_passes_through():
    value = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    result = evaluate(lambda x: x.sum(-1), value, shape=(2,))
    assert torch.equal(result, torch.tensor([0.0, 2.0]))
    assert evaluate(Linear(1.0), torch.empty(0), shape=(0,)).shape == (0,)


def test_minus_infinity_is_legal():
    result = evaluate(lambda x: x.log(), torch.tensor([0.0, 1.0]), shape=(2,))
    assert torch.equal(result, torch.tensor([-math.inf, 0.0]))


def test_wrong_shape_shows_both():
    with pytest.raises(ValueError, match=r"^site x: .*shape \(4,\), got shape \(4, 3\)"):
        evaluate(lambda x: x, torch.ones(4, 3), shape=(4,), name="site x")
    # A result that would broadcast is wrong too.
    with pytest.raises(ValueError, match=r"shape \(4,\), got shape \(\)"):
        evaluate(lambda x: x.sum(), torch.ones(4, 3), shape=(4,))
    with pytest.raises(ValueError, match=r"shape \(4,\), got shape \(4, 1\)"):
        evaluate(lambda x: x.sum(-1, keepdim=True), torch.ones(4, 3), shape=(4,))


@pytest.mark.parametrize(
    "bad, kind, count", [(math.nan, "NaN", 2), (math.inf, r"\+inf", 2), (math.nan, "NaN", 1)]
)
def test_nan_and_plus_infinity_are_counted(bad, kind, count):
    value = torch.tensor([0.0, -math.inf, 1.0] + [bad] * count)
    with pytest.raises(ValueError, match=f"^r: the reward is {kind} for {count} of {3 + count} "):
        evaluate(lambda x: x, value, name="r")


def test_result_that_is_no_tensor_is_a_type_error():
    with pytest.raises(TypeError, match="must return a tensor"):
        evaluate(lambda x: 1.0, torch.ones(2))
    with pytest.raises(TypeError, match="takes a callable, got float"):
        evaluate(1.0, torch.ones(2))


def test_log_tilt_multiplies():
    values = torch.tensor([1.0, -2.0, -math.inf])
    expected = torch.tensor([2.5, -5.0, -math.inf])
    torch.testing.assert_close(log_tilt(values, 2.5), expected)
    torch.testing.assert_close(log_tilt(values, torch.tensor(2.5)), expected)
    torch.testing.assert_close(log_tilt(values[:2], -1.0), torch.tensor([-1.0, 2.0]))


@pytest.mark.parametrize("beta", [0, 0.0, torch.tensor(0.0), torch.zeros(2, 1)])
def test_zero_beta_is_the_base_law(beta):
    result = log_tilt(torch.tensor([3.0, -math.inf]), beta)
    assert not result.any() and not result.isnan().any()


def test_log_tilt_broadcasts_beta():
    values = torch.tensor([1.0, -math.inf])
    result = log_tilt(values, torch.tensor([[0.0], [2.0]]))
    assert torch.equal(result, torch.tensor([[0.0, 0.0], [2.0, -math.inf]]))


@pytest.mark.parametrize("beta", [-1.0, torch.tensor(-1.0), torch.tensor([[1.0], [-1.0]])])
def test_negative_beta_of_minus_infinity_is_refused(beta):
    with pytest.raises(ValueError, match=r"negative beta meets a reward of -inf \(1 values\)"):
        log_tilt(torch.tensor([0.0, -math.inf]), beta)


def test_negative_beta_elsewhere_is_no_error():
    values = torch.tensor([-math.inf, 1.0])
    result = log_tilt(values, torch.tensor([1.0, -1.0]))
    assert torch.equal(result, torch.tensor([-math.inf, -1.0]))


def test_huge_beta_stays_finite():
    assert log_tilt(torch.tensor([1.0, -30.0]), 1e6).isfinite().all()


def test_gradient_of_log_tilt_at_zero_beta():
    values = torch.tensor([2.0, -math.inf], requires_grad=True)
    beta = torch.tensor(0.0, requires_grad=True)
    log_tilt(values, beta).sum().backward()
    torch.testing.assert_close(beta.grad, torch.tensor(2.0))
    assert torch.equal(values.grad, torch.zeros(2))


def test_black_box_that_raises_is_passed_on():
    def broken(value):
        raise KeyError("site")

    with pytest.raises(KeyError, match="site"):
        evaluate(BlackBox(broken), torch.ones(2))


def test_evaluation_keeps_the_gradient():
    theta = torch.tensor([1.0, -2.0], requires_grad=True)
    value = torch.tensor([[3.0, 0.5], [1.0, 1.0]])
    evaluate(Linear(theta), value, shape=(2,)).sum().backward()
    torch.testing.assert_close(theta.grad, value.sum(0))
