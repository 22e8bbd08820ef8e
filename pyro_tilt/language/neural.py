# SPDX-License-Identifier: Apache-2.0
"""Networks that write, with the exact law of what they write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.language.checks import check_tokens, given_tokens, whole_number
from pyro_tilt.language.neural_choice import TokenChoice
from pyro_tilt.language.neural_generation import Generation, write
from pyro_tilt.language.neural_networks import as_network, module_device, require
from pyro_tilt.language.neural_program import NeuralProgram
from pyro_tilt.language.neural_reader import Reader

__all__ = ["NeuralLM"]

Prompt = str | Sequence[int] | Tensor


class NeuralLM:
    r"""
    A network as a language model: a transformers causal model, or a recurrent module.

    .. math:: p(y) = \prod_t p(y_t \mid y_{<t})

    with the law of a token after ``suppress_tokens``, ``temperature``, ``top_k`` and ``top_p``, in
    that order (:class:`~pyro_tilt.language.neural_choice.TokenChoice`): everywhere, what is scored
    is what is sampled. After a stop token a sequence is filled with ``stop_token``, at probability
    one. A sequence without a stop token within ``max_tokens`` has the probability of being cut
    there, and is told apart by :meth:`finished` and by the site ``tokens_finished`` of a program:
    a reward or a :class:`~pyro_tilt.rewards.Constraint` may read it.

    A recurrent module has ``initial_state(batch)``, any nesting of tensors with the batch first,
    and ``forward(tokens, state)`` of tokens ``(batch, t)`` to logits ``(batch, t, V)`` and the new
    state. The module is put into evaluation mode, because dropout would make its law random, and
    counts its rows from then on (see :func:`pyro_tilt.infer.counted`). Rows that have come to
    their stop token are not computed. Log probabilities of one sequence differ in the last digits
    between batches, so that with ``top_p`` or ``top_k`` a token on the very edge may be in the law
    of one and not of another.

    :param model: the network.
    :param max_tokens: how many tokens to write after the prompt.
    :param stop_token: ends a sequence; of several the first fills it. None for full length.
    :param begin_token: what the network reads before anything else; it is no part of sequences.
    :param temperature: divides the logits.
    :param top_k: only the k most probable tokens; None for all.
    :param top_p: only the most probable tokens of this mass together; None for all.
    :param suppress_tokens: tokens that are never written.
    :param context: the most tokens that the network reads; by default what its configuration says.
    :param use_cache: whether to keep keys and values of a transformers model from step to step;
        one that has none, as RWKV and Mamba, is read anew, with a warning unless this is False.
    :param tokenizer: a transformers tokenizer, for prompts and results that are text.
    :param decode: a function of tokens ``(n, t)`` to n texts, in place of that of the tokenizer.
    :raises TypeError: for a module of another kind.
    :raises ValueError: for options out of range and unknown tokens.

    >>> class Pair(nn.Module):
    ...     def initial_state(self, batch):
    ...         return torch.zeros(batch, 1)
    ...     def forward(self, tokens, state):
    ...         return torch.stack([0 * tokens, tokens], -1).float(), state
    >>> lm = NeuralLM(Pair(), max_tokens=3, begin_token=0)
    >>> lm.log_prob(torch.tensor([1, 1, 1])).exp()  # 1/2, and twice e / (1 + e)
    tensor(0.2672)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_tokens: int,
        stop_token: int | Sequence[int] | None = None,
        begin_token: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        suppress_tokens: Sequence[int] = (),
        context: int | None = None,
        use_cache: bool = True,
        tokenizer: Any = None,
        decode: Callable[[Tensor], list[str]] | None = None,
    ) -> None:
        max_tokens = whole_number("max_tokens", max_tokens, at_least=1)
        # The count of rows belongs to the samplers, which lie beside this package.
        from pyro_tilt.infer.cost import counted

        choice = TokenChoice(temperature, top_k, top_p, tuple(suppress_tokens))
        self.network = as_network(model, use_cache=use_cache)
        self.model = counted(model.eval())
        self.max_tokens = max_tokens
        stops: list[Any] = [] if stop_token is None else [stop_token]
        if isinstance(stop_token, Iterable):
            stops = list(stop_token)
        self.stop_tokens = tuple(whole_number("stop_token", token) for token in stops)
        self.stop_token = self.stop_tokens[0] if stops else None
        self.begin_token = begin_token
        self.context = self.network.context
        if context is not None:
            self.context = whole_number("context", context, at_least=1)
        self.tokenizer = tokenizer
        self._decode = decode
        self.device = module_device(model)
        self.reader = Reader(self.network, choice, self.stop_tokens, begin_token, self.device)
        self.vocabulary_size = self._count_tokens()
        begins = [] if begin_token is None else [begin_token]
        named = {"stop_token": stops, "suppress_tokens": suppress_tokens, "begin_token": begins}
        for name, tokens in named.items():
            given_tokens(list(tokens), self.vocabulary_size, name, self.device)
        if set(range(self.vocabulary_size)) <= set(suppress_tokens):
            raise ValueError("suppress_tokens leave no token to write")

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        max_tokens: int,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> NeuralLM:
        """
        Loads any causal model that transformers has saved, from a folder and without a network.

        Its tokenizer is loaded where the folder has one, and models without keys and values, as
        RWKV and Mamba, run the same way, only slower (``use_cache``). ``stop_token`` is by default
        the end of its generation configuration.

        :param path: a folder with ``config.json`` and weights.
        :param max_tokens: see :class:`NeuralLM`, as are ``options``.
        :param dtype: of the weights, by default as saved.
        :param device: where to put them.
        :raises FileNotFoundError: for a path that is no such folder.
        :raises ImportError: where transformers is not installed, naming the extra.
        """
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} is no folder with a config.json; models are loaded from disk alone: "
                "save one there with save_pretrained"
            )
        transformers = require("transformers")
        offline: dict[str, Any] = {"local_files_only": True}
        chosen = {} if dtype is None else {"dtype": dtype}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **offline, **chosen)
        if device is not None:
            model = model.to(device)
        saved = any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer_config.json"))
        if saved and "tokenizer" not in options:
            options["tokenizer"] = transformers.AutoTokenizer.from_pretrained(folder, **offline)
        if "stop_token" not in options:
            ends = getattr(model.generation_config, "eos_token_id", None)
            options["stop_token"] = model.config.eos_token_id if ends is None else ends
        return cls(model.requires_grad_(False), max_tokens=max_tokens, **options)

    def __repr__(self) -> str:
        return f"NeuralLM({type(self.model).__name__}, max_tokens={self.max_tokens})"

    def program(self, prompt: Prompt = (), *, name: str = "token") -> NeuralProgram:
        """
        The model as a Pyro program that returns the sequence, its prompt included.

        Its sites are ``token_t`` with t from the length of the prompt on, in a scan whose carry
        is a :class:`~pyro_tilt.language.Decoding` with the state of the network, then
        ``tokens_finished`` where there are stop tokens, and ``tokens``, the whole sequence.

        :param prompt: the first tokens, or text where there is a tokenizer.
        :param name: of the sites.
        :returns: a program without arguments, which can ``decode``.
        :raises ValueError: for a prompt that is too long for the context, is not in the vocabulary
            or holds a stop token, and for an empty one where there is no ``begin_token``.
        """
        return NeuralProgram(self, self._prompt(prompt), name)

    def log_prob(self, sequences: Tensor, *, prompt_length: int = 0) -> Tensor:
        """
        Exact log probability of sequences, or of their beginnings, under the law that is sampled.

        :param sequences: tokens, shape ``(..., T)``, prompt included.
        :param prompt_length: how many first tokens are given and not counted.
        :returns: shape ``(...)``; ``-inf`` for another token than ``stop_token`` after a stop.
        :raises ValueError: for unknown tokens, too long a sequence, or a first token that has no
            law because nothing stands before it.
        """
        self._check_tokens(sequences, "sequences")
        self._check_length(sequences.shape[-1], 0)
        if prompt_length == 0 and self.begin_token is None:
            raise ValueError(
                "the first token has no law where nothing stands before it; give begin_token to "
                "the model, or prompt_length of at least 1"
            )
        if not 0 <= prompt_length < max(1, sequences.shape[-1]):
            raise ValueError(
                f"prompt_length={prompt_length} leaves nothing of {sequences.shape[-1]} tokens"
            )
        rows = sequences.reshape(-1, sequences.shape[-1]).to(self.device)
        found = self.reader.score(rows, prompt_length, self.vocabulary_size)
        return found.reshape(sequences.shape[:-1])

    def next_log_probs(self, tokens: Tensor | None) -> Tensor:
        """
        Log probabilities of the next token, with everything read anew.

        :param tokens: the tokens so far, ``(..., t)``; None for none.
        :returns: shape ``(..., V)``, without the tokens' batch axes for None.
        """
        if tokens is None:
            return self.reader.start(torch.empty(1, 0, dtype=torch.long))[0][0]
        self._check_tokens(tokens, "tokens")
        self._check_length(tokens.shape[-1], 1)
        law, _ = self.reader.start(tokens.reshape(-1, tokens.shape[-1]))
        return law.reshape(*tokens.shape[:-1], -1)

    @torch.no_grad()
    def generate(self, n: int, prompt: Prompt = (), *, seed: int | None = None) -> Generation:
        """
        Writes ``n`` sequences after a prompt, all at once.

        :param n: how many.
        :param prompt: see :meth:`program`.
        :param seed: makes the run reproduce; None uses the global random state.
        """
        return self.generate_each([prompt], n, seed=seed)[0]

    @torch.no_grad()
    def generate_each(
        self, prompts: Sequence[Prompt], n: int, *, seed: int | None = None
    ) -> list[Generation]:
        """
        Writes ``n`` sequences after each of several prompts; those of one length share each call.

        :param prompts: see :meth:`program`.
        :param n: how many for each.
        :param seed: as in :meth:`generate`.
        :returns: one :class:`Generation` per prompt.
        """
        n = whole_number("n", n, at_least=1)
        starts = [self._prompt(prompt) for prompt in prompts]
        generator = None
        if seed is not None:
            generator = torch.Generator(self.device).manual_seed(seed)
        found: dict[int, Generation] = {}
        for length in sorted({len(start) for start in starts}):
            places = [i for i, start in enumerate(starts) if len(start) == length]
            same = torch.stack([starts[i] for i in places])
            written = write(self.reader, same, n, self.max_tokens, generator)
            found.update(zip(places, written))
        return [found[i] for i in range(len(starts))]

    def decode(self, tokens: Tensor) -> list[str]:
        """
        The texts of sequences; their numbers where the model has neither tokenizer nor decode.

        :param tokens: shape ``(n, t)``.
        """
        if self._decode is not None:
            return self._decode(tokens)
        if self.tokenizer is None:
            return [" ".join(map(str, row)) for row in tokens.tolist()]
        texts: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts

    def finished(self, sequences: Tensor) -> Tensor:
        """
        Whether sequences came to a stop token, shape ``(...)``; True for all without stop tokens.

        :param sequences: shape ``(..., t)``.
        """
        if not self.stop_tokens:
            return torch.ones(sequences.shape[:-1], dtype=torch.bool, device=sequences.device)
        return self.reader.ended(sequences)

    def _prompt(self, prompt: Prompt) -> Tensor:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("a prompt of text needs tokenizer=; give its tokens")
            prompt = self.tokenizer(prompt)["input_ids"]
        tokens = given_tokens(prompt, self.vocabulary_size, "prompt", self.device)
        if tokens.dim() != 1:
            raise ValueError(
                f"prompt must be a list of tokens, got shape {tuple(tokens.shape)}; several "
                "prompts are several programs"
            )
        if not len(tokens) and self.begin_token is None:
            raise ValueError(
                "prompt is empty, and the network has nothing to read before the first token; give "
                "a prompt, or begin_token to the model"
            )
        self._check_length(len(tokens), self.max_tokens)
        if bool(self.reader.ended(tokens)):
            raise ValueError(
                f"prompt holds one of the stop tokens {list(self.stop_tokens)}, which end a "
                "sequence; a mark that begins all sequences is the begin_token of the model"
            )
        return tokens

    def _check_tokens(self, tokens: Tensor, what: str) -> None:
        check_tokens(tokens, self.vocabulary_size, what)

    def _check_length(self, given: int, fresh: int) -> None:
        # The last token is written and never read.
        begin = int(self.begin_token is not None)
        needed = begin + given + fresh - 1
        if self.context is not None and needed > self.context:
            raise ValueError(
                f"a prompt of {given} tokens and max_tokens={fresh} need {needed} positions of the "
                f"network, whose context is {self.context}; shorten one of them"
                if fresh
                else f"sequences of {given} tokens are longer than the context of {self.context}"
            )

    @torch.no_grad()
    def _count_tokens(self) -> int:
        """The width of the logits, which a configuration may overstate."""
        probe = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return int(self.network.score(probe).shape[-1])
