# SPDX-License-Identifier: Apache-2.0
"""A diffusion whose predictions come from a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.diffusion.levels import Level
from pyro_tilt.diffusion.model import Diffusion
from pyro_tilt.diffusion.predictions import check_prediction, to_x0
from pyro_tilt.diffusion.schedules import Schedule

__all__ = ["NetworkDiffusion"]


class NetworkDiffusion(Diffusion):
    r"""
    A network ``net(x, time)`` as a diffusion model.

    A module counts its rows from then on (see :func:`pyro_tilt.infer.counted`).

    :param net: a module or function of states ``(n,)`` + event shape and times ``(n,)``.
    :param schedule: the noise levels; the network is told their ``time``.
    :param event_shape: the shape of one draw.
    :param prediction: what the network predicts: ``"x0"``, ``"epsilon"``, ``"v"``, ``"score"`` or
        ``"velocity"``, the derivative by the schedule's time.
    :param clip: the prediction of the data is clipped to [-clip, clip], as where it was trained.
    :param chunk: the most rows of one call.
    :param dtype: of the states; by default that of the network's parameters.
    :param device: of the states; by default that of the network's parameters.
    :raises ValueError: for an unknown prediction, or one whose shape is not that of the states.

    >>> from pyro_tilt.diffusion import RectifiedFlow
    >>> shrink = NetworkDiffusion(lambda x, t: -x, RectifiedFlow(10), (2,), prediction="velocity")
    >>> level = shrink.schedule.levels[5]
    >>> shrink.denoise(torch.ones(3, 2), level).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        net: nn.Module | Callable[[Tensor, Tensor], Tensor],
        schedule: Schedule,
        event_shape: Sequence[int],
        *,
        prediction: str = "epsilon",
        clip: float | None = None,
        chunk: int = 1024,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_prediction(prediction)
        if clip is not None and not clip > 0.0:
            raise ValueError(f"clip must be positive, got {clip}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        parameter = None
        if isinstance(net, nn.Module):
            # The count of rows belongs to the samplers, which lie beside this package.
            from pyro_tilt.infer.cost import counted

            net = counted(net)
            parameter = next(net.parameters(), None)
        like = torch.empty(0) if parameter is None else parameter
        self.net, self.schedule, self.prediction = net, schedule, prediction
        self.event_shape = torch.Size(event_shape)
        self.clip, self.chunk = clip, chunk
        self.dtype = like.dtype if dtype is None else dtype
        self.device = like.device if device is None else torch.device(device)

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        if x.shape[x.dim() - len(self.event_shape) :] != self.event_shape:
            raise ValueError(
                f"states must end in the event shape {tuple(self.event_shape)}, "
                f"got {tuple(x.shape)}"
            )
        rows = x.reshape(-1, *self.event_shape)
        parts = [self._predict(part, level) for part in rows.split(self.chunk)]
        value = torch.cat(parts).reshape(x.shape) if len(parts) > 1 else parts[0].reshape(x.shape)
        clean = to_x0(value, x, level, self.prediction)
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip)

    def _predict(self, rows: Tensor, level: Level) -> Tensor:
        value: Any = self._call(rows, rows.new_full((len(rows),), level.time))
        if value.shape != rows.shape:
            raise ValueError(
                f"the network must return one prediction per state, shape {tuple(rows.shape)}; "
                f"got {tuple(value.shape)}"
            )
        return value

    def _call(self, rows: Tensor, time: Tensor) -> Tensor:
        return self.net(rows, time)
