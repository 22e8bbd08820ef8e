# SPDX-License-Identifier: Apache-2.0
"""Counts, tokens and tables that users give."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_tables", "check_tokens", "given_tokens", "whole_number"]


def whole_number(name: str, value: Any, *, at_least: int = 0) -> int:
    """
    A count or a token, which is never rounded.

    :param name: of the argument.
    :param value: what was given.
    :param at_least: the smallest one.
    :raises ValueError: naming the argument.

    >>> whole_number("max_tokens", 3)
    3
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if found < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {found}")
    return found


def given_tokens(tokens: Any, vocabulary_size: int, what: str, device: torch.device) -> Tensor:
    """
    Tokens as a tensor of integers, which are never rounded.

    :param tokens: what was given.
    :param vocabulary_size: number of tokens that there are.
    :param what: names them in an error.
    :param device: where they go.
    :raises ValueError: for others than integers in the vocabulary.
    """
    found = torch.as_tensor(tokens, device=device)
    if not found.numel():
        return found.long()
    check_tokens(found, vocabulary_size, what)
    return found.long()


def check_tokens(tokens: Tensor, vocabulary_size: int, what: str) -> None:
    """
    Refuses what is no token.

    :param tokens: of any shape.
    :param vocabulary_size: number of tokens that there are.
    :param what: names them in an error.
    :raises ValueError: for others than integers in the vocabulary.
    """
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"{what} must be integers, got {tokens.dtype}")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary_size:
        raise ValueError(
            f"{what} must lie in [0, {vocabulary_size}), got values from "
            f"{int(tokens.min())} to {int(tokens.max())}; do the vocabularies agree?"
        )


def check_tables(tables: list[Tensor]) -> None:
    """
    Refuses tables of logits that do not fit.

    :param tables: see :class:`~pyro_tilt.language.TabularLM`.
    :raises ValueError: naming the table.
    """
    if not tables or not all(isinstance(t, Tensor) and t.is_floating_point() for t in tables):
        raise ValueError("logits must be a floating point tensor or a list of at least one")
    size = tables[0].shape[-1] if tables[0].dim() else 0
    for t, table in enumerate(tables):
        if not 1 <= table.dim() <= t + 1 or set(table.shape) != {size} or size < 1:
            raise ValueError(
                f"logits[{t}] must have shape (V,) * (k + 1) with k at most {t} and V = {size}, "
                f"got {tuple(table.shape)}"
            )
        if not float(table.detach().amax()) < math.inf or bool((table == -math.inf).all(-1).any()):
            raise ValueError(
                f"logits[{t}] hold NaN or +inf, or a context in which no token is possible"
            )
