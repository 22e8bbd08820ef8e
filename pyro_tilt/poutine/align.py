# SPDX-License-Identifier: Apache-2.0
"""The joint tilt of a program by a reward."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from pyro import poutine
from pyro.poutine.runtime import am_i_wrapped

from pyro_tilt.poutine.capture_messenger import CaptureMessenger
from pyro_tilt.poutine.tilt_factor import Beta, TiltTerm, check_beta, conform, context, emit
from pyro_tilt.rewards import Reward, as_reward, evaluate

Of = str | Sequence[str] | None


class AlignedProgram:
    """
    A program with a reward; made by :func:`align`.

    :ivar program: the program that is tilted.
    :ivar reward: the :class:`~pyro_tilt.rewards.Reward`.
    :ivar beta: the inverse temperature.
    :ivar of: what the reward reads.
    """

    def __init__(
        self, program: Callable, reward: Any, beta: Beta, *, of: Of = None, name: str = "reward"
    ) -> None:
        if not callable(program):
            raise TypeError(f"align: program must be callable, got {type(program).__name__}")
        if of is not None and not isinstance(of, str):
            names = list(of) if isinstance(of, Iterable) else []
            if not names or not all(isinstance(site, str) for site in names):
                raise TypeError(f"align: of must be a site name or a list of them, got {of!r}")
            of = names
        self.program = program
        self.reward: Reward = as_reward(reward)
        self.beta = check_beta(beta)
        self.of = of
        self.name = name
        self._bounds = float(self.reward.lower_bound), float(self.reward.upper_bound)

    def __repr__(self) -> str:
        of = "" if self.of is None else f", of={self.of!r}"
        return f"align({self.program!r}, {self.reward!r}, beta={self.beta}{of})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not am_i_wrapped():
            return self.program(*args, **kwargs)
        capture = CaptureMessenger(self._sites())
        tracer = poutine.trace() if self.of == "trace" else None
        with ExitStack() as stack:
            stack.enter_context(capture)
            if tracer is not None:
                stack.enter_context(tracer)
            result = self.program(*args, **kwargs)
        here = context()
        if here["mask"] is False:
            return result
        if tracer is None:
            value = self._value(result, capture)
        else:
            value = tracer.get_trace()
            value.add_node("_RETURN", name="_RETURN", type="return", value=result)
        name = capture.fresh(self.name)
        reward = evaluate(self.reward, value, name=name)
        frames = here["cond_indep_stack"]
        reward = conform(reward, frames, name=name, enum_dim=capture.enum_dim)
        lower, upper = self._bounds
        emit(name, TiltTerm(reward, self.beta, upper_bound=upper, lower_bound=lower))
        return result

    def _sites(self) -> list[str]:
        if self.of is None or self.of == "trace":
            return []
        return [self.of] if isinstance(self.of, str) else list(self.of)

    def _value(self, result: Any, capture: CaptureMessenger) -> Any:
        missing = [site for site in self._sites() if site not in capture.values]
        if missing:
            raise ValueError(
                f"align: of={self.of!r} names {missing}, which the program does not sample; "
                f"its sites are {list(capture.names)}"
            )
        if self.of is None:
            if result is None:
                raise ValueError(
                    "align: the program returns None, so the reward has nothing to read; "
                    f"return a value or name a site by of=, one of {list(capture.names)}"
                )
            return result
        if isinstance(self.of, str):
            return capture.values[self.of]
        return {site: capture.values[site] for site in self.of}


def align(
    program: Callable, reward: Any, beta: Beta = 1.0, *, of: Of = None, name: str = "reward"
) -> AlignedProgram:
    r"""
    Tilts the joint law of a program by the exponential of a reward.

    .. math:: \pi(\text{trace}) = p(\text{trace})\, e^{\beta r} / Z

    The result is a Pyro program, to be run by any engine: it runs ``program`` and adds one
    factor site with log weight :math:`\beta r`. The base is the program's latent sites;
    observations and other factors stay as they are. ``beta`` multiplies the reward; in RLHF
    papers beta is often the KL coefficient, which is its inverse.

    The factor lies outside the plates of the program, so a subsampled plate does not scale
    the reward. Its name is made unique, so aligning twice multiplies the tilts. The reward
    is not evaluated under :class:`~pyro.infer.Predictive`, which draws from the base, nor
    outside inference.

    :param program: a Pyro program, a callable.
    :param reward: a :class:`~pyro_tilt.rewards.Reward` or a plain callable. It returns one
        number per run: a 0-dim tensor in a plain run and, under particle plates, one number
        per particle (with the particle axis leftmost).
    :param beta: :math:`\beta`, a number or 0-dim tensor.
    :param of: what the reward reads: the return value (None), the value of a site (its
        name), a dict of the values of several sites (a list of names), or the
        :class:`pyro.poutine.Trace` (``"trace"``).
    :param name: name of the factor site.
    :raises ValueError: when run, if the reward is NaN or ``+inf`` or its shape is not that
        of the plates around the program, or if ``of`` names no site.

    >>> import pyro, pyro.distributions as dist
    >>> def program():
    ...     return pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> aligned = align(program, lambda x: -x.abs(), beta=2.0)
    >>> trace = pyro.poutine.trace(aligned).get_trace()
    >>> list(trace.nodes)[1:-1]
    ['x', 'reward']
    """
    return AlignedProgram(program, reward, beta, of=of, name=name)
