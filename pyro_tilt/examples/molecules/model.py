# SPDX-License-Identifier: Apache-2.0
"""The networks that write molecules, and their shipped weights."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.examples.extras import require
from pyro_tilt.examples.molecules.vocabulary import Vocabulary
from pyro_tilt.language import NeuralLM

WEIGHTS = Path(__file__).parent / "weights"
CHARACTERS = "#()+-12345678=ABCFHIMNOPSTVZ[]abcdegilnorstu"
VOCABULARY = Vocabulary(CHARACTERS)
CONTEXT = 66


class GatedRecurrent(nn.Module):
    """
    A recurrent language model whose state has the batch axis first.

    :param size: number of tokens.
    :param embedding: width of the token vectors.
    :param hidden: width of each layer.
    :param layers: number of layers.
    :param dropout: between layers, while training.
    """

    def __init__(
        self, size: int, *, embedding: int, hidden: int, layers: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, embedding)
        self.recurrent = nn.GRU(
            embedding, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0
        )
        self.head = nn.Linear(hidden, size)

    def initial_state(self, batch: int) -> Tensor:
        """
        The state before the first token, shape ``(batch, layers, hidden)``.

        :param batch: number of sequences.
        """
        like = self.head.weight
        return like.new_zeros(batch, self.recurrent.num_layers, self.recurrent.hidden_size)

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """
        Logits of the token after each one.

        :param tokens: shape ``(batch, length)``.
        :param state: shape ``(batch, layers, hidden)``.
        :returns: logits, shape ``(batch, length, size)``, and the state after the last token.
        """
        layers_first = state.transpose(0, 1).contiguous()
        output, last = self.recurrent(self.embedding(tokens), layers_first)
        return self.head(output), last.transpose(0, 1)


def make_gru() -> GatedRecurrent:
    """The untrained generator of 0.66 million parameters."""
    return GatedRecurrent(len(VOCABULARY), embedding=64, hidden=256, layers=2, dropout=0.1)


def make_draft() -> GatedRecurrent:
    """A smaller untrained generator of the same vocabulary, for speculative methods."""
    return GatedRecurrent(len(VOCABULARY), embedding=32, hidden=96, layers=1)


def make_gpt2() -> nn.Module:
    """
    An untrained GPT-2 of three layers, whose key-value cache is a state of many tensors.

    :returns: a transformers ``GPT2LMHeadModel``.
    :raises ImportError: where transformers is not installed, naming the extra.
    """
    transformers = require("transformers", extra="language")
    config = transformers.GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=3,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=VOCABULARY.begin,
        eos_token_id=VOCABULARY.stop,
        pad_token_id=VOCABULARY.stop,
    )
    return transformers.GPT2LMHeadModel(config)


MAKERS = {"gru": make_gru, "draft": make_draft, "gpt2": make_gpt2}
# The longest molecule and its stop.
MAX_TOKENS = CONTEXT - 1


def load_network(name: str) -> nn.Module:
    """
    A trained network, frozen and in evaluation mode.

    :param name: ``"gru"``, ``"draft"`` or ``"gpt2"``.
    :raises ValueError: for another name.
    :raises FileNotFoundError: where the weights are missing, saying how to make them.
    :raises ImportError: where safetensors or transformers is not installed, naming the extra.
    """
    if name not in MAKERS:
        raise ValueError(f"name must be one of {', '.join(MAKERS)}; got {name!r}")
    path = _weights(name)
    with torch.random.fork_rng(devices=[]):
        module: nn.Module = MAKERS[name]()
    state = require("safetensors.torch", extra="language").load_file(str(path))
    # GPT-2 reads and writes tokens with one matrix, which is stored once.
    odd = module.load_state_dict(state, strict=False)
    wrong = sorted({*odd.missing_keys, *odd.unexpected_keys} - {"lm_head.weight"})
    if wrong:
        raise ValueError(f"{path} does not fit the {name} network: {wrong}")
    return module.eval().requires_grad_(False)


def load_facts(name: str) -> dict[str, Any]:
    """
    What the header of a weights file says about its training.

    :param name: see :func:`load_network`.
    """
    safetensors = require("safetensors", extra="language")
    with safetensors.safe_open(str(_weights(name)), framework="pt") as file:
        return json.loads(file.metadata()["facts"])


def load_molecule_model(name: str = "gru", **options: Any) -> NeuralLM:
    """
    A language model of SMILES strings, which ends at its stop token and decodes to strings.

    :param name: see :func:`load_network`.
    :param options: of :class:`~pyro_tilt.language.NeuralLM`, such as ``temperature``.

    >>> lm = load_molecule_model("draft")
    >>> lm.generate(2, seed=1).tokens.shape, lm.vocabulary_size
    (torch.Size([2, 65]), 46)
    """
    fixed: dict[str, Any] = {
        "max_tokens": MAX_TOKENS,
        "stop_token": VOCABULARY.stop,
        "begin_token": VOCABULARY.begin,
        "suppress_tokens": (VOCABULARY.begin,),
        "decode": VOCABULARY.decode,
    }
    return NeuralLM(load_network(name), **{**fixed, **options})


def _weights(name: str) -> Path:
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"no weights at {path}: run `python -m pyro_tilt.examples.molecules.train`"
        )
    return path


def log_probs(module: nn.Module, tokens: Tensor) -> Tensor:
    """
    Log probability of each token given those before it, shape ``(batch, length)``.

    :param module: a :class:`GatedRecurrent` or a transformers causal model.
    :param tokens: shape ``(batch, length)``, without the begin mark.
    """
    inputs = torch.cat([torch.full_like(tokens[:, :1], VOCABULARY.begin), tokens[:, :-1]], 1)
    logits: Any
    if isinstance(module, GatedRecurrent):
        logits, _ = module(inputs, module.initial_state(len(inputs)))
    else:
        logits = module(inputs).logits
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
