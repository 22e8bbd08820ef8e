# SPDX-License-Identifier: Apache-2.0
"""What torch keeps for each thread, so that a new thread computes as its maker does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

__all__ = ["TorchMode"]


@dataclass(frozen=True)
class TorchMode:
    """
    Whether and how a thread computes gradients, in which precision, and where.

    Modes that a user has written for torch are not among these.

    :ivar grad: whether gradients are recorded.
    :ivar inference: whether it is in inference mode.
    :ivar autocast: kinds of devices that compute in lower precision, and in which.
    :ivar device: where tensors are made by default.
    :ivar gpu: the present GPU, where one is in use.
    """

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    device: torch.device
    gpu: int | None

    @classmethod
    def current(cls) -> TorchMode:
        """The mode of this thread."""
        kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        return cls(
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            autocast=tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds),
            device=torch.get_default_device(),
            gpu=torch.cuda.current_device() if torch.cuda.is_initialized() else None,
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Computes in this mode."""
        with ExitStack() as stack:
            now = TorchMode.current()
            if self.inference != now.inference:
                stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for kind, _ in now.autocast:
                if kind not in dict(self.autocast):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            for kind, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            if self.gpu is not None:
                stack.enter_context(torch.cuda.device(self.gpu))
            if self.device != now.device:
                stack.enter_context(self.device)
            yield
