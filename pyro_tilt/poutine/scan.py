# SPDX-License-Identifier: Apache-2.0
"""A loop that a sampler can re-enter at every step."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pyro.poutine.runtime import Message, am_i_wrapped, apply_stack

Carry = TypeVar("Carry")
Step = Callable[[Carry, Any], Carry]


def scan(name: str, step: Step, init: Carry, xs: Iterable[Any]) -> Carry:
    r"""
    Runs the steps of a program, :math:`c_k = \mathrm{step}(c_{k-1}, x_k)`.

    By itself this is the plain loop ``for x in xs: carry = step(carry, x)``, and every engine of
    Pyro sees the ordinary sites of the steps; the program gives each its own name, as in any loop.
    A sampler over steps, such as :class:`~pyro_tilt.infer.SMC`, takes the loop over: it weighs,
    resamples or repeats single steps, and moves the carry with the particles. All that a step
    needs of earlier draws must therefore come in through the carry; a draw that reaches it by a
    closure does not move along. ``xs`` and other data that all particles share stay outside.

    :param name: name of the scan, unique in the program.
    :param step: a function of the carry and an element of ``xs`` to the new carry alone.
    :param init: the first carry: any nesting of tensors, whose leftmost axis under a sampler is
        that of the particles, in tuples, lists, dicts, dataclasses or containers taught by
        :func:`~pyro_tilt.ops.register_reindex`.
    :param xs: what the steps go over, such as a range, a list of times or a tensor of data.
    :returns: the last carry.

    >>> import pyro, torch, pyro.distributions as dist
    >>> def step(x, t):
    ...     return pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 1.0))
    >>> def program():
    ...     return scan("walk", step, torch.tensor(0.0), range(3))
    >>> trace = pyro.poutine.trace(program).get_trace()
    >>> [site for site in trace.nodes if site.startswith("x_")]
    ['x_0', 'x_1', 'x_2']
    """
    if not callable(step):
        raise TypeError(f"scan '{name}': step must be callable, got {type(step).__name__}")
    if not am_i_wrapped():
        return plain_scan(step, init, xs)
    return apply_effect("tilt_scan", name, plain_scan, (step, init, xs))


def plain_scan(step: Step, init: Carry, xs: Iterable[Any]) -> Carry:
    """The loop that :func:`scan` is where no sampler takes it over."""
    carry = init
    for x in xs:
        carry = step(carry, x)
    return carry


def apply_effect(kind: str, name: str, fn: Callable, args: tuple[Any, ...]) -> Any:
    """
    Sends a message of type ``kind`` through the handlers, and gives its value.

    :param kind: the type, which handlers meet as ``_pyro_<kind>``.
    :param name: name of the statement.
    :param fn: what it means where no handler answers.
    :param args: its arguments.
    """
    msg = Message(
        type=kind,
        name=name,
        fn=fn,
        is_observed=False,
        args=args,
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
    return msg["value"]
