# SPDX-License-Identifier: Apache-2.0
"""Cuts a program into pieces, runs every piece several times and keeps one run of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.ops.importance import as_double, log_mean_exp
from pyro_tilt.ops.reindex import reindex
from pyro_tilt.poutine.scan import plain_scan
from pyro_tilt.poutine.tilt_factor import conform
from pyro_tilt.poutine.weight_messenger import WeightMessenger
from pyro_tilt.rewards import log_tilt

Choose = Callable[[Tensor], Tensor]
"""Maps log weights (N, m) to the column kept in each row, (N,)."""
Value = Callable[[Any, Any], Tensor]


class SelectionMessenger(WeightMessenger):
    r"""
    Runs a program over N groups of m rows. To be entered outside a ``ParticlePlate``.

    The rows of a group share the past: at the end of a piece one of them is chosen, and all m go
    on from it. The first piece holds what comes before the scan and its first ``block`` steps, the
    last one its last steps and all that follows. A piece is weighed by its own factors and the
    value of the carry, the last one by its own factors alone, rewards included.

    :param size: number of rows, a multiple of ``width``.
    :param dim: their batch dimension.
    :param width: the number m of rows in a group.
    :param block: steps in a piece.
    :param choose: maps log weights (N, m) to columns.
    :param value: log value of a carry and the element of ``xs`` of its step, in place of the
        program's own twists.
    :ivar log_evidence: of each group, the sum of log mean weights over the values that entered
        before, (N,); -inf once all rows of a piece had weight zero.
    :ivar value_calls: rows that a value was evaluated at.
    """

    def __init__(
        self, size: int, dim: int, width: int, block: int, choose: Choose, value: Value | None
    ) -> None:
        super().__init__(size, dim)
        self.width = width
        self.block = block
        self.choose = choose
        self.value = value
        self.value_calls = 0
        self.reward: Tensor | None = None
        self.tilted: Tensor | None = None
        self.betas: set[float] = set()
        self.log_evidence: Tensor | None = None
        self._entered: Tensor | None = None
        self._psi: Tensor | None = None
        self._fresh: Tensor | None = None
        self._scan: str | None = None
        self._inside = False
        self._outer: set[str] = set()
        self._dropped: set[str] = set()
        self._twists: set[str] = set()

    def finish(self) -> Tensor:
        """Chooses in the last piece; the rows kept, (N,)."""
        return self._select(None, "after the last step")

    def survivors(self, keep: Tensor) -> dict[str, Tensor]:
        """Values outside steps and of the last step, of the rows in ``keep``."""
        return {name: self._moved(value, keep) for name, value in self.values.items()}

    def _pyro_tilt_scan(self, msg: Any) -> None:
        step, carry, xs = msg["args"]
        name = msg["name"]
        msg["done"] = msg["stop"] = True
        if self._inside:
            # An inner loop is part of the step that it stands in.
            msg["value"] = plain_scan(step, carry, xs)
            return
        if self._scan is not None:
            raise ValueError(
                f"scan '{name}' follows scan '{self._scan}'; selection per step takes one scan: "
                "join the two into one whose xs names the phase"
            )
        inner = [frame for frame in msg["cond_indep_stack"] if frame.name != "particles"]
        if inner:
            raise ValueError(
                f"scan '{name}' stands inside plate '{inner[-1].name}'; particles are chosen "
                "whole, so put the plate inside the step"
            )
        self._scan = name
        self._outer = set(self.values)
        self._psi, self._fresh = self._fresh, None
        items = list(xs)
        for k, x in enumerate(items):
            carry = self._step(step, carry, x, k, last=k + 1 == len(items))
        msg["value"] = carry

    def _step(self, step: Callable, carry: Any, x: Any, k: int, *, last: bool) -> Any:
        where = f"scan '{self._scan}', step {k}"
        for name in [name for name in self.values if name not in self._outer]:
            del self.values[name]
            self._dropped.add(name)
        self._inside = True
        try:
            carry = step(carry, x)
            if self._fresh is not None:
                self._psi, self._fresh = self._fresh, None
            if last or (k + 1) % self.block:
                return carry
            keep = self._select(self._value(carry, x, where), where)
            index = keep.repeat_interleave(self.width)
            self._move(index)
            return reindex(carry, index, size=self.size, path="carry")
        except Exception as error:
            error.add_note(f"raised in {where}")
            raise
        finally:
            self._inside = False

    def _pyro_tilt_twist(self, msg: Any) -> None:
        name = msg["name"]
        msg["done"] = msg["stop"] = True
        if name in self._twists:
            raise ValueError(f"two statements are named twist '{name}'; give each its own name")
        self._twists.add(name)
        if self.value is not None or msg["mask"] is False:
            return
        (log_psi,) = msg["args"]
        if callable(log_psi):
            log_psi = log_psi()
        self.value_calls += self.size
        log_psi = conform(log_psi, msg["cond_indep_stack"], name=name)
        log_psi = as_double(self._per_particle(name, log_psi))
        self._fresh = log_psi if self._fresh is None else self._fresh + log_psi

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._dropped:
            raise RuntimeError(f"multiple sample sites named '{msg['name']}'")
        super()._pyro_post_sample(msg)

    def _value(self, carry: Any, x: Any, where: str) -> Tensor:
        value = self._psi
        if self.value is not None:
            self.value_calls += self.size
            value = self.value(carry, x)
            if not isinstance(value, Tensor):
                raise TypeError(f"{where}: the value is a {type(value).__name__}, not a tensor")
            if tuple(value.shape[:1]) != (self.size,) or value.numel() != self.size:
                raise ValueError(
                    f"{where}: the value has shape {tuple(value.shape)}, expected ({self.size},), "
                    "one number per particle"
                )
            value = as_double(value.detach().reshape(self.size))
        if value is None:
            raise ValueError(
                f"{where}: there is no value to choose by; pass value=, a function of the carry "
                "and the element of xs, or state a twist in the step"
            )
        value = value.expand(self.size)
        if not float(value.amax()) < math.inf:
            raise ValueError(f"{where}: the value is NaN or +inf; it must be a number or -inf")
        return value

    def _select(self, value: Tensor | None, where: str) -> Tensor:
        """Chooses a row of each group, and adds the mean weight of the piece to its evidence."""
        weights = self._take()
        if value is not None:
            weights = value if weights is None else weights + value
        if weights is None:
            weights = torch.zeros(self.size, dtype=torch.float64, device=self._device())
        if not float(weights.amax()) < math.inf:
            raise ValueError(f"{where}: the log weights hold NaN or +inf")
        groups = weights.reshape(-1, self.width)
        column = self.choose(groups)
        keep = torch.arange(len(groups), device=column.device) * self.width + column
        mean = log_mean_exp(groups)
        entered = self._entered
        mean = mean if entered is None else mean - entered[:: self.width]
        past = self.log_evidence
        self.log_evidence = mean if past is None else past + mean
        # A group that is lost goes on, with an evidence of zero whatever comes.
        self._entered = None if value is None else value.masked_fill(value == -math.inf, 0.0)
        return keep

    def _take(self) -> Tensor | None:
        """Log weight of the rows, (size,), gathered since the last choice."""
        total, self._total = self._total, None
        for _, reward, beta in self.tilts:
            tilt = as_double(log_tilt(reward, beta))
            self.betas.add(float(beta))
            self.reward = reward if self.reward is None else self.reward + reward
            self.tilted = tilt if self.tilted is None else self.tilted + tilt
            total = tilt if total is None else total + tilt
        self.tilts.clear()
        return None if total is None else total.expand(self.size)

    def _move(self, index: Tensor) -> None:
        for name in self._outer:
            self.values[name] = self._moved(self.values[name], index)
        for name in ("_entered", "_psi", "reward", "tilted"):
            kept = getattr(self, name)
            if kept is not None:
                setattr(self, name, self._moved(kept.expand(self.size), index))

    def _moved(self, value: Tensor, index: Tensor) -> Tensor:
        if value.dim() == 0 or value.shape[0] != self.size:
            # What a deterministic site records may be shared by all rows.
            return value
        return value.index_select(0, index.to(value.device))

    def _device(self) -> torch.device:
        return next(iter(self.values.values()), torch.empty(0)).device
