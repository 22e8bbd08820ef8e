# SPDX-License-Identifier: Apache-2.0
"""Factor sites that carry a reward, and the rules for its shape."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import Message, am_i_wrapped, apply_stack
from torch import Tensor

from pyro_tilt.poutine.tilt_unit import Unit
from pyro_tilt.rewards import evaluate, log_tilt

Beta = float | Tensor


@dataclass(frozen=True, eq=False)
class TiltTerm:
    """
    What a tilt factor is made of; the factor's log weight is ``beta * reward``.

    :param reward: the reward, one number per element of the factor.
    :param beta: a number or a 0-dim tensor.
    :param upper_bound: bound on the reward from above, ``inf`` where unknown.
    :param lower_bound: bound on the reward from below, ``-inf`` where unknown.

    >>> import torch
    >>> TiltTerm(torch.tensor([-1.0, 0.0]), 2.0, upper_bound=3.0).log_bound
    6.0
    >>> TiltTerm(torch.tensor([-1.0, 0.0]), -2.0, upper_bound=3.0).log_bound
    inf
    """

    reward: Tensor
    beta: Beta
    upper_bound: float = math.inf
    lower_bound: float = -math.inf

    @property
    def log_bound(self) -> float:
        """An upper bound on the log tilt of one element of the factor."""
        beta = float(self.beta)
        if beta == 0.0:
            return 0.0
        return beta * (self.upper_bound if beta > 0 else self.lower_bound)


def check_beta(beta: Beta) -> Beta:
    """
    Returns ``beta`` where it is a finite number or a 0-dim tensor.

    :param beta: an inverse temperature.
    :raises ValueError: otherwise.
    :raises TypeError: if it is no number at all.

    >>> check_beta(2)
    2.0
    """
    if isinstance(beta, Tensor):
        if beta.dim() != 0:
            raise ValueError(f"beta must be a number or 0-dim tensor, got shape {beta.shape}")
        if not bool(beta.isfinite()):
            raise ValueError(f"beta must be finite, got {beta}")
        return beta
    if isinstance(beta, bool) or not isinstance(beta, numbers.Real):
        raise TypeError(f"beta must be a number or 0-dim tensor, got {type(beta).__name__}")
    if not math.isfinite(beta):
        raise ValueError(f"beta must be finite, got {beta}")
    return float(beta)


def context() -> Message:
    """
    Returns a message that every enclosing handler has seen.

    Its ``mask``, ``scale`` and ``cond_indep_stack`` say where the program stands.
    """
    msg = Message(
        type="tilt_context",
        name="_tilt_context",
        fn=bool,
        is_observed=False,
        args=(),
        kwargs={},
        value=None,
        infer={"_do_not_trace": True},
        scale=1.0,
        mask=None,
        cond_indep_stack=(),
        done=False,
        stop=False,
        continuation=None,
    )
    apply_stack(msg)
    return msg


def conform(
    reward: Tensor,
    frames: Sequence[CondIndepStackFrame],
    *,
    name: str,
    enum_dim: int | None = None,
    broadcast: bool = False,
) -> Tensor:
    """
    Returns ``reward`` in the shape that the plates around a factor ask for.

    :param reward: a reward.
    :param frames: the ``cond_indep_stack`` of the factor.
    :param name: name of the factor, for the error.
    :param enum_dim: rightmost dimension in use for enumeration; from there to the left any
        size is allowed.
    :param broadcast: whether a reward that broadcasts to the plates is also allowed, as it
        is for :func:`pyro.factor`, with anything to the left of the plates.
    :raises ValueError: where the shape does not fit; both shapes are shown.
    """
    plates = [f for f in frames if f.dim is not None]
    rank = max((-f.dim for f in plates if f.dim is not None), default=0)
    target = [1] * rank
    for frame in plates:
        assert frame.dim is not None
        target[frame.dim] = frame.size
    shape = tuple(reward.shape)
    if shape == tuple(target):
        return reward
    if len(plates) == 1 and shape == (plates[0].size,):
        return reward.reshape(target)
    free = -rank - 1 if broadcast else enum_dim
    if free is not None:
        padded = (1,) * (rank - len(shape)) + shape
        full = [1] * (len(padded) - rank) + target
        dims = range(-len(padded), 0)
        if all(a in (1, b) or b == -1 or dim <= free for dim, a, b in zip(dims, padded, full)):
            sizes = [a if b == -1 else max(a, b) for a, b in zip(padded, full)]
            return reward.expand(sizes) if broadcast else reward
    names = ", ".join(f"'{f.name}' (size {f.size}, dim {f.dim})" for f in plates) or "none"
    raise ValueError(
        f"site '{name}': the reward has shape {shape}, expected {tuple(target)}, one number for "
        f"each element of the plates around it ({names}). Sum the reward over the plates and "
        "event dims of the value, keep the leftmost (particle) axis, and index from the right."
    )


def emit(name: str, term: TiltTerm) -> None:
    """
    Emits the factor site ``name`` of ``term``.

    :param name: name of the site.
    :param term: what it carries in ``infer["tilt"]``.
    """
    reward, beta = term.reward, term.beta
    if isinstance(beta, float) and beta >= 0.0:
        unit: dist.Unit = Unit(reward, beta)
    else:
        # A tensor may be changed in place before it is read again.
        unit = dist.Unit(log_tilt(reward, beta))
    infer: Any = {"is_auxiliary": True, "tilt": term}
    pyro.sample(name, unit, obs=unit.sample(), infer=infer)


def reward_factor(
    name: str, value: Tensor, beta: Beta = 1.0, *, upper_bound: float = math.inf
) -> None:
    r"""
    Tilts the program by :math:`e^{\beta r}`, as a statement inside it.

    The program's law :math:`p` becomes :math:`p\, e^{\beta r} / Z`. ``beta`` multiplies the
    reward; it is the inverse of the KL coefficient that is called beta in RLHF papers.
    Inside a plate the statement tilts each element, and a subsampled plate scales it, as it
    does every factor. Outside inference it does nothing.

    :param name: name of the factor site.
    :param value: the reward :math:`r`, one number for each element of the plates around.
    :param beta: :math:`\beta`, a number or 0-dim tensor.
    :param upper_bound: a bound on the reward from above, where one is known; exact
        rejection needs it.
    :raises ValueError: if the reward is NaN or ``+inf``, has a shape that does not fit the
        plates, or exceeds ``upper_bound``.

    >>> import pyro, pyro.distributions as dist
    >>> def program():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     reward_factor("closeness", -x.abs(), beta=2.0, upper_bound=0.0)
    >>> trace = pyro.poutine.trace(program).get_trace()
    >>> trace.nodes["closeness"]["infer"]["tilt"].beta
    2.0
    """
    beta = check_beta(beta)
    if not am_i_wrapped():
        return
    here = context()
    if here["mask"] is False:
        return
    # A program may go on to change its tensor in place, as a running total.
    value = evaluate(_given, value, name=name).clone()
    value = conform(value, here["cond_indep_stack"], name=name, broadcast=True)
    if upper_bound < math.inf and bool((value > upper_bound).any()):
        raise ValueError(
            f"site '{name}': the reward reaches {float(value.max()):g}, above its "
            f"upper_bound {upper_bound:g}"
        )
    emit(name, TiltTerm(value, beta, upper_bound=float(upper_bound)))


def _given(value: Tensor) -> Tensor:
    return value
