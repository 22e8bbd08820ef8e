# SPDX-License-Identifier: Apache-2.0
"""A network reads sequences of unequal length as it reads each alone."""

import pytest
import torch
from neural_models import tiny_gpt2

from pyro_tilt.language.neural_networks import CausalNetwork
from pyro_tilt.ops.reindex import reindex

transformers = pytest.importorskip("transformers", reason="needs pyro-tilt[language]")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.5,
    "max_position_embeddings": 40,
}
GROUPED = {**SMALL, "num_key_value_heads": 1}
KINDS = {
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": 12},
    "Qwen2": GROUPED,
    "GPTNeoX": SMALL,
    "Gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 12},
}


def network(kind):
    if kind == "GPT2":
        return CausalNetwork(tiny_gpt2(context=40).eval())
    torch.manual_seed(0)
    options = dict(KINDS[kind], pad_token_id=0)
    config = getattr(transformers, f"{kind}Config")(**options)
    return CausalNetwork(getattr(transformers, f"{kind}ForCausalLM")(config).eval())


def draw(*shape, seed):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def assert_equal_states(found, expected):
    assert len(found) == len(expected)
    for (keys, values, length), (theirs, others, count) in zip(found, expected):
        assert length == count
        torch.testing.assert_close(keys, theirs, **CLOSE)
        torch.testing.assert_close(values, others, **CLOSE)


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("kind", ["GPT2", *KINDS])
def test_reading_together_is_reading_alone(kind, exchanged):
    net = network(kind)
    prompts = [draw(1, 1, seed=1), draw(1, 7, seed=2), draw(1, 4, seed=3), draw(1, 11, seed=4)]
    start = net.ragged.join([(prompt, None) for prompt in prompts])
    alone = [net.read(prompt, None) for prompt in prompts]
    rows = [3, 1, 4, 2]
    for step in range(12):
        for (logits, state), (expected, other) in zip(start, alone):
            torch.testing.assert_close(logits, expected, **CLOSE)
            assert_equal_states(state, other)
        indices = [
            torch.zeros(n, dtype=torch.long) if not step else draw(n, seed=n + 10 * step) % n
            for n in rows
        ]
        if step and not exchanged:
            indices = [torch.arange(n) for n in rows]
        if exchanged or not step:
            start = [(None, reindex(s, i, size=1 if not step else len(i)))
                     for (_, s), i in zip(start, indices)]  # fmt: skip
            alone = [(None, reindex(s, i, size=1 if not step else len(i)))
                     for (_, s), i in zip(alone, indices)]  # fmt: skip
        tokens = [draw(n, 1, seed=100 * step + n) for n in rows]
        start = net.ragged.join([(t, s) for t, (_, s) in zip(tokens, start)])
        alone = [net.read(t, s) for t, (_, s) in zip(tokens, alone)]


def test_the_states_that_are_read_stay():
    net = network("GPT2")
    parts = []
    for seed, length in enumerate((2, 5)):
        _, state = net.read(draw(3, length, seed=seed), None)
        parts.append((draw(3, 1, seed=9), state))
    before = [[layer[0].clone() for layer in state] for _, state in parts]
    first, again = net.ragged.join(parts), net.ragged.join(parts)
    for (logits, _), (other, _) in zip(first, again):
        assert torch.equal(logits, other)
    for (_, state), kept in zip(parts, before):
        assert all(torch.equal(layer[0], old) for layer, old in zip(state, kept))


def test_caches_that_still_lie_together_are_not_copied():
    net = network("GPT2")
    parts = []
    for seed, length in enumerate((2, 5, 3)):
        parts.append((draw(2, 1, seed=9), net.read(draw(2, length, seed=seed), None)[1]))
    joined = net.ragged.join(parts)
    whole = joined[1][1][0][0]
    made = []
    net.model.register_forward_pre_hook(
        lambda module, args, kwargs: made.append(kwargs["past_key_values"].layers[0].keys),
        with_kwargs=True,
    )
    tokens = [draw(2, 1, seed=20 + i) for i in range(3)]
    net.ragged.join([(t, s) for t, (_, s) in zip(tokens, joined)])
    assert made[0].untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    # In another order, or without the first, they do not.
    for order in ([1, 0, 2], [2, 1], [0, 0, 1]):
        found = net.ragged.join([(tokens[i], joined[i][1]) for i in order])
        for i, (logits, _) in zip(order, found):
            torch.testing.assert_close(logits, net.read(tokens[i], joined[i][1])[0], **CLOSE)
    assert net.read(tokens[0], joined[0][1])[1][0][0].shape[2] == 4


def test_caches_of_two_joined_calls_are_not_taken_for_those_of_one():
    net = network("GPT2")
    calls = []
    for seed in (0, 10):
        parts = [(draw(2, 1, seed=seed), net.read(draw(2, n, seed=seed + n), None)[1])
                 for n in (2, 5)]  # fmt: skip
        calls.append(net.ragged.join(parts))
    # The second rows of the second call lie in its memory as those of the first do in theirs.
    fresh = draw(2, 1, seed=30)
    chosen = [calls[0][0][1], calls[1][1][1]]
    for state, (logits, after) in zip(chosen, net.ragged.join([(fresh, s) for s in chosen])):
        expected, other = net.read(fresh, state)
        torch.testing.assert_close(logits, expected, **CLOSE)
        assert_equal_states(after, other)


def test_windows_that_a_prompt_exceeds_keep_it_apart():
    net = network("Mistral")
    short, long = draw(1, 11, seed=0), draw(1, 12, seed=0)
    assert net.ragged.kind(short, None) is not None and net.ragged.kind(long, None) is None
    _, state = net.read(long, None)
    # Its window, once read, goes with others.
    assert net.ragged.kind(draw(1, 1, seed=1), state) is not None


def test_which_models_take_padding():
    assert network("Llama").ragged is not None
    for kind, options in {
        "Bloom": {"vocab_size": 11, "hidden_size": 16, "n_layer": 2, "n_head": 2},
        "Llama": {**GROUPED, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0,
                                                 "rope_theta": 1e4}},
    }.items():  # fmt: skip
        config = getattr(transformers, f"{kind}Config")(**options)
        made = CausalNetwork(getattr(transformers, f"{kind}ForCausalLM")(config))
        assert made.use_cache and made.ragged is None, kind
    assert CausalNetwork(tiny_gpt2(), use_cache=False).ragged is None
