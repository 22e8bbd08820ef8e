# SPDX-License-Identifier: Apache-2.0
"""The denoising network, its noise schedule, and the shipped weights."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.examples.extras import require
from pyro_tilt.infer.cost import counted

NUM_TRAIN_STEPS = 200
WEIGHTS = Path(__file__).parent / "weights"


def make_unet() -> nn.Module:
    """
    The untrained network of 177 thousand parameters.

    :returns: a diffusers ``UNet2DModel`` for 8x8 images of one channel.
    :raises ImportError: where diffusers is not installed.
    """
    return require("diffusers").UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
    )


class Denoiser(nn.Module):
    """
    Predicts the noise in an image, with plain tensors in and out.

    :param unet: a network as made by :func:`make_unet`.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, image: Tensor, timestep: Tensor | int) -> Tensor:
        """
        :param image: shape ``(n, 1, 8, 8)``.
        :param timestep: training time, one for all or shape ``(n,)``.
        :returns: the predicted noise, shape ``(n, 1, 8, 8)``.
        """
        return self.unet(image, timestep, return_dict=False)[0]


@dataclass(frozen=True)
class ReverseStep:
    r"""
    The numbers of one ancestral step.

    .. math:: \hat x_0 = \mathrm{clip}\bigl((x - \sigma_t \hat\epsilon) / \sqrt{\bar\alpha_t}\bigr),
        \qquad x' \sim N(c_0 \hat x_0 + c_x x, \; s^2)

    :param timestep: training time at which the network is asked.
    :param signal: :math:`\sqrt{\bar\alpha_t}`.
    :param noise: :math:`\sigma_t = \sqrt{1 - \bar\alpha_t}`.
    :param weight_clean: :math:`c_0`.
    :param weight_noisy: :math:`c_x`.
    :param std: :math:`s`, 0 in the last step, which is deterministic.
    """

    timestep: int
    signal: float
    noise: float
    weight_clean: float
    weight_noisy: float
    std: float

    def mean(self, image: Tensor, predicted_noise: Tensor) -> Tensor:
        """
        The mean of the next image, the predicted clean image being clipped to [-1, 1].

        :param image: the current noisy image.
        :param predicted_noise: the network's output for it, same shape.
        """
        clean = ((image - self.noise * predicted_noise) / self.signal).clamp(-1.0, 1.0)
        return self.weight_clean * clean + self.weight_noisy * image


def make_scheduler() -> Any:
    """
    The diffusers scheduler that defines the noise levels.

    :returns: a ``DDPMScheduler`` with 200 squared-cosine steps that clips its predictions.
    :raises ImportError: where diffusers is not installed.
    """
    return require("diffusers").DDPMScheduler(
        NUM_TRAIN_STEPS, beta_schedule="squaredcos_cap_v2", clip_sample=True
    )


@cache
def reverse_steps(steps: int = 40) -> tuple[ReverseStep, ...]:
    r"""
    The ancestral steps of a respaced DDPM, from noise to image.

    With :math:`\bar\alpha, \bar\alpha'` the cumulative signal levels before and after the step,
    and :math:`\alpha = \bar\alpha / \bar\alpha'`,

    .. math:: c_0 = \frac{\sqrt{\bar\alpha'}(1 - \alpha)}{1 - \bar\alpha}, \quad
        c_x = \frac{\sqrt{\alpha}(1 - \bar\alpha')}{1 - \bar\alpha}, \quad
        s^2 = \frac{(1 - \bar\alpha')(1 - \alpha)}{1 - \bar\alpha}.

    Ho, Jain, Abbeel (2020), arXiv:2006.11239; respacing as in Nichol and Dhariwal (2021),
    arXiv:2102.09672.

    :param steps: number of steps, at most 200.
    :returns: one :class:`ReverseStep` per step.
    :raises ValueError: where ``steps`` is not between 1 and 200.
    """
    if not 1 <= steps <= NUM_TRAIN_STEPS:
        raise ValueError(f"steps must lie between 1 and {NUM_TRAIN_STEPS}, got {steps}")
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    levels = scheduler.alphas_cumprod.double()
    times = [int(t) for t in scheduler.timesteps]
    result = []
    for t in times:
        earlier = t - NUM_TRAIN_STEPS // steps
        now = float(levels[t])
        then = float(levels[earlier]) if earlier >= 0 else 1.0
        alpha = now / then
        result.append(
            ReverseStep(
                timestep=t,
                signal=now**0.5,
                noise=(1 - now) ** 0.5,
                weight_clean=then**0.5 * (1 - alpha) / (1 - now),
                weight_noisy=alpha**0.5 * (1 - then) / (1 - now),
                std=((1 - then) * (1 - alpha) / (1 - now)) ** 0.5,
            )
        )
    return tuple(result)


def save_weights(path: Path, module: nn.Module, facts: dict[str, Any]) -> None:
    """
    Writes weights as safetensors, with facts about the training in the header.

    :param path: the file.
    :param module: whose state is written.
    :param facts: what JSON can hold.
    """
    state = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
    header = {"facts": json.dumps(facts, sort_keys=True)}
    require("safetensors.torch").save_file(state, str(path), metadata=header)


def load_facts(path: Path) -> dict[str, Any]:
    """
    The facts in the header of a weights file.

    :param path: a file written by :func:`save_weights`.
    :raises ImportError: where safetensors is not installed.
    """
    with require("safetensors").safe_open(str(path), framework="pt") as file:
        return json.loads(file.metadata()["facts"])


def load_weights(path: Path, module: nn.Module) -> nn.Module:
    """
    Fills a module with shipped weights, frozen and in evaluation mode.

    :param path: a file written by :func:`save_weights`.
    :param module: a module of the same shape.
    :returns: the module.
    :raises FileNotFoundError: where the weights are missing, saying how to make them.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"no weights at {path}: run `python -m pyro_tilt.examples.digits.train`"
        )
    module.load_state_dict(require("safetensors.torch").load_file(str(path)))
    return module.eval().requires_grad_(False)


def load_denoiser(path: Path = WEIGHTS / "unet.safetensors") -> Denoiser:
    """
    The trained denoising network, whose rows samplers count.

    :param path: its weights.
    :returns: a frozen :class:`Denoiser` on the CPU; move it with ``.to(device)``.
    """
    return counted(Denoiser(load_weights(path, make_unet())))


def count_parameters(module: nn.Module) -> int:
    """
    The number of weights of a module.

    :param module: any module.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in module.parameters())


def predict_noise(model: nn.Module, image: Tensor, timestep: int, chunk: int = 1024) -> Tensor:
    """
    The denoiser over any batch shape, at most ``chunk`` rows at a time.

    Small convolutions run fastest at a few hundred rows; at 4,096 the throughput on a
    processor halves.

    :param model: a :class:`Denoiser`, or any module with its signature.
    :param image: shape ``batch_shape + (1, 8, 8)``.
    :param timestep: training time.
    :param chunk: the most rows of one network call.
    :returns: the predicted noise, shaped as ``image``.
    """
    rows = image.reshape(-1, *image.shape[-3:])
    parts = [model(part, timestep) for part in rows.split(chunk)]
    return torch.cat(parts).reshape(image.shape)
