# SPDX-License-Identifier: Apache-2.0
"""A guide that walks beside the program, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_tilt.ops.reindex import reindex
from pyro_tilt.poutine.particle_plate import ParticlePlate
from pyro_tilt.poutine.weight_messenger import WeightMessenger


class _ScanReached(Exception):
    """Stops the guide where its steps begin."""


class GuidePass:
    """
    Runs a guide and its scan of the same name in the pass of the program.

    What the guide samples before its scan is proposed to the program before the first step; then
    its step runs before each step of the program, with a carry of its own that moves with the
    particles.

    :param guide: a Pyro program of the same latent sites; sites it leaves out are the program's.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :param plate: the particle plate of the program.
    """

    def __init__(
        self,
        guide: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        plate: ParticlePlate,
    ) -> None:
        self.guide, self.args, self.kwargs = guide, args, kwargs
        self.plate = plate
        self._name: str | None = None
        self._step: Callable[[Any, Any], Any] | None = None
        self._carry: Any = None
        self._active = False

    def begin(self) -> WeightMessenger:
        """Runs the guide up to its scan; the messenger holds values and their log density."""
        proposed = self._messenger()
        try:
            with BlockMessenger(), proposed, _Expand(self.plate), _StopAtScan() as reached:
                self.guide(*self.args, **self.kwargs)
        except _ScanReached:
            self._name, self._step, self._carry = reached.found
        return proposed

    def enter(self, name: str) -> None:
        """The program starts its scan ``name``."""
        self._active = name == self._name
        if self._name is not None and not self._active and self._step is not None:
            raise ValueError(
                f"guide: its scan is named '{self._name}', that of the program '{name}'"
            )

    def step(self, x: Any) -> WeightMessenger | None:
        """Runs one step; None where the guide has none."""
        if not self._active or self._step is None:
            return None
        proposed = self._messenger()
        with BlockMessenger(), proposed, _Expand(self.plate):
            self._carry = self._step(self._carry, x)
        return proposed

    def move(self, index: Tensor) -> None:
        """Follows a resampling."""
        if self._active:
            self._carry = reindex(self._carry, index, size=self.plate.size, path="guide's carry")

    @property
    def state(self) -> tuple[bool, Any]:
        """What the guide is between two steps: whether it steps along, and its carry."""
        return self._active, self._carry

    @state.setter
    def state(self, state: tuple[bool, Any]) -> None:
        self._active, self._carry = state

    def _messenger(self) -> WeightMessenger:
        return WeightMessenger(self.plate.size, self.plate.dim, score_latents=True)


class _StopAtScan(Messenger):
    """Notes the first scan that it meets and stops the program there."""

    found: tuple[str, Any, Any]

    def _pyro_tilt_scan(self, msg: Any) -> None:
        step, carry, _ = msg["args"]
        self.found = msg["name"], step, carry
        raise _ScanReached


class _Expand(Messenger):
    """Does to sites what a particle plate that is already entered does."""

    def __init__(self, plate: ParticlePlate) -> None:
        super().__init__()
        self.plate = plate

    def _process_message(self, msg: Any) -> None:
        self.plate._process_message(msg)
