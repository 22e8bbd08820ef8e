# SPDX-License-Identifier: Apache-2.0
"""Models of the diffusers library."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.diffusion.levels import Level
from pyro_tilt.diffusion.network import NetworkDiffusion
from pyro_tilt.diffusion.schedules import TableSchedule

__all__ = ["from_diffusers"]

_TYPES = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


def from_diffusers(
    unet: nn.Module,
    scheduler: Any,
    *,
    steps: int | None = None,
    event_shape: Sequence[int] | None = None,
    call: Callable[[Tensor, Tensor], Any] | None = None,
    chunk: int = 1024,
) -> NetworkDiffusion:
    r"""
    A diffusers network with the noise levels, times and prediction type of its scheduler.

    Schedulers that keep ``alphas_cumprod`` (DDPM, DDIM, DPM-Solver and others) give
    :math:`a = \sqrt{\bar\alpha_t}`; flow matching ones give a = 1 - sigma. The scheduler's own
    ``step`` is not used. ``clip_sample`` is kept; under a tilt the clipped prediction is that at
    the shifted state. Of a network that predicts a variance as well, the mean is used.

    What is tilted is what the network runs on: for a latent diffusion, its latents. See
    :doc:`/diffusion` for a pipeline with a prompt and a decoder.

    :param unet: the network, called as ``unet(x, time)``.
    :param scheduler: its scheduler, which is not changed.
    :param steps: number of sampling steps; by default those set on the scheduler, or all of its
        training steps.
    :param event_shape: the shape of one state; by default from the network's configuration.
    :param call: a function of states and times in place of the network, such as one that adds the
        embedding of a prompt; ``unet`` still counts its rows.
    :param chunk: the most rows of one call.
    :raises ImportError: where diffusers is not installed.
    :raises TypeError: for a scheduler without levels, or one whose predictions are unknown.
    :raises ValueError: for a scheduler with no signal at its first time, and where the event shape
        cannot be read off.

    >>> import warnings; warnings.simplefilter("ignore")
    >>> from pyro_tilt.examples.digits.model import load_denoiser, make_scheduler
    >>> base = from_diffusers(load_denoiser().unet, make_scheduler(), steps=10)
    >>> base.event_shape, base.schedule.steps, base.prediction
    (torch.Size([1, 8, 8]), 10, 'epsilon')
    """
    _require_diffusers()
    config = getattr(scheduler, "config", None)
    if config is None:
        raise TypeError(
            "scheduler must be a diffusers scheduler, such as pipe.scheduler; got "
            f"{type(scheduler).__module__}.{type(scheduler).__name__}"
        )
    if getattr(config, "thresholding", False):
        raise ValueError("dynamic thresholding is no fixed prediction; switch thresholding off")
    flow = not hasattr(scheduler, "alphas_cumprod")
    table = _flow_table(scheduler) if flow else _alpha_table(scheduler)
    kind = "velocity" if flow else _TYPES.get(getattr(config, "prediction_type", "epsilon"))
    if kind is None:
        raise TypeError(
            f"{type(scheduler).__name__} has prediction_type={config.prediction_type!r}; known are "
            f"{', '.join(_TYPES)}"
        )
    clip = None
    if not flow and getattr(config, "clip_sample", False):
        clip = float(getattr(config, "clip_sample_range", 1.0) or 1.0)
    return _DiffusersDiffusion(
        unet,
        TableSchedule(table, _times(scheduler, steps, table, flow)),
        _event_shape(unet) if event_shape is None else event_shape,
        prediction=kind,
        clip=clip,
        chunk=chunk,
        call=call,
    )


class _DiffusersDiffusion(NetworkDiffusion):
    def __init__(
        self,
        *args: Any,
        call: Callable[[Tensor, Tensor], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.call = call

    def _call(self, rows: Tensor, time: Tensor) -> Tensor:
        made = (self.call or self.net)(rows, time)
        value = made if isinstance(made, Tensor) else made[0]
        if value.shape[1] == 2 * rows.shape[1]:
            value = value[:, : rows.shape[1]]
        return value


def _alpha_table(scheduler: Any) -> list[Level]:
    kept = scheduler.alphas_cumprod.double()
    if bool((kept <= 0.0).any()):
        raise ValueError(
            f"{type(scheduler).__name__} has a = 0 at time {int((kept <= 0.0).nonzero()[0])}: with "
            "rescale_betas_zero_snr no signal is left there, so that neither the prediction of "
            "the data nor its tilt is defined. Make the scheduler without it"
        )
    roots, noise = kept.sqrt().tolist(), (1.0 - kept).sqrt().tolist()
    return [Level(a, s, float(t)) for t, (a, s) in enumerate(zip(roots, noise))]


def _flow_table(scheduler: Any) -> list[Level]:
    if not hasattr(scheduler, "sigmas") or "FlowMatch" not in type(scheduler).__name__:
        raise TypeError(
            f"{type(scheduler).__name__} has neither alphas_cumprod nor the sigmas of a flow "
            "matching scheduler; wrap the network by NetworkDiffusion with a schedule of yours"
        )
    # The time that the network is told is a multiple of sigma.
    scale = float(scheduler.timesteps.max() / scheduler.sigmas.max())
    sigmas = [s for s in scheduler.sigmas.double().tolist() if s > 0.0]
    low, high = min(sigmas), min(max(sigmas), 1.0 - 1e-3)
    grid = torch.linspace(low, high, 1001, dtype=torch.float64).tolist()
    return [Level(1.0 - s, s, scale * s, -1.0, 1.0) for s in grid]


def _times(scheduler: Any, steps: int | None, table: list[Level], flow: bool) -> list[float]:
    chosen = scheduler
    if steps is not None:
        # A copy, not from_config: positional arguments are missing in a scheduler's configuration.
        chosen = copy.deepcopy(scheduler)
        chosen.set_timesteps(steps)
    times = [float(t) for t in chosen.timesteps]
    if flow:
        # A flow that would start without signal starts at the highest level that has some.
        last = max(level.time for level in table)
        times = [min(time, last) for time in times]
    return sorted(dict.fromkeys(times), reverse=True)


def _event_shape(unet: nn.Module) -> tuple[int, ...]:
    config: Any = getattr(unet, "config", None)
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    if size is None or channels is None:
        raise ValueError(
            "the network's configuration has no sample_size and in_channels; give event_shape="
        )
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return (int(channels), *(int(side) for side in sides))


def _require_diffusers() -> None:
    import importlib.util

    if importlib.util.find_spec("diffusers") is None:
        raise ImportError("from_diffusers needs diffusers: run `pip install pyro-tilt[demo]`")
