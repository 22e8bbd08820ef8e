# SPDX-License-Identifier: Apache-2.0
"""Networks that read tokens one at a time and keep what they have read as tensors."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import warnings
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_tilt.language.neural_padding import PaddedReads, takes_padding
from pyro_tilt.ops.ragged import Ragged

__all__ = ["CausalNetwork", "Network", "RecurrentModel", "RecurrentNetwork", "as_network"]


@runtime_checkable
class RecurrentModel(Protocol):
    """
    A recurrent language model: a module whose state is a nesting of tensors, batch axis first.
    """

    def initial_state(self, batch: int) -> Any:
        """The state of ``batch`` sequences before their first token."""
        ...

    def __call__(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits after each token, ``(batch, t)`` to ``(batch, t, V)``, and the last state."""
        ...


class Network(Protocol):
    """
    What a :class:`~pyro_tilt.language.NeuralLM` asks of its network.

    :ivar model: the module.
    :ivar context: the most tokens that it reads; None for any number.
    :ivar key: networks of one key give the same tokens and state the same results.
    :ivar ragged: joins calls of :meth:`read` whose sequences differ in length; None where no call
        can be told the length of each.
    """

    model: Any
    context: int | None
    key: tuple[Any, ...]
    ragged: Ragged | None

    def score(self, tokens: Tensor) -> Tensor:
        """Logits after every token, ``(batch, t)`` to ``(batch, t, V)``."""
        ...

    def read(self, tokens: Tensor, state: Any, *, consume: bool = False) -> tuple[Tensor, Any]:
        """
        Logits after the last token, ``(batch, V)``, and the new state.

        Tokens are those that ``state`` has not read, and all of them where ``state`` is None. The
        old state stays as it is unless ``consume`` says that nobody needs it again.
        """
        ...

    def unread(self, tokens: Tensor) -> Tensor:
        """Of a sequence whose last token alone is new, what :meth:`read` is to be given."""
        ...


class RecurrentNetwork:
    """
    A recurrent module as a network.

    :param model: a :class:`RecurrentModel`.
    """

    context: int | None = None
    ragged: Ragged | None = None

    def __init__(self, model: Any) -> None:
        self.model = model
        self.key: tuple[Any, ...] = (type(self), model)

    def score(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, self.model.initial_state(len(tokens)))[0]

    def read(self, tokens: Tensor, state: Any, *, consume: bool = False) -> tuple[Tensor, Any]:
        if state is None:
            state = self.model.initial_state(len(tokens))
        logits, state = self.model(tokens, state)
        return logits[:, -1], state

    def unread(self, tokens: Tensor) -> Tensor:
        return tokens[:, -1:]


class CausalNetwork:
    """
    A causal model of transformers as a network, whose state is its key-value cache as tensors.

    The state is a list of one tuple ``(keys, values, length)`` per layer, with tensors of shape
    ``(batch, heads, t, width)`` and the number of tokens read. A cache object of transformers is
    made from it for each call and taken apart after it, so that no state is changed in place.

    A model that keeps something else, as RWKV and Mamba do, is read anew at every step, with a
    :class:`~pyro_tilt.infer.SamplerWarning` unless ``use_cache`` is False.

    :param model: called with ``input_ids`` and ``past_key_values``.
    :param use_cache: if False everything is read again at every step.
    """

    def __init__(self, model: Any, *, use_cache: bool = True) -> None:
        self.model = model
        config = model.config.get_text_config(decoder=True)
        found = getattr(config, "max_position_embeddings", None)
        self.context: int | None = found if found is None or found > 0 else None
        self._padding = getattr(config, "pad_token_id", None)
        self._empty: Any = None
        self._kinds: tuple[type, ...] = ()
        if use_cache:
            caches = require("transformers.cache_utils")
            self._kinds = (caches.DynamicLayer, caches.DynamicSlidingWindowLayer)
            self._empty = caches.DynamicCache(config=model.config)
        self.use_cache = use_cache and self._keeps_keys_and_values()
        self.key: tuple[Any, ...] = (type(self), model, self.use_cache)
        self.ragged: Ragged | None = None
        if self.use_cache and takes_padding(model):
            self.ragged = PaddedReads(self, windows=self._windows())

    def score(self, tokens: Tensor) -> Tensor:
        mask = self._mask(tokens, 0)
        return self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits

    def read(self, tokens: Tensor, state: Any, *, consume: bool = False) -> tuple[Tensor, Any]:
        if not self.use_cache:
            return self.score(tokens)[:, -1], []
        cache = self._cache(state)
        if consume and state:
            # The old keys of a layer can then be freed as soon as it has its new ones.
            state.clear()
        mask = self._mask(tokens, cache.get_seq_length())
        logits, state = self._call(tokens, cache, attention_mask=mask)
        return logits[:, -1], state

    def read_padded(
        self, tokens: Tensor, state: Any, mask: Tensor, positions: Tensor
    ) -> tuple[Tensor, Any]:
        """
        Reads rows of unequal length that have been padded to one.

        :param tokens: that the state has not read, shape ``(batch, t)``.
        :param state: see :meth:`read`; it is used up.
        :param mask: zeros at padding, of the state and of the tokens, shape ``(batch, s + t)``.
        :param positions: of the tokens in their own sequences, shape ``(batch, t)``.
        :returns: logits after every token, ``(batch, t, V)``, and the new state.
        """
        cache = self._cache(state)
        if state:
            state.clear()
        return self._call(tokens, cache, attention_mask=mask, position_ids=positions)

    def _call(self, tokens: Tensor, cache: Any, **options: Any) -> tuple[Tensor, Any]:
        found = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, **options)
        return found.logits, self._state(getattr(found, "past_key_values", None))

    def unread(self, tokens: Tensor) -> Tensor:
        return tokens[:, -1:] if self.use_cache else tokens

    def _mask(self, tokens: Tensor, before: int) -> Tensor | None:
        """Ones where a token could be taken for padding; elsewhere None, which is faster."""
        if self._padding is None or not bool((tokens == self._padding).any()):
            return None
        return tokens.new_ones(len(tokens), before + tokens.shape[1])

    def _windows(self) -> list[int]:
        """The most tokens that layers keep; nothing of those that keep all."""
        found = [getattr(layer, "sliding_window", None) for layer in self._empty.layers]
        return [window - 1 for window in found if window is not None]

    def _keeps_keys_and_values(self) -> bool:
        """Whether a cache of the model has the form that states have; warns where it has not."""
        plain = getattr(self.model, "get_base_model", lambda: self.model)()
        known = inspect.signature(plain.forward).parameters
        # A wrapper that takes anything says nothing of what it takes.
        takes = "past_key_values" in known or "input_ids" not in known
        if takes and all(type(layer) in self._kinds for layer in self._empty.layers):
            return True
        # The warnings belong to the samplers, which lie beside this package.
        from pyro_tilt.infer.errors import SamplerWarning

        warnings.warn(
            f"{type(self.model).__name__} does not keep keys and values of the tokens alone, so "
            "that the whole sequence is read anew at every step, which is slower; pass "
            "use_cache=False to do so without this warning",
            SamplerWarning,
            stacklevel=5,
        )
        return False

    def _cache(self, state: Any) -> Any:
        # Copies of one level are faster than a new cache, which reads the whole configuration.
        cache = copy.copy(self._empty)
        cache.layers = [copy.copy(layer) for layer in self._empty.layers]
        for layer, (keys, values, length) in zip(cache.layers, state or ()):
            layer.keys, layer.values = keys, values
            layer.dtype, layer.device = keys.dtype, keys.device
            layer.is_initialized = True
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = length
        return cache

    def _state(self, cache: Any) -> list[tuple[Tensor, Tensor, int]]:
        layers = self._known_layers(cache)
        return [(each.keys, each.values, each.get_seq_length()) for each in layers]

    def _known_layers(self, cache: Any) -> list[Any]:
        layers = getattr(cache, "layers", None)
        odd = [each for each in layers or () if type(each) not in self._kinds]
        if layers is None or odd:
            kind = type(odd[0] if odd else cache).__name__
            raise TypeError(
                f"the cache of {type(self.model).__name__} holds a {kind}, which is not keys and "
                "values of the tokens alone; pass use_cache=False to read them anew at every step"
            )
        return list(layers)


def as_network(model: nn.Module, *, use_cache: bool) -> Network:
    """
    The network of a module.

    :param model: a :class:`RecurrentModel` or a causal model of transformers.
    :param use_cache: see :class:`CausalNetwork`.
    :raises TypeError: for another module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    if isinstance(model, RecurrentModel):
        return RecurrentNetwork(model)
    if hasattr(getattr(model, "config", None), "get_text_config"):
        return CausalNetwork(model, use_cache=use_cache)
    raise TypeError(
        f"{type(model).__name__} is neither a causal model of transformers nor a recurrent module "
        "with initial_state(batch) and forward(tokens, state) -> (logits, state)"
    )


def require(name: str) -> ModuleType:
    """
    Imports a module of transformers, which never looks for a network here.

    :param name: dotted module name.
    :raises ImportError: naming the extra, where it is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"transformers models need {name!r}: run `pip install pyro-tilt[language]`"
        ) from error


def module_device(model: nn.Module) -> torch.device:
    """Where the parameters of a module are."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
