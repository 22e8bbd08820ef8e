# SPDX-License-Identifier: Apache-2.0
"""What a tilt of a diffusion asks of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

__all__ = ["DiffusionModel", "NoiseLevel", "NoiseSchedule"]

S = TypeVar("S", bound="NoiseSchedule")


class NoiseLevel(Protocol):
    r"""A level of :math:`x_t = a x_0 + s \epsilon`."""

    @property
    def a(self) -> float:
        """The signal, positive."""

    @property
    def s(self) -> float:
        """The noise."""

    @property
    def ratio(self) -> float:
        """:math:`s / a`."""


class NoiseSchedule(Protocol):
    """The levels of a sampler, from noise to clean data."""

    @property
    def levels(self) -> Sequence[Any]:
        """Noise levels with decreasing ratio, the last of them clean."""

    def starting_at(self: S, ratio: float, steps: int | None = None) -> S:
        """The same schedule from another first level down."""


@runtime_checkable
class DiffusionModel(Protocol):
    """
    A law of data known through predictions of it from noisy states.

    :class:`pyro_tilt.diffusion.Diffusion` has all of this; any object that has it can be tilted.
    A model may also have ``log_normalizer(theta)``, the exact log normaliser of its linear tilts,
    and ``log_density(x, level)``.

    :ivar schedule: the levels.
    :ivar event_shape: the shape of one draw.
    :ivar dtype: of its states.
    :ivar device: of its states.
    :ivar exact: whether ``denoise`` is the posterior mean exactly, at any level.
    """

    schedule: Any
    event_shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    exact: bool

    def denoise(self, x: Tensor, level: Any) -> Tensor:
        """The prediction of the data from states of shape batch + event shape."""

    def step(
        self,
        x: Tensor,
        now: Any,
        then: Any,
        *,
        sampler: str = "ancestral",
        eta: float = 1.0,
        denoise: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> tuple[Tensor, float]:
        """Mean and standard deviation of the next state; ``denoise`` replaces the model's own."""

    def evaluations(self, sampler: str, steps: int) -> int:
        """How often a run calls the denoiser for each draw."""

    def program(self, sampler: str = "ancestral", *, eta: float = 1.0) -> Callable[[], Tensor]:
        """The sampler as a Pyro program."""
