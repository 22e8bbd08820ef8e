# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import torch
from neural_models import TwoBack, tiny_gpt2
from torch import nn

from pyro_tilt import rewards
from pyro_tilt.infer import SMC, BestOfN, BlockBestOfN, SamplerWarning
from pyro_tilt.infer.cost import CountRows
from pyro_tilt.language import NeuralLM

pytest.importorskip("transformers", reason="needs pyro-tilt[language]")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def model(**options):
    return NeuralLM(tiny_gpt2(), **{"max_tokens": 12, "begin_token": 0, "stop_token": 1, **options})


def reward():
    return rewards.Bounded(lambda y: (y == 5).float().mean(-1), low=0.0, high=1.0, event_dim=1)


def test_cached_generation_equals_uncached():
    cached, anew = model().generate(200, seed=1), model(use_cache=False).generate(200, seed=1)
    assert (cached.tokens == anew.tokens).all()
    torch.testing.assert_close(cached.log_prob, anew.log_prob, **CLOSE)
    torch.testing.assert_close(model().log_prob(cached.tokens), cached.log_prob, **CLOSE)
    assert 0.1 < cached.finished.float().mean() < 1.0


@pytest.mark.parametrize("prompt", [[], [4], [3, 7, 2]])
def test_the_law_after_every_exchange_is_that_of_the_whole_past(prompt):
    lm = model(top_p=0.95)
    gaps = []

    def twist(carry, t):
        with torch.no_grad():
            law, _ = lm.reader.advance(carry.tokens, carry.state)
            gaps.append((law.exp() - lm.next_log_probs(carry.tokens).exp()).abs().max())
        # Pulls lineages apart, so that each exchange moves most particles.
        return 2.0 * carry.tokens[:, -1].double()

    options = {"num_particles": 64, "seed": 3, "ess_threshold": 1.0, "check_lineage": False}
    result = SMC(lm.program(prompt), reward=reward(), beta=4.0, twist=twist, **options).run()
    assert result.steps["resampled"].sum() > 8
    assert len(gaps) == 12
    assert max(gaps) < 1e-5


def test_smc_and_blocks_run_alike_with_and_without_a_cache():
    runs = []
    for use_cache in (True, False):
        lm = model(use_cache=use_cache)
        smc = SMC(
            lm.program([4]),
            reward=reward(),
            beta=5.0,
            num_particles=80,
            seed=2,
            ess_threshold=1.0,
            twist=lambda c, t: (c.tokens == 5).double().sum(-1),
        ).run()
        best = BlockBestOfN(
            lm.program([4]),
            reward=reward(),
            n=4,
            block=3,
            seed=2,
            num_samples=20,
            value=lambda c, t: (c.tokens == 5).sum(-1),
        ).run()
        runs.append((smc, best))  # fmt: skip
    (smc, best), (smc_anew, best_anew) = runs
    assert (smc.samples["tokens"] == smc_anew.samples["tokens"]).all()
    torch.testing.assert_close(smc.log_weights, smc_anew.log_weights, rtol=1e-5, atol=1e-5)
    assert (best.samples["tokens"] == best_anew.samples["tokens"]).all()


def test_a_step_leaves_the_state_that_it_was_given():
    lm = model()
    tokens = torch.randint(2, 11, (5, 4))
    _, state = lm.reader.start(tokens)
    tokens = torch.cat([tokens, torch.full((5, 1), 3)], -1)
    before = [(keys.clone(), values.clone(), length) for keys, values, length in state]
    first, _ = lm.reader.advance(tokens, state)
    again, _ = lm.reader.advance(tokens, state)
    assert (first == again).all()
    for (keys, values, length), old in zip(state, before):
        assert torch.equal(keys, old[0]) and torch.equal(values, old[1]) and length == old[2]


def test_saved_runs_resume(tmp_path):
    lm = model()
    options = {"num_particles": 30, "seed": 0, "ess_threshold": 1.0, "save_every": 5}
    sampler = SMC(lm.program(), reward=reward(), save_to=tmp_path / "run.pt", **options)
    whole = sampler.run()
    resumed = SMC(lm.program(), reward=reward(), **options).resume(tmp_path / "run.pt")
    assert torch.equal(whole.samples["tokens"], resumed.samples["tokens"])


def test_the_context_is_read_from_the_configuration():
    lm = model()
    assert lm.context == 16
    lm.program([4] * 4)
    with pytest.raises(ValueError, match="context is 16"):
        lm.program([4] * 5)
    assert lm.program([4] * 4)().shape == (16,)


def test_rows_are_counted():
    lm = model(stop_token=None)
    with CountRows() as count:
        lm.generate(7)
    assert count.rows == 1 + 7 * 11
    result = BestOfN(lm.program(), reward=reward(), n=3, num_samples=5, seed=0).run()
    assert result.cost.network_rows == 1 + 15 * 11


def test_sliding_windows_are_kept():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=11, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=4, initializer_range=0.5,
        max_position_embeddings=32,
    )  # fmt: skip
    options = {"max_tokens": 10, "begin_token": 0, "stop_token": 1}
    net = transformers.MistralForCausalLM(config)
    cached = NeuralLM(net, **options).generate(60, seed=0)
    anew = NeuralLM(net, use_cache=False, **options).generate(60, seed=0)
    assert (cached.tokens == anew.tokens).all()
    torch.testing.assert_close(cached.log_prob, anew.log_prob, **CLOSE)
    smc = SMC(NeuralLM(net, **options).program(), num_particles=20, seed=0, ess_threshold=1.0,
              twist=lambda c, t: c.tokens[:, -1].double(), reward=reward()).run()  # fmt: skip
    assert smc.samples["tokens"].shape == (20, 10)


RECURRENT = {
    "Rwkv": {"hidden_size": 8, "num_hidden_layers": 2, "context_length": 32},
    "Mamba": {"hidden_size": 8, "num_hidden_layers": 2, "state_size": 4},
    "RecurrentGemma": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
                       "intermediate_size": 16, "lru_width": 16},
}  # fmt: skip


@pytest.mark.parametrize("kind", RECURRENT)
def test_checkpoints_without_keys_and_values_are_read_anew(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    options = {"vocab_size": 11, "eos_token_id": 1, "tie_word_embeddings": False}
    config = getattr(transformers, f"{kind}Config")(**options, **RECURRENT[kind])
    net = getattr(transformers, f"{kind}ForCausalLM")(config)
    net.save_pretrained(tmp_path)
    # The scale of logits under fresh weights depends on the kind.
    spread = float(net.eval()(torch.arange(11)[None], use_cache=False).logits.detach().std())
    options = {"max_tokens": 5, "begin_token": 0, "temperature": spread}
    with pytest.warns(SamplerWarning, match=f"{kind}.* slower; pass use_cache=False") as caught:
        lm = NeuralLM.from_pretrained(tmp_path, **options)
    assert len(caught) == 1
    with pytest.warns(SamplerWarning, match="slower") as caught:
        NeuralLM(net, **options)
    assert "pyro_tilt" not in caught[0].filename
    written = lm.generate(40, [3, 4], seed=0)
    torch.testing.assert_close(lm.log_prob(written.tokens, prompt_length=2), written.log_prob)
    assert len(written.tokens.unique(dim=0)) > 20
    silent = NeuralLM.from_pretrained(tmp_path, use_cache=False, **options)
    assert torch.equal(silent.generate(40, [3, 4], seed=0).tokens, written.tokens)
    smc = SMC(lm.program([3]), num_particles=20, seed=0, ess_threshold=1.0, check_lineage=False,
              twist=lambda c, t: c.tokens[:, -1].double(), reward=reward()).run()  # fmt: skip
    # Every step drew from the law after the particle's own past, whatever was exchanged.
    law = lm.log_prob(smc.samples["tokens"], prompt_length=1)
    assert law.isfinite().all() and smc.steps["resampled"].any()


@pytest.fixture
def checkpoint(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    net = tiny_gpt2().requires_grad_(False)
    net.save_pretrained(tmp_path)
    words = ["<s>", "</s>", *"abcdefghi"]
    table = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<s>")
    tokenizer = tokenizers.Tokenizer(table)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(tmp_path)
    return tmp_path, net.eval()


def test_checkpoints_load_from_disk(checkpoint):
    folder, net = checkpoint
    lm = NeuralLM.from_pretrained(folder, max_tokens=6, temperature=0.8)
    assert lm.stop_token == 1
    written = lm.generate(20, "a c", seed=0)
    assert written.tokens[0, :2].tolist() == [2, 4]
    expected = (net(input_ids=written.tokens[:, :-1]).logits / 0.8).log_softmax(-1)[:, 1:]
    each = expected.gather(-1, written.tokens[:, 2:, None])[..., 0]
    stopped = (written.tokens[:, 2:] == 1).long().cumsum(-1)
    counted = (stopped == 0) | ((stopped == 1) & (written.tokens[:, 2:] == 1))
    torch.testing.assert_close((each * counted).sum(-1), written.log_prob, **CLOSE)
    texts = lm.program("a c").decode(written.tokens)
    assert all(text.startswith("a c") and "</s>" not in text for text in texts)


def test_half_precision_loads(checkpoint):
    lm = NeuralLM.from_pretrained(checkpoint[0], max_tokens=4, dtype=torch.bfloat16)
    assert next(lm.model.parameters()).dtype == torch.bfloat16
    assert lm.generate(3, [4], seed=0).log_prob.dtype == torch.float32


def test_folders_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        NeuralLM.from_pretrained(tmp_path / "gpt2", max_tokens=3)


def test_without_transformers_the_extra_is_named(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pyro-tilt\[language\]"):
        NeuralLM.from_pretrained(tmp_path, max_tokens=3)
    # A recurrent module needs nothing of it.
    assert NeuralLM(TwoBack(), max_tokens=2, begin_token=3).generate(2).tokens.shape == (2, 2)


def test_dropout_is_off():
    lm = model()
    assert not lm.model.training
    assert any(isinstance(each, nn.Dropout) for each in lm.model.modules())
    tokens = torch.randint(2, 11, (4, 6))
    assert torch.equal(lm.log_prob(tokens), lm.log_prob(tokens))
