# SPDX-License-Identifier: Apache-2.0
"""Sequences of unequal length in one call of a causal model, each as if it were alone."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["PaddedReads", "takes_padding"]

State = list[tuple[Tensor, Tensor, int]]
Part = tuple[Tensor, State | None]


class _Reads(Protocol):
    """A network that can be told what is padding."""

    model: Any

    def read_padded(
        self, tokens: Tensor, state: Any, mask: Tensor, positions: Tensor
    ) -> tuple[Tensor, Any]: ...


def takes_padding(model: Any) -> bool:
    """
    Whether a model of transformers can be told which tokens are padding and where the others stand.

    One whose rotary frequencies follow the longest sequence of a batch computes something else.

    :param model: a causal model, or an adapter around one.
    """
    plain = getattr(model, "get_base_model", lambda: model)()
    if not {"attention_mask", "position_ids"} <= set(inspect.signature(plain.forward).parameters):
        return False
    config = model.config.get_text_config(decoder=True)
    rope = str(getattr(config, "rope_parameters", None)) + str(getattr(config, "rope_scaling", ""))
    return "dynamic" not in rope and "longrope" not in rope


class PaddedReads:
    """
    Joins calls of :meth:`CausalNetwork.read` whose sequences differ in length.

    Prompts are padded behind their last token, where nothing that is kept looks; caches before
    their first, so that windows keep their distances. A mask hides the padding, and each token has
    the position of its own sequence. See :class:`~pyro_tilt.ops.ragged.Ragged`.

    :param network: what reads.
    :param windows: the numbers of tokens that its layers keep, of those that do not keep all.
    """

    def __init__(self, network: _Reads, *, windows: Sequence[int] = ()) -> None:
        config = network.model.config.get_text_config(decoder=True)
        self.network, self.windows = network, tuple(windows)
        # Without grouped heads; the defaults are for configurations with names of their own.
        layers, size = (
            getattr(config, "num_hidden_layers", 32),
            getattr(config, "hidden_size", 1024),
        )
        self.width = 2 * layers * size
        self.checked: set[Hashable] = set()

    def kind(self, tokens: Tensor, state: State | None) -> Hashable | None:
        """Prompts that are not cut by a window, or caches that differ in rows and length alone."""
        if state is None:
            # Padding behind a prompt would push its first tokens out of a window.
            fits = all(tokens.shape[1] <= window for window in self.windows)
            return ("prompts", tokens.device) if fits else None
        if not state or any(keys.dim() != 4 or values.dim() != 4 for keys, values, _ in state):
            return None
        layers = tuple((_but_length(keys), _but_length(values)) for keys, values, _ in state)
        return tokens.shape[1], layers

    def length(self, tokens: Tensor, state: State | None) -> int:
        """Of what has been read; of a prompt, its own."""
        return state[0][2] if state else tokens.shape[1]

    def join(self, parts: Sequence[Part]) -> list[tuple[Tensor, State]]:
        """The results of :meth:`CausalNetwork.read` for each."""
        if parts[0][1] is None:
            return self._prompts([tokens for tokens, _ in parts])
        return self._steps([tokens for tokens, _ in parts], [state or [] for _, state in parts])

    def _prompts(self, prompts: Sequence[Tensor]) -> list[tuple[Tensor, State]]:
        first, longest = prompts[0], max(each.shape[1] for each in prompts)
        tokens = first.new_zeros(sum(map(len, prompts)), longest)
        mask, rows = torch.zeros_like(tokens), [len(each) for each in prompts]
        for part, shown, own in zip(prompts, mask.split(rows), tokens.split(rows)):
            own[:, : part.shape[1]] = part
            shown[:, : part.shape[1]] = 1
        positions = torch.arange(longest, device=first.device).expand_as(tokens)
        logits, state = self.network.read_padded(tokens, None, mask, positions)
        lengths = [part.shape[1] for part in prompts]
        laws = [part[:, length - 1] for part, length in zip(logits.split(rows), lengths)]
        parts = zip(*(_split(layer, rows) for layer in state))
        states = [
            [(keys[:, :, :length], values[:, :, :length], length) for keys, values in part]
            for part, length in zip(parts, lengths)
        ]
        return list(zip(laws, states))

    def _steps(
        self, tokens: Sequence[Tensor], states: Sequence[State]
    ) -> list[tuple[Tensor, State]]:
        rows, fresh = [len(each) for each in tokens], tokens[0].shape[1]
        lengths = [state[0][2] for state in states]
        device, longest = tokens[0].device, max(lengths)
        before = torch.tensor(lengths, device=device).unsqueeze(-1)
        before = before.repeat_interleave(torch.tensor(rows, device=device), 0)
        mask = (torch.arange(longest + fresh, device=device) >= longest - before).long()
        positions = before + torch.arange(fresh, device=device)
        padded = [
            (_padded([keys for keys, _, _ in layer]), _padded([v for _, v, _ in layer]), longest)
            for layer in zip(*states)
        ]
        logits, read = self.network.read_padded(torch.cat(list(tokens)), padded, mask, positions)
        parts = zip(*(_split(layer, rows) for layer in read))
        found = [
            [
                (_last(keys, old[0], fresh), _last(values, old[1], fresh), length + fresh)
                for (keys, values), old in zip(part, state)
            ]
            for part, state, length in zip(parts, states, lengths)
        ]
        return list(zip(logits[:, -1].split(rows), found))


def _but_length(kept: Tensor) -> Hashable:
    return kept.shape[1], kept.shape[3], kept.dtype, kept.device


def _split(layer: tuple[Tensor, Tensor, int], rows: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(layer[0].split(rows), layer[1].split(rows)))


def _last(grown: Tensor, old: Tensor, fresh: int) -> Tensor:
    """What a layer keeps of rows without their padding; a window may have lost its oldest."""
    return grown[:, :, -(old.shape[2] + fresh) :]


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Rows with the last tokens one under the other; without a copy where they still lie so."""
    first, longest = parts[0], max(part.shape[2] for part in parts)
    whole = _still_together(parts, longest)
    if whole is not None:
        return whole
    heads, width = first.shape[1], first.shape[3]
    whole = first.new_empty(sum(map(len, parts)), heads, longest, width)
    for part, place in zip(parts, whole.split([len(part) for part in parts])):
        padding = longest - part.shape[2]
        # Zeros, because what is hidden by a mask must be finite all the same.
        place[:, :, :padding] = 0
        place[:, :, padding:] = part
    return whole


def _still_together(parts: Sequence[Tensor], longest: int) -> Tensor | None:
    """The rows that an earlier call has padded, as long as no run has moved its own."""
    first = parts[0]
    stride, storage = first.stride(), first.untyped_storage().data_ptr()
    starts = [part.storage_offset() - (longest - part.shape[2]) * stride[2] for part in parts]
    place = starts[0]
    for part, start in zip(parts, starts):
        same = part.stride() == stride and part.untyped_storage().data_ptr() == storage
        if not same or start != place or start < 0:
            return None
        place += len(part) * stride[0]
    shape = (sum(map(len, parts)), first.shape[1], longest, first.shape[3])
    return first.as_strided(shape, stride, starts[0])
