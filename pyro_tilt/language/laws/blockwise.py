# SPDX-License-Identifier: Apache-2.0
"""Laws of sequences written block by block, each block chosen by its value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_tilt.language.laws.checks import log_base
from pyro_tilt.ops.importance import as_double

__all__ = ["blockwise"]

BlockLaw = Callable[[Tensor, Tensor], Tensor]


def blockwise(
    base: Tensor, values: Sequence[Tensor], block: int, choose: BlockLaw, *, log: bool = False
) -> Tensor:
    r"""
    The law of sequences whose blocks of tokens are chosen one after another.

    After every block of M tokens ``choose`` maps the base law of the block given what is written
    and the values of the continued beginnings to the law of the block kept:

    .. math:: P(y) = \prod_k \mathrm{choose}\bigl(p(\cdot \mid y_{<kM}), V(y_{<kM}\, \cdot)\bigr)

    With ``best_of_n`` this is blockwise controlled decoding (Mudgal et al. 2024, arXiv
    2310.17022), with ``tilt`` its token-wise form: the tilt of whole sequences under soft values,
    and another law under mean values. A block of all tokens is ``choose`` itself.

    :param base: probabilities of all sequences, shape ``(V,) * T``.
    :param values: for t = 0, ..., T the values of beginnings of t tokens, ``(V,) * t``, such as
        :meth:`~pyro_tilt.language.TabularLM.mean_values`; the last are those of whole sequences.
    :param block: M, tokens in a block; the last one may be shorter.
    :param choose: a law of this package with its options bound, of probabilities and rewards of
        shape ``(..., K)``.
    :param log: whether ``base``, the result and what ``choose`` takes and gives are log
        probabilities.
    :returns: probabilities, shape ``(V,) * T``.
    :raises ValueError: for shapes that do not fit or a block below 1.

    >>> from functools import partial
    >>> from pyro_tilt.language.laws import best_of_n
    >>> base = torch.full((2, 2), 0.25)
    >>> last = torch.tensor([[0.0, 0.1], [1.0, 1.1]])
    >>> values = [torch.tensor(0.55), torch.tensor([0.05, 1.05]), last]
    >>> blockwise(base, values, 1, partial(best_of_n, n=2)).tolist()
    [[0.0625, 0.1875], [0.1875, 0.5625]]
    """
    size, length = _check(base, values, block)
    logs = log_base(base.flatten(), log).reshape(base.shape)
    law = logs.new_zeros(1)
    for start in range(0, length, block):
        end = min(start + block, length)
        upto = logs.reshape(size**end, -1).logsumexp(-1).reshape(size**start, -1)
        total = upto.logsumexp(-1, keepdim=True)
        # What follows a beginning that cannot occur counts for nothing.
        given = torch.where(
            total > -math.inf, upto - total, torch.full_like(upto, -math.log(upto.shape[-1]))
        )
        value = as_double(values[end]).reshape(size**start, -1)
        kept = choose(given if log else given.exp(), value.to(given.device))
        if kept.shape != given.shape:
            raise ValueError(
                f"choose must return a law of shape {tuple(given.shape)}, got {tuple(kept.shape)}"
            )
        kept = kept.to(given)
        law = (law.unsqueeze(-1) + (kept if log else kept.log())).flatten()
    law = law.reshape(base.shape)
    return (law if log else law.exp()).to(base.dtype)


def _check(base: Tensor, values: Sequence[Tensor], block: int) -> tuple[int, int]:
    if isinstance(block, bool) or block != int(block) or block < 1:
        raise ValueError(f"block must be an integer of at least 1, got {block!r}")
    if base.dim() == 0 or len(set(base.shape)) != 1:
        raise ValueError(
            f"base must have one dimension of the vocabulary for each token, got shape "
            f"{tuple(base.shape)}"
        )
    size, length = base.shape[0], base.dim()
    shapes = [tuple(value.shape) for value in values]
    if shapes != [(size,) * t for t in range(length + 1)]:
        raise ValueError(
            f"values must hold a table of shape ({size},) * t for t = 0, ..., {length}, "
            f"got {shapes}"
        )
    return size, length
