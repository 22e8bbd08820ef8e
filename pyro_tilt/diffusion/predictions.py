# SPDX-License-Identifier: Apache-2.0
"""What networks predict, and how one prediction is another."""

from __future__ import annotations

import math

from torch import Tensor

from pyro_tilt.diffusion.levels import Level

__all__ = [
    "PREDICTIONS",
    "check_prediction",
    "from_x0",
    "shift_prediction",
    "shifted_state",
    "to_x0",
]

PREDICTIONS = ("x0", "epsilon", "v", "score", "velocity")


def check_prediction(prediction: str) -> None:
    """
    Refuses an unknown type of prediction.

    :param prediction: one of ``PREDICTIONS``.
    :raises ValueError: for another word.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}; got {prediction!r}")


def to_x0(value: Tensor, x: Tensor, level: Level, prediction: str) -> Tensor:
    r"""
    The prediction of the data from a prediction of another type.

    .. math::

        \epsilon = \frac{x - a x_0}{s}, \quad v = a \epsilon - s x_0, \quad
        \nabla \log p = -\frac{\epsilon}{s}, \quad u = \dot a x_0 + \dot s \epsilon

    :param value: the prediction at ``x``.
    :param x: the noisy state.
    :param level: its noise level.
    :param prediction: ``"x0"``, ``"epsilon"``, ``"v"``, ``"score"`` or ``"velocity"``.
    :raises ValueError: for another word, or a velocity on a schedule without a clock.

    >>> import torch
    >>> level = Level(0.6, 0.8, 0.5)
    >>> to_x0(torch.tensor(1.0), torch.tensor(2.0), level, "epsilon")
    tensor(2.)
    """
    check_prediction(prediction)
    a, s = level.a, level.s
    if prediction == "x0":
        return value
    if prediction == "epsilon":
        return (x - s * value) / a
    if prediction == "score":
        return (x + s * s * value) / a
    if prediction == "v":
        return (a * x - s * value) / (a * a + s * s)
    rate, noise_rate = _rates(level)
    return (s * value - noise_rate * x) / (s * rate - a * noise_rate)


def from_x0(x0: Tensor, x: Tensor, level: Level, prediction: str) -> Tensor:
    """
    The inverse of :func:`to_x0`, at a level with noise.

    :param x0: the prediction of the data.
    :param x: the noisy state.
    :param level: its noise level.
    :param prediction: the type wanted.
    :raises ValueError: as :func:`to_x0` does, and at a clean level.

    >>> import torch
    >>> level = Level(0.6, 0.8, 0.5)
    >>> from_x0(torch.tensor(2.0), torch.tensor(2.0), level, "v").round(decimals=4)
    tensor(-1.)
    """
    check_prediction(prediction)
    if prediction == "x0":
        return x0
    a, s = level.a, level.s
    if s == 0.0:
        raise ValueError(f"a {prediction} prediction is not defined at a clean level, s = 0")
    noise = (x - a * x0) / s
    if prediction == "epsilon":
        return noise
    if prediction == "score":
        return -noise / s
    if prediction == "v":
        return a * noise - s * x0
    rate, noise_rate = _rates(level)
    return rate * x0 + noise_rate * noise


def shift_prediction(
    value: Tensor, theta: Tensor, level: Level, prediction: str = "epsilon"
) -> Tensor:
    r"""
    The prediction under a linear tilt, from the model's prediction at the shifted state.

    With :math:`y' = y + \tfrac{s^2}{a}\theta`, which :func:`shifted_state` gives,

    .. math::

        D_q(y) = D_p(y'), \quad \epsilon_q(y) = \epsilon_p(y') - \tfrac s a \theta, \quad
        v_q(y) = v_p(y') - s\theta, \\
        \nabla\log q_t(y) = \nabla\log p_t(y') + \tfrac1a\theta, \quad
        u_q(y) = u_p(y') - \tfrac{\dot s s}{a}\theta.

    The line of the score is Lemma 3.3 of Moitra, Risteski and Rohatgi 2026, arXiv 2602.16570; the
    others are derived here. A network that clips its prediction of the data, or predicts a
    variance as well, does so at the shifted state.

    :param value: the model's prediction at :math:`y'`.
    :param theta: the tilt.
    :param level: the noise level.
    :param prediction: see :func:`to_x0`.

    >>> import torch
    >>> shift_prediction(torch.tensor(1.0), torch.tensor(3.0), Level(0.6, 0.8, 0.5), "epsilon")
    tensor(-3.)
    """
    check_prediction(prediction)
    a, s = level.a, level.s
    if prediction == "x0":
        return value
    factor = {"epsilon": -s / a, "v": -s, "score": 1.0 / a}.get(prediction)
    if factor is None:
        factor = -_rates(level)[1] * s / a
    return value + factor * theta


def shifted_state(x: Tensor, theta: Tensor, level: Level) -> Tensor:
    r"""
    The state :math:`y' = y + \tfrac{s^2}{a}\theta` at which the model is asked.

    :param x: the state y.
    :param theta: the tilt.
    :param level: the noise level.

    >>> import torch
    >>> shifted_state(torch.tensor(1.0), torch.tensor(3.0), Level(0.5, 1.0, 0.5))
    tensor(7.)
    """
    return x + (level.s**2 / level.a) * theta


def _rates(level: Level) -> tuple[float, float]:
    if math.isnan(level.a_rate) or math.isnan(level.s_rate):
        raise ValueError(
            "a velocity needs a schedule whose time runs, such as RectifiedFlow, VP or VE: this "
            "level does not know its rates of change"
        )
    return level.a_rate, level.s_rate
