# SPDX-License-Identifier: Apache-2.0
"""Several programs of the same sites: what they must share, and what each of them costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_tilt.infer.cost import CountRows
from pyro_tilt.infer.program_sites import SiteRecorder
from pyro_tilt.infer.seeding import preserved_rng
from pyro_tilt.poutine.align import AlignedProgram

__all__ = ["MeteredProgram", "SupportCheck", "check_programs", "split_aligned"]


class MeteredProgram:
    """
    A program that counts its own rows, so that the costs of two models can be told apart.

    :param program: a Pyro program.
    :ivar count: gathers the rows of modules wrapped by :func:`~pyro_tilt.infer.counted`.
    :ivar rows: rows of the program that were drawn or scored; a part of the steps counts as that
        part of a row. Kept by the sampler that runs the program.
    :ivar on_run: called before each run.
    """

    def __init__(self, program: Callable[..., Any]) -> None:
        self.program = program
        self.count = CountRows()
        self.rows = 0.0
        self.on_run: Callable[[], None] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.on_run is not None:
            self.on_run()
        with self.count:
            return self.program(*args, **kwargs)

    def info(self, name: str) -> dict[str, float]:
        """
        The costs as entries of a result's ``info``.

        :param name: of the model.
        """
        entries = {f"{name}_rows": float(self.rows)}
        if self.count.rows is not None:
            entries[f"{name}_network_rows"] = float(self.count.rows)
        return entries

    def reset(self) -> None:
        """Forgets the rows counted so far."""
        self.count, self.rows = CountRows(), 0.0


class SupportCheck(Messenger):
    """
    Refuses a draft that excludes what the target does not.

    A draw never shows the values that its law excludes, so that the laws themselves are compared
    where they are categorical. Entered around the passes of the draft and of the target over the
    same draws, the draft first.

    :ivar role: ``"draft"`` to note laws, ``"target"`` to compare with them, None for neither.
    """

    def __init__(self) -> None:
        super().__init__()
        self.role: str | None = None
        self._seen: dict[str, Tensor | None] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.role is None or msg["is_observed"]:
            return
        excluded, name = _excluded(msg["fn"]), msg["name"]
        if excluded is None:
            return
        if self.role == "draft":
            # Most laws exclude nothing; of those that do only the mask is kept.
            self._seen[name] = excluded if bool(excluded.any()) else None
            return
        missing = self._seen.pop(name, None)
        if missing is None or missing.shape != excluded.shape:
            return
        bad = missing & ~excluded
        if bool(bad.any()):
            raise ValueError(
                f"site '{name}': the draft has no mass at {int(bad.sum(-1).amax())} values where "
                "the target has some, so that no weighing of its draws reaches them; give the "
                "draft full support, or both models the same truncation"
            )


def _excluded(fn: Any) -> Tensor | None:
    """Values without mass, (..., K); None for a law that is not categorical."""
    param = getattr(fn, "_param", None)
    if not isinstance(fn, torch.distributions.Categorical) or not isinstance(param, Tensor):
        return None
    # Probabilities of zero would show as clamped logits.
    by_probs = param is fn.__dict__.get("probs")
    return param.eq(0.0) if by_probs else fn.logits.eq(-math.inf)


def split_aligned(name: str, program: Callable[..., Any]) -> AlignedProgram:
    """
    The one alignment of a program.

    :param name: of the sampler, for errors.
    :param program: what the sampler was given, aligned where it was given a reward.
    :raises ValueError: for a program without a reward, or with two.
    """
    if not isinstance(program, AlignedProgram):
        raise ValueError(
            f"{name} weighs the draws of both models by one reward: give reward=, or "
            "align(target, reward, beta)"
        )
    if isinstance(program.program, AlignedProgram):
        raise ValueError(f"{name} takes one reward; add the rewards up and align once")
    return program


def check_programs(
    programs: Mapping[str, Callable[..., Any]], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """
    Raises where programs do not speak of the same outcomes; leaves random states as they were.

    :param programs: by name, the first of which is the one to agree with.
    :param args: of all programs.
    :param kwargs: of all programs.
    :raises ValueError: for sites, shapes or vocabularies that differ, for observations or factors.
    """
    (first, laws), *others = [
        (name, _laws(name, program, args, kwargs)) for name, program in programs.items()
    ]
    for other, theirs in others:
        if set(laws) != set(theirs):
            raise ValueError(
                f"{first} and {other} must have the same latent sites; only one of them has "
                f"{sorted(set(laws) ^ set(theirs))}"
            )
        for site, fn in laws.items():
            here, there = _size(fn), _size(theirs[site])
            if here != there:
                raise ValueError(
                    f"the vocabularies differ: site '{site}' has {here} values in {first} and "
                    f"{there} in {other}"
                )
            if fn.event_shape != theirs[site].event_shape:
                raise ValueError(
                    f"site '{site}' has event shape {tuple(fn.event_shape)} in {first} and "
                    f"{tuple(theirs[site].event_shape)} in {other}"
                )


def _laws(
    name: str, program: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    with preserved_rng(), torch.no_grad(), SiteRecorder() as recorder:
        program(*args, **kwargs)
    laws, factors = {}, []
    for site, node in recorder.nodes.items():
        if not node["is_observed"]:
            if type(node["fn"]).__name__ != "_Subsample":
                laws[site] = node["fn"]
        elif not node["infer"].get("_deterministic"):
            factors.append(site)
    if factors:
        raise ValueError(
            f"the {name} has observations, factors or a reward of its own ({factors}), of which "
            "speculation takes no notice; give the plain program, and the reward by reward="
        )
    return laws


def _size(fn: Any) -> int | None:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    shape = getattr(fn, "param_shape", None)
    return None if shape is None else int(shape[-1])
