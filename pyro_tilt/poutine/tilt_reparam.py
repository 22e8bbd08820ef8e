# SPDX-License-Identifier: Apache-2.0
"""A reparameterisation that keeps the law of a Tilted site."""

from typing import Any

import pyro
import pyro.distributions as dist
from pyro.infer.reparam.reparam import Reparam

from pyro_tilt.poutine.tilted_site import (
    base_of,
    find_tilted,
    log_correction,
    log_normalizer,
)


class TiltReparam(Reparam):
    r"""
    Writes a latent ``Tilted`` site as its base with a factor, keeping its law.

    .. math:: p(x \mid \text{pa})\, e^{\beta r(x)} / Z(\text{pa})

    The site ``x`` becomes a site ``x_base`` with the base law, a factor ``x_tilt`` with log
    weight :math:`\beta r - \log Z`, and a deterministic ``x``. Inference then needs only the
    base law and the normaliser. For the joint tilt, without the normaliser, see
    :func:`~pyro_tilt.poutine.joint_tilt`.

    :raises NotImplementedError: where the normaliser of the site is unknown.
    :raises ValueError: where the site is not ``Tilted``.

    >>> import pyro, torch, pyro.distributions as dist
    >>> from pyro_tilt import rewards
    >>> from pyro_tilt.distributions import Tilted
    >>> tilted = Tilted(dist.Normal(0.0, 1.0), rewards.Linear(torch.tensor(1.0)), beta=2.0)
    >>> with pyro.poutine.trace() as tracer, pyro.poutine.reparam(config={"x": TiltReparam()}):
    ...     x = pyro.sample("x", tilted)
    >>> list(tracer.trace.nodes)
    ['x_base', 'x_tilt', 'x']
    """

    def apply(self, msg: Any) -> Any:
        """
        Reparameterises one site.

        :param msg: its name, distribution, value and whether it is observed.
        """
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        tilted = find_tilted(fn)
        if tilted is None:
            raise ValueError(
                f"site '{name}': TiltReparam needs a Tilted distribution, got {type(fn).__name__}"
            )
        if msg["is_observed"]:
            return msg
        # The normaliser is asked for first, so that an unknown one is refused before any work.
        log_z = log_normalizer(tilted, name=name)
        value = pyro.sample(f"{name}_base", base_of(fn), obs=value, infer={"is_observed": False})
        factor = f"{name}_tilt"
        pyro.factor(factor, log_correction(fn, value, log_z, name=factor))
        new_fn = dist.Delta(value, event_dim=fn.event_dim).mask(False)
        return {"fn": new_fn, "value": value, "is_observed": True}
