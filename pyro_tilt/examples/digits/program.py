# SPDX-License-Identifier: Apache-2.0
"""The diffusion of digits as a Pyro program."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_tilt.diffusion.law import ImplicitLaw
from pyro_tilt.examples.digits.data import IMAGE_SHAPE
from pyro_tilt.examples.digits.model import ReverseStep, predict_noise, reverse_steps
from pyro_tilt.poutine import scan

MAX_ROWS = 1024
SCALAR = torch.Size()
Shape = torch.Size | list[int] | tuple[int, ...]


def digits_program(
    model: nn.Module, *, steps: int = 40, record: str = "last", chunk: int = MAX_ROWS
) -> Tensor:
    r"""
    Draws a handwritten digit by ancestral sampling of a denoising diffusion.

    .. math:: x_T \sim N(0, I), \qquad
        x_t \mid x_{t+1} \sim N\bigl(\mu(x_{t+1}), s_t^2 I\bigr), \quad t = T-1, \dots, 1, \qquad
        x_0 = \mu(x_1)

    with the mean and variance of :class:`~pyro_tilt.examples.digits.model.ReverseStep`. The last
    step of a DDPM adds no noise: given :math:`x_1` the digit is determined.

    With ``record="all"`` every noisy image is a site, ``x_T`` to ``x_1``, each with a density, the
    steps that draw them are a :func:`~pyro_tilt.scan` over the number of steps left, and the digit
    is a deterministic site ``x_0``. With ``record="last"`` the whole chain is one
    site ``x_0`` of an implicit
    :class:`DiffusionSampler`: the same law of the digit, nothing kept of the way there, and no
    density. That is enough for samplers which only need draws of the base and their rewards
    (importance sampling, rejection, LCB).

    Plates go to the left of the image, so a program under a plate of N particles draws N digits.

    :param model: a :class:`~pyro_tilt.examples.digits.model.Denoiser`.
    :param steps: number of ancestral steps T, at most 200.
    :param record: ``"last"`` or ``"all"``.
    :param chunk: the most images that pass through the network at once.
    :returns: the digit, shape ``batch_shape + (1, 8, 8)``, pixels in [-1, 1].
    :raises ValueError: for another ``record``, or ``steps`` out of range.
    """
    if record == "last":
        return pyro.sample("x_0", DiffusionSampler(model, steps, chunk=chunk))
    if record != "all":
        raise ValueError(f'record must be "last" or "all", got {record!r}')
    schedule = reverse_steps(steps)
    zero = _zero_like_weights(model)
    image = pyro.sample("x_T", dist.Normal(zero, zero + 1).expand(IMAGE_SHAPE).to_event(3))

    def move(image: Tensor, left: int) -> Tensor:
        law = reverse_kernel(model, image, schedule[steps - 1 - left], chunk=chunk)
        return pyro.sample(f"x_{left}", law)

    if steps > 1:
        image = scan("digits", move, image, range(steps - 1, 0, -1))
    last = schedule[-1]
    digit = last.mean(image, predict_noise(model, image, last.timestep, chunk))
    return pyro.deterministic("x_0", digit, event_dim=3)


def reverse_kernel(
    model: nn.Module, image: Tensor, step: ReverseStep, *, chunk: int = MAX_ROWS
) -> TorchDistribution:
    """
    The law of the next image of the chain.

    :param model: the denoiser.
    :param image: the current image, shape ``batch_shape + (1, 8, 8)``.
    :param step: any step but the last.
    :param chunk: the most rows of one network call.
    :returns: a Normal of batch shape ``batch_shape`` and event shape ``(1, 8, 8)``.
    """
    mean = step.mean(image, predict_noise(model, image, step.timestep, chunk))
    return dist.Normal(mean, step.std).to_event(3)


class DiffusionSampler(ImplicitLaw):
    """
    The law of a diffusion's final image, given by its sampler alone.

    Chunks of images go through all steps before the next chunk starts, so that memory does not
    grow with the number of steps and the network works at its fastest batch size.

    :param model: a :class:`~pyro_tilt.examples.digits.model.Denoiser`.
    :param steps: number of ancestral steps.
    :param batch_shape: shape of independent copies.
    :param chunk: the most images that pass through the network at once.
    :raises ValueError: where ``steps`` or ``chunk`` is out of range.
    """

    why_no_density = (
        "DiffusionSampler has no density: the noisy images on the way to x_0 were integrated "
        'out by sampling. Run digits_program with record="all" for a site per step with a '
        "density, or use a sampler that proposes from the program itself (ImportanceSampler, "
        "Rejection, LCB)"
    )

    def __init__(
        self,
        model: nn.Module,
        steps: int = 40,
        *,
        batch_shape: Shape = SCALAR,
        chunk: int = MAX_ROWS,
        validate_args: bool | None = None,
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.model = model
        self.schedule = reverse_steps(steps)
        super().__init__(batch_shape, IMAGE_SHAPE, block=chunk, validate_args=validate_args)

    def expand(
        self, batch_shape: Shape, _instance: DiffusionSampler | None = None
    ) -> DiffusionSampler:
        """
        Independent copies of this law.

        :param batch_shape: the new batch shape.
        """
        return DiffusionSampler(
            self.model,
            len(self.schedule),
            batch_shape=torch.Size(batch_shape),
            chunk=self.block,
            validate_args=False,
        )

    def _run(self, rows: int) -> Tensor:
        like = _zero_like_weights(self.model).expand(rows, *IMAGE_SHAPE)
        image = torch.randn_like(like, memory_format=torch.contiguous_format)
        if not rows:
            return image
        for step in self.schedule:
            image = step.mean(image, self.model(image, step.timestep))
            if step.std:
                image = image + step.std * torch.randn_like(image)
        return image


def _zero_like_weights(model: nn.Module) -> Tensor:
    parameter = next(model.parameters(), None)
    return torch.zeros(()) if parameter is None else parameter.new_zeros(())
