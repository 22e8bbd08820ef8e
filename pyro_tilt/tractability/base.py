# SPDX-License-Identifier: Apache-2.0
"""What a base is: a distribution, a diffusion, an autoregressive model, any other program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pyro_tilt.diffusion import Diffusion
from pyro_tilt.infer.seeding import preserved_rng
from pyro_tilt.infer.tilts import DiffusionModel
from pyro_tilt.infer.transport.base_program import DistributionProgram
from pyro_tilt.language import LanguageModel

__all__ = ["Base", "as_base"]


@dataclass(frozen=True, eq=False)
class Base:
    """
    A base and what one plain run of it shows.

    :ivar given: what the user gave.
    :ivar kind: ``"distribution"``, ``"diffusion"``, ``"autoregressive"`` or ``"program"``.
    :ivar program: a Pyro program that draws from it.
    :ivar steps_program: the same with a site for every step, None where there are no steps.
    :ivar args: arguments of the program.
    :ivar kwargs: its keyword arguments.
    :ivar rows_per_draw: predictions that a draw of a diffusion takes, otherwise 1.
    """

    given: Any
    kind: str
    program: Callable[..., Any]
    steps_program: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    rows_per_draw: float = 1.0

    @property
    def name(self) -> str:
        """The class of the base, or the name of the program."""
        if self.kind == "program" or not isinstance(self.given, Distribution | DiffusionModel):
            named = getattr(self.given, "__name__", None)
            return named if isinstance(named, str) else type(self.given).__name__
        return type(self.given).__name__

    @cached_property
    def sites(self) -> Sites:
        """The sites of a plain run, which leaves all random states as they were."""
        return read(self.program, self.args, self.kwargs)

    def event_shape(self, of: str | None = None) -> torch.Size:
        """
        The shape of the value that a reward reads.

        :param of: the name of a site, or None for the return value.
        :raises ValueError: where there is no such value, or it is no tensor.
        """
        value = self.sites.returned if of is None else self.sites.values.get(of)
        if not isinstance(value, Tensor):
            what = "it returns no tensor" if of is None else f"it has no site {of!r}"
            raise ValueError(
                f"plan: transport moves one tensor of the base, but {what}; name a site by of=, "
                f"one of {list(self.sites.values)}"
            )
        return value.shape


@dataclass(frozen=True, eq=False)
class Sites:
    """
    What a plain run shows.

    :ivar values: values of the sites that are not observed.
    :ivar returned: the return value.
    :ivar discrete: names of the latent sites with discrete values.
    :ivar unscored: names of the latent sites whose law has no density.
    :ivar observed: names of observations and factors.
    :ivar has_steps: whether there is a scan or a checkpoint.
    :ivar has_twists: whether it states twists.
    """

    values: dict[str, Any]
    returned: Any
    discrete: list[str]
    unscored: list[str]
    observed: list[str]
    has_steps: bool
    has_twists: bool


def as_base(given: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Base:
    """
    Recognises a base.

    :param given: a distribution, a diffusion model, a language model or a Pyro program.
    :param args: arguments of a program.
    :param kwargs: its keyword arguments.
    :raises TypeError: for anything else, and for arguments of what takes none.
    :raises ValueError: for a distribution with batch dims.

    >>> import pyro.distributions as dist
    >>> as_base(dist.Normal(0.0, 1.0)).kind
    'distribution'
    """
    arguments: dict[str, Any] = {"args": tuple(args), "kwargs": dict(kwargs or {})}
    if isinstance(given, LanguageModel):
        program = given.program(*args, **arguments["kwargs"])
        return Base(given, "autoregressive", program, program)
    if callable(given) and not isinstance(given, Distribution | DiffusionModel):
        sites = read(given, **arguments)
        steps = given if sites.has_steps else None
        kind = "autoregressive" if sites.has_steps and sites.discrete else "program"
        return Base(given, kind, given, steps, **arguments)
    if args or kwargs:
        raise TypeError(f"plan: args and kwargs are for programs, not for {type(given).__name__}")
    if isinstance(given, DiffusionModel):
        full = given.program()
        whole = given.program(record="last") if isinstance(given, Diffusion) else full
        rows = given.evaluations("ancestral", len(given.schedule.levels) - 1)
        return Base(given, "diffusion", whole, full, rows_per_draw=float(rows))
    if isinstance(given, TorchDistributionMixin):
        return Base(given, "distribution", _distribution(given))
    raise TypeError(
        "plan: the base must be a distribution of pyro.distributions, a diffusion model, a "
        f"language model or a Pyro program; got {type(given).__module__}.{type(given).__name__}"
    )


def _distribution(base: Any) -> DistributionProgram:
    if len(base.batch_shape):
        raise ValueError(
            f"plan: the distribution has batch shape {tuple(base.batch_shape)}, and a plan is for "
            "one value at a time: declare its dims by .to_event(), or plan for one element"
        )
    return DistributionProgram(base)


def read(program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sites:
    """One plain run of a program under a trace."""
    finder = _Steps()
    with preserved_rng(), torch.no_grad(), finder:
        trace = poutine.trace(program).get_trace(*args, **kwargs)
    values, discrete, unscored, observed = {}, [], [], []
    nodes: dict[str, Any] = dict(trace.nodes.items())
    for name, site in nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        if site["infer"].get("_deterministic"):
            values[name] = site["value"]
        elif site["is_observed"]:
            observed.append(name)
        else:
            values[name] = site["value"]
            if site["fn"].support.is_discrete:
                discrete.append(name)
            if not _has_density(site["fn"], site["value"]):
                unscored.append(name)
    returned = nodes["_RETURN"]["value"]
    return Sites(
        values, returned, discrete, unscored, observed, finder.has_steps, finder.has_twists
    )


def _has_density(law: Any, value: Any) -> bool:
    try:
        law.log_prob(value)
    except NotImplementedError:
        return False
    return True


class _Steps(Messenger):
    has_steps = has_twists = False

    def _pyro_tilt_scan(self, msg: Any) -> None:
        self.has_steps = True

    def _pyro_tilt_checkpoint(self, msg: Any) -> None:
        self.has_steps = True

    def _pyro_tilt_twist(self, msg: Any) -> None:
        self.has_twists = True
