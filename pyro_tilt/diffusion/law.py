# SPDX-License-Identifier: Apache-2.0
"""Laws that are given by their sampler alone, such as that of a diffusion's last state."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

if TYPE_CHECKING:
    from pyro_tilt.diffusion.model import Diffusion

__all__ = ["DiffusionLaw", "ImplicitLaw"]

Shape = torch.Size | list[int] | tuple[int, ...]
_SCALAR = torch.Size()
# Numbers of one state tensor; rows of a block follow from the size of an event.
_BLOCK = 2**21


class ImplicitLaw(TorchDistribution):
    """
    A distribution over real arrays that can be drawn from and has no density.

    :param batch_shape: shape of independent copies.
    :param event_shape: of a draw.
    :param block: most draws to run at once, above 0.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False
    why_no_density: ClassVar[str]

    def __init__(
        self,
        batch_shape: Shape,
        event_shape: Shape,
        *,
        block: int,
        validate_args: bool | None = None,
    ) -> None:
        self.block = block
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args)

    @abstractmethod
    def _run(self, rows: int) -> Tensor:
        """So many fresh draws."""

    @property
    def support(self) -> constraints.Constraint:
        """Real arrays."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = _SCALAR) -> Tensor:
        """
        Runs the sampler from fresh noise.

        :param sample_shape: shape of draws, to the left of the batch shape.
        """
        shape = self.shape(sample_shape)
        rows = shape[: len(shape) - len(self.event_shape)].numel()
        sizes = [min(self.block, rows - first) for first in range(0, rows, self.block)]
        return torch.cat([self._run(size) for size in sizes or [0]]).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """
        Not available.

        :param value: a draw.
        :raises NotImplementedError: always, naming the way out.
        """
        raise NotImplementedError(self.why_no_density)


class DiffusionLaw(ImplicitLaw):
    """
    What a sampler of a diffusion model returns, as a distribution without a density.

    :param model: a :class:`Diffusion`.
    :param sampler: see :func:`sampler_step`.
    :param eta: see :func:`sampler_step`.
    :param batch_shape: shape of independent copies.
    """

    why_no_density = (
        "the law of a diffusion's last state has no density here: the states on the way were "
        'integrated out by sampling. Use program(record="all") for a site per step, or a '
        "sampler that only draws from the program (ImportanceSampler, Rejection, LCB)"
    )

    def __init__(
        self,
        model: Diffusion,
        sampler: str = "ancestral",
        eta: float = 1.0,
        *,
        batch_shape: Shape = _SCALAR,
        validate_args: bool | None = None,
    ) -> None:
        self.model, self.sampler, self.eta = model, sampler, eta
        block = max(1, _BLOCK // max(1, model.event_shape.numel()))
        super().__init__(batch_shape, model.event_shape, block=block, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: DiffusionLaw | None = None) -> DiffusionLaw:
        """
        Independent copies of this law.

        :param batch_shape: the new batch shape.
        """
        return DiffusionLaw(
            self.model, self.sampler, self.eta, batch_shape=batch_shape, validate_args=False
        )

    def _run(self, rows: int) -> Tensor:
        x = self.model.start((rows,))
        if not rows:
            return x
        levels = self.model.schedule.levels
        for now, then in zip(levels, levels[1:]):
            x, std = self.model.step(x, now, then, sampler=self.sampler, eta=self.eta)
            if std:
                x = torch.normal(x, x.new_tensor(std).expand(x.shape))
        return x
