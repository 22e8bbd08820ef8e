# SPDX-License-Identifier: Apache-2.0
"""Estimates of what a noisy digit is still going to be worth, for samplers that go step by step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from pyro_tilt.examples.digits.data import IMAGE_SHAPE
from pyro_tilt.examples.digits.model import predict_noise, reverse_steps
from pyro_tilt.examples.digits.program import MAX_ROWS, _zero_like_weights
from pyro_tilt.infer.seeding import seeded
from pyro_tilt.infer.twists import PosteriorMeanTwist, Tempered
from pyro_tilt.infer.twists.twist import Twist
from pyro_tilt.poutine import scan
from pyro_tilt.rewards import Reward, evaluate

Carry = tuple[Tensor, Tensor]
# A value this far below the mean weight of its step no longer matters, and surprises cost less.
_FLOOR = 6.0


def digits_with_estimates(model: nn.Module, *, steps: int = 40, chunk: int = MAX_ROWS) -> Tensor:
    r"""
    The program of :func:`~pyro_tilt.examples.digits.digits_program`, whose carry also holds
    :math:`\hat x_0(x_t)`, the predicted clean image.

    The prediction that a value reads is the one that the next step starts from, so that values of
    the posterior mean cost no row of the network beyond those of the diffusion. What a step costs
    moves from its start to its end: here every proposal passes through the network, there every
    chain does once.

    :param model: a :class:`~pyro_tilt.examples.digits.model.Denoiser`.
    :param steps: number of ancestral steps, at least 2.
    :param chunk: the most images that pass through the network at once.
    :returns: the digit, shape ``batch_shape + (1, 8, 8)``.
    :raises ValueError: where ``steps`` is out of range.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    schedule = reverse_steps(steps)

    def clean(image: Tensor, left: int) -> Tensor:
        at = schedule[steps - left]
        noise = predict_noise(model, image, at.timestep, chunk)
        return ((image - at.noise * noise) / at.signal).clamp(-1.0, 1.0)

    def move(carry: Carry, left: int) -> Carry:
        image, estimate = carry
        step = schedule[steps - 1 - left]
        mean = step.weight_clean * estimate + step.weight_noisy * image
        image = pyro.sample(f"x_{left}", dist.Normal(mean, step.std).to_event(3))
        return image, clean(image, left)

    zero = _zero_like_weights(model)
    image = pyro.sample("x_T", dist.Normal(zero, zero + 1).expand(IMAGE_SHAPE).to_event(3))
    start = image, clean(image, steps)
    # The last step of a DDPM is the prediction itself.
    _, digit = scan("digits", move, start, range(steps - 1, 0, -1))
    return pyro.deterministic("x_0", digit, event_dim=3)


def posterior_mean_value(
    reward: Reward, beta: float, *, steps: int = 40, tempered: bool = True
) -> Twist:
    r"""
    The reward of the predicted clean image, for :func:`digits_with_estimates`.

    .. math:: V_t = \bar\alpha_t\, \beta\, r(\hat x_0(x_t))

    The prediction divides by :math:`\sqrt{\bar\alpha_t}`, 0.03 at the first step, so that early
    on its reward is mostly the network's own error; :math:`\bar\alpha_t` takes that out.

    :param reward: of a digit.
    :param beta: multiplies the reward.
    :param steps: as in the program.
    :param tempered: False leaves :math:`\bar\alpha_t` out.
    """
    value = PosteriorMeanTwist(lambda carry, left: carry[1], reward, beta)
    if not tempered:
        return value
    schedule = reverse_steps(steps)
    return Tempered(value, lambda left: schedule[steps - left].signal ** 2)


class StepNetwork(nn.Module):
    """
    A perceptron over the pixels whose first layer is scaled and shifted by the step.

    :param num_steps: number of steps.
    :param width: of the first hidden layer.
    """

    def __init__(self, num_steps: int, width: int = 128) -> None:
        super().__init__()
        self.scale = nn.Embedding(num_steps, width)
        self.shift = nn.Embedding(num_steps, width)
        self.first = nn.Linear(math.prod(IMAGE_SHAPE), width)
        self.second = nn.Linear(width, width // 2)
        self.last = nn.Linear(width // 2, 1)
        nn.init.ones_(self.scale.weight)
        for parameter in (self.shift.weight, self.last.weight, self.last.bias):
            nn.init.zeros_(parameter)

    def forward(self, pixels: Tensor, place: int) -> Tensor:
        """
        :param pixels: shape (N, 64), of mean 0 and spread 1.
        :param place: position of the step.
        :returns: shape (N,).
        """
        hidden = self.first(pixels) * self.scale.weight[place] + self.shift.weight[place]
        return self.last(functional.silu(self.second(functional.silu(hidden)))).squeeze(-1)


@dataclass
class FitReport:
    """
    How a fit went, on paths that it did not see.

    :ivar log_loss: cross-entropy in nats by step, from the first to the last.
    :ivar constant_log_loss: of the best constant.
    :ivar effective_share: effective sample size of :math:`e^{A - V}` as a share, by step.
    :ivar rows: network rows that the paths took.
    :ivar seconds: wall time.
    """

    log_loss: list[float] = field(default_factory=list)
    constant_log_loss: float = math.nan
    effective_share: list[float] = field(default_factory=list)
    rows: int = 0
    seconds: float = 0.0


class BoundedValue(Twist):
    r"""
    Log soft values of a bounded reward, as a fitted probability.

    Where :math:`r \le r_{\max}`, :math:`y = e^{\beta(r - r_{\max})}` lies in [0, 1] and its mean
    given the state, like a probability, minimises the cross-entropy
    :math:`-y \log p - (1 - y) \log(1 - p)`; the value is :math:`\beta r_{\max} + \log p(x_t)`.
    No single path can cost more than its own log loss, whereas under the LINEX loss a digit that
    turns out right where none was expected costs :math:`e^{A - V}`. What the network says of a
    step counts as far as paths bear it out that did not train it, by one factor per step.

    :param network: of pixels (N, 64) and the position of the step to logits (N,).
    :param images: noisy images by step, shape (T, n, 64), whose mean and spread scale the pixels.
    :param log_mean: log of the mean of y, where the network starts.
    :param top: :math:`\beta r_{\max}`, which no value exceeds.
    """

    def __init__(self, network: nn.Module, images: Tensor, log_mean: float, top: float) -> None:
        super().__init__()
        self.network = network
        self.spread, self.mean = torch.std_mean(images, 1)
        self.top = top
        self.log_mean = log_mean
        self.trust = torch.ones(len(self.mean), dtype=images.dtype, device=images.device)
        self.report = FitReport()

    @property
    def bound(self) -> tuple[float, float]:
        """What no value falls below or exceeds."""
        return self.top + self.log_mean - _FLOOR, self.top

    def logits(self, pixels: Tensor, place: int) -> Tensor:
        """
        Logits of p.

        :param pixels: shape (N, 64).
        :param place: position of the step.
        """
        start = self.log_mean - math.log(-math.expm1(self.log_mean))
        scaled = (pixels - self.mean[place]) / self.spread[place]
        return self.trust[place] * self.network(scaled, place) + start

    def value(self, pixels: Tensor, place: int) -> Tensor:
        """
        The log soft value, bent to stay above its floor.

        :param pixels: shape (N, 64).
        :param place: position of the step.
        """
        low, high = self.bound
        above = functional.logsigmoid(self.logits(pixels, place)) + self.top - low
        return (functional.softplus(above) + low).clamp(max=high)

    def log_psi(self, carry: Any, x: Any) -> Tensor:
        """See :meth:`Twist.log_psi`; the carry is the noisy image, alone or first."""
        image = carry[0] if isinstance(carry, tuple) else carry
        return self.value(image.reshape(len(image), -1), len(self.mean) - x).detach()


@torch.no_grad()
def _paths(model: nn.Module, num_paths: int, steps: int, bar: tqdm) -> tuple[Tensor, Tensor]:
    """Noisy images before every step but the first, (T - 1, n, 64), and the digits."""
    zero = _zero_like_weights(model)
    image = torch.randn((num_paths, *IMAGE_SHAPE), dtype=zero.dtype, device=zero.device)
    seen = []
    for step in reverse_steps(steps):
        image = step.mean(image, predict_noise(model, image, step.timestep))
        if step.std:
            image = image + step.std * torch.randn_like(image)
            seen.append(image.flatten(1))
        bar.update()
    return torch.stack(seen), image


def fit_bounded_value(
    model: nn.Module,
    reward: Reward,
    beta: float,
    *,
    steps: int = 40,
    num_paths: int = 2500,
    updates: int = 400,
    held_out: float = 0.4,
    seed: int = 0,
    progress: bool | None = None,
) -> BoundedValue:
    """
    Runs the diffusion and fits a :class:`BoundedValue` to where it led.

    :param model: the denoiser.
    :param reward: of a digit, bounded above.
    :param beta: multiplies the reward.
    :param steps: as in the program, at least 2.
    :param num_paths: runs of the diffusion.
    :param updates: gradient steps.
    :param held_out: share of the paths that train nothing, half of them to find out how far to
        trust the network at each step and half for the report.
    :param seed: of the paths and the fit.
    :param progress: show a progress bar; None shows one after three seconds.
    :raises ValueError: where the reward has no upper bound.
    """
    top = beta * float(reward.upper_bound)
    if not math.isfinite(top):
        raise ValueError("fit_bounded_value needs a reward with an upper bound; use learn_twists")
    started = time.perf_counter()
    bar = tqdm(
        total=steps + updates,
        desc="fit_bounded_value",
        disable=progress is False,
        delay=0 if progress else 3,
    )
    with seeded(seed), bar:
        images, digits = _paths(model, num_paths, steps, bar)
        with torch.no_grad():
            targets = (beta * evaluate(reward, digits, name="reward") - top).exp()
        kept = max(1, round((1.0 - held_out) * num_paths))
        log_mean = min(float(targets[:kept].mean().clamp(min=1e-12).log()), -1e-6)
        network = StepNetwork(steps - 1).to(images)
        value = BoundedValue(network, images[:, :kept], log_mean, top)
        _descend(value, images[:, :kept], targets[:kept], updates, bar)
    network.requires_grad_(False)
    middle = (kept + num_paths) // 2
    _temper(value, images[:, kept:middle], targets[kept:middle])
    value.report = _judge(value, images[:, middle:], targets[middle:])
    value.report.rows, value.report.seconds = num_paths * steps, time.perf_counter() - started
    return value


def _descend(value: BoundedValue, images: Tensor, targets: Tensor, updates: int, bar: tqdm) -> None:
    parameters = list(value.network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * (1.0 + math.cos(math.pi * update / updates))
        optimizer.zero_grad(set_to_none=True)
        places = torch.randperm(len(images))[:8].tolist()
        for place in places:
            rows = torch.randint(len(targets), (64,), device=targets.device)
            logits = value.logits(images[place, rows], place)
            loss = functional.binary_cross_entropy_with_logits(logits, targets[rows])
            (loss / len(places)).backward()
        optimizer.step()
        bar.update()


@torch.no_grad()
def _temper(value: BoundedValue, images: Tensor, targets: Tensor) -> None:
    """Sets the trust of each step to the best of a grid from 0 to 1 by the cross-entropy."""
    if not len(targets):
        return
    grid = torch.linspace(0.0, 1.0, 21).to(targets)
    for place, pixels in enumerate(images):
        value.trust[place] = 0.0
        start = value.logits(pixels, place)
        value.trust[place] = 1.0
        change = value.logits(pixels, place) - start
        losses = torch.stack(
            [
                functional.binary_cross_entropy_with_logits(start + share * change, targets)
                for share in grid
            ]
        )
        value.trust[place] = grid[losses.argmin()]


@torch.no_grad()
def _judge(value: BoundedValue, images: Tensor, targets: Tensor) -> FitReport:
    report = FitReport()
    if not len(targets):
        return report
    constant = torch.full_like(targets, math.exp(value.log_mean))
    report.constant_log_loss = float(functional.binary_cross_entropy(constant, targets))
    for place, pixels in enumerate(images):
        logits = value.logits(pixels, place)
        report.log_loss.append(float(functional.binary_cross_entropy_with_logits(logits, targets)))
        ratio = targets.double() * (value.top - value.value(pixels, place).double()).exp()
        share = ratio.sum().square() / ratio.square().sum() / len(ratio)
        report.effective_share.append(float(share))
    return report
