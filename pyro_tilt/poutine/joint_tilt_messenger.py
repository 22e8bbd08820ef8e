# SPDX-License-Identifier: Apache-2.0
"""Turns the conditional tilts of a program into joint ones."""

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_tilt.poutine.tilt_factor import TiltTerm, emit
from pyro_tilt.poutine.tilted_site import base_of, find_tilted, reduce_like
from pyro_tilt.rewards import evaluate, log_tilt


class JointTiltMessenger(Messenger):
    """
    Replaces latent ``Tilted`` sites by their base and a factor; see :func:`joint_tilt`.

    >>> import pyro, torch, pyro.distributions as dist
    >>> from pyro_tilt import rewards
    >>> from pyro_tilt.distributions import Tilted
    >>> tilted = Tilted(dist.Normal(0.0, 1.0), rewards.Linear(torch.tensor(1.0)), beta=2.0)
    >>> with pyro.poutine.trace() as tracer, JointTiltMessenger():
    ...     x = pyro.sample("x", tilted)
    >>> [(name, type(site["fn"]).__name__) for name, site in tracer.trace.nodes.items()]
    [('x', 'Normal'), ('x_tilt', 'Unit')]
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: dict[str, Any] = {}

    def __enter__(self) -> "JointTiltMessenger":
        self._pending.clear()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or find_tilted(msg["fn"]) is None:
            return
        self._pending[msg["name"]] = msg["fn"]
        msg["fn"] = base_of(msg["fn"])

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = self._pending.pop(msg["name"], None)
        # Nothing reads the factor where log densities are masked out, as under Predictive.
        if fn is None or msg["mask"] is False:
            return
        name = f"{msg['name']}_tilt"
        tilted = find_tilted(fn)
        assert tilted is not None
        reward = evaluate(tilted.reward, msg["value"], name=name)
        emit(name, _term(fn, reward, tilted))


def _term(fn: Any, reward: Tensor, tilted: Any) -> TiltTerm:
    """The tilt of a site with the event dims that ``fn`` has and its mask."""
    beta = tilted.beta
    if isinstance(beta, Tensor) and beta.dim():
        return TiltTerm(reduce_like(fn, log_tilt(reward, beta)), 1.0)
    lower, upper = tilted.reward.lower_bound, tilted.reward.upper_bound
    if fn is not tilted:
        count = max(_count(fn), 1)
        # An element may be masked out, and then contributes nothing.
        lower, upper = min(lower * count, 0.0), max(upper * count, 0.0)
    return TiltTerm(reduce_like(fn, reward), beta, upper_bound=upper, lower_bound=lower)


def _count(fn: Any) -> int:
    """How many Tilted elements one element of ``fn`` holds."""
    count = 1
    while hasattr(fn, "base_dist"):
        dims = getattr(fn, "reinterpreted_batch_ndims", 0)
        if dims:
            count *= fn.base_dist.batch_shape[-dims:].numel()
        fn = fn.base_dist
    return count


class JointTilted:
    """
    A program whose conditional tilts became joint ones; made by :func:`joint_tilt`.

    :ivar program: the program.
    """

    def __init__(self, program: Callable) -> None:
        if not callable(program):
            raise TypeError(f"joint_tilt: program must be callable, got {type(program).__name__}")
        self.program = program

    def __repr__(self) -> str:
        return f"joint_tilt({self.program!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with JointTiltMessenger():
            return self.program(*args, **kwargs)


def joint_tilt(program: Callable) -> JointTilted:
    r"""
    Turns every latent ``Tilted`` site of a program into its base and a factor.

    .. math:: p(x \mid \text{pa})\, e^{\beta r(x)} / Z(\text{pa})
        \;\longrightarrow\; p(x \mid \text{pa})\, e^{\beta r(x)}

    This changes the law of the program wherever :math:`Z` varies with the parents, from the
    conditional tilt to the joint one, and needs no normaliser. Names of sites stay; the
    factor of site ``x`` is ``x_tilt``. Sites that the program observes are left alone.
    Conditioning from outside, as NUTS does, acts on the joint tilt. Handlers that
    initialise or replay sites go outside: ``AutoNormal(joint_tilt(program))``.

    :param program: a Pyro program.

    >>> import pyro, torch, pyro.distributions as dist
    >>> from pyro_tilt import rewards
    >>> from pyro_tilt.distributions import Tilted
    >>> def program():
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     r = rewards.Linear(torch.tensor(1.0))
    ...     return pyro.sample("x", Tilted(dist.Normal(z, 1.0), r))
    >>> list(pyro.poutine.trace(joint_tilt(program)).get_trace().nodes)[1:-1]
    ['z', 'x', 'x_tilt']
    """
    return JointTilted(program)
