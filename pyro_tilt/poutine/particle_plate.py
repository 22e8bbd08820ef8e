# SPDX-License-Identifier: Apache-2.0
"""A plate for particles that adds as little as a plate can."""

from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger


class ParticlePlate(IndepMessenger):
    """
    An independence context for particles that only expands distributions.

    Unlike :class:`pyro.plate` it has no subsample site and never scales a log
    probability, so a pass over one particle draws what a plain run draws. The particle
    axis is the leftmost batch axis; inner plates keep their own dimensions.

    :param int size: number of particles.
    :param int dim: batch dimension of the particles, counted from the right (negative);
        ``-1 - max_plate_nesting`` is free of the plates of a program.
    :param str name: name of the frame that sites see in their ``cond_indep_stack``.
    :raises ZeroDivisionError: if ``size`` is zero, as :class:`pyro.plate` does.
    :raises ValueError: at entry, if a plate of the program already holds ``dim``.

    >>> import pyro, pyro.distributions as dist
    >>> with ParticlePlate(4, dim=-2), pyro.plate("data", 3):
    ...     pyro.sample("x", dist.Normal(0.0, 1.0)).shape
    torch.Size([4, 3])
    """

    def __init__(self, size: int, dim: int, *, name: str = "particles") -> None:
        if dim >= 0:
            raise ValueError(f"ParticlePlate: dim must be negative, got {dim}")
        super().__init__(name, size, dim)
        self._frame = (CondIndepStackFrame(name, dim, size, 0),)
        self._singletons = (1,) * (-dim - 1)

    def _process_message(self, msg: Any) -> None:
        msg["cond_indep_stack"] = self._frame + msg["cond_indep_stack"]
        if msg["type"] != "sample" or msg["done"]:
            return
        fn = msg["fn"]
        assert self.dim is not None
        shape: tuple[int, ...] = getattr(fn, "batch_shape", ())
        if len(shape) == -self.dim and shape[0] == self.size:
            return
        # A deterministic site counts its whole value as event, particles included.
        if not isinstance(fn, TorchDistributionMixin) or msg["infer"].get("_deterministic"):
            return
        batch = tuple(shape)
        missing = -self.dim - len(batch)
        if missing > 0:
            target = (self.size, *self._singletons[: missing - 1], *batch)
        elif batch[self.dim] == self.size:
            return
        elif batch[self.dim] == 1:
            cut = len(batch) + self.dim
            target = (*batch[:cut], self.size, *batch[cut + 1 :])
        else:
            raise ValueError(
                f"site '{msg['name']}': its batch shape {batch} has size {batch[self.dim]} at "
                f"dim {self.dim}, which holds {self.size} particles; index from the right "
                "('...', dim=-1) and declare independent dims with pyro.plate or .to_event()"
            )
        expanded: Any = fn.expand(target)
        if expanded.has_rsample != fn.has_rsample:
            expanded.has_rsample = fn.has_rsample
        msg["fn"] = expanded

    def _postprocess_message(self, msg: Any) -> None:
        # Nothing is left to do, and the look-up by name would cost more than the plate.
        return
