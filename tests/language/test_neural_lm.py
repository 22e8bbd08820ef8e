# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pytest
import torch
from neural_models import BEGIN, SIZE, STOP, TwoBack, both
from pyro import poutine
from scipy.stats import chisquare

from pyro_tilt import rewards
from pyro_tilt.infer import SMC, ImportanceSampler
from pyro_tilt.infer.cost import CountRows
from pyro_tilt.language import Decoding, LanguageModel, NeuralLM

# False alarms of a chi-square gate, fixed beforehand.
ALARM = 1e-5


def chi_square(tokens, tabular):
    counts = torch.bincount(tabular.index(tokens), minlength=len(tabular.enumerate()))
    law = tabular.law()
    assert int(counts[law == 0].sum()) == 0
    kept = law > 0
    expected = law[kept] / law[kept].sum() * len(tokens)
    return chisquare(counts[kept].numpy(), expected.numpy()).pvalue


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("stop", [True, False])
def test_log_prob_is_that_of_the_table(temperature, stop):
    neural, tabular = both(temperature=temperature, stop=stop)
    sequences = tabular.enumerate()
    torch.testing.assert_close(neural.log_prob(sequences), tabular.log_law())
    torch.testing.assert_close(neural.log_prob(sequences).exp().sum().item(), 1.0)
    for t in (1, 3):
        part = sequences[:, :t].unique(dim=0)
        torch.testing.assert_close(neural.log_prob(part), tabular.log_prob(part))
        torch.testing.assert_close(neural.next_log_probs(part), tabular.next_log_probs(part))
    torch.testing.assert_close(neural.next_log_probs(None), tabular.next_log_probs(None))
    possible = tabular.log_prob(sequences[:, :2]) > -math.inf
    given = neural.log_prob(sequences, prompt_length=2)
    rest = tabular.log_law() - tabular.log_prob(sequences[:, :2])
    torch.testing.assert_close(given[possible], rest[possible])


def test_is_a_language_model():
    neural, tabular = both()
    assert isinstance(neural, LanguageModel)
    assert (neural.vocabulary_size, neural.stop_token) == (tabular.vocabulary_size, STOP)


def test_a_token_after_the_stop_is_impossible_and_the_filler_certain():
    neural, _ = both()
    ended = torch.tensor([[0, STOP, STOP, STOP], [0, STOP, 2, STOP]])
    log_prob = neural.log_prob(ended)
    assert log_prob[0] == neural.log_prob(ended[0, :2])
    assert log_prob[1] == -math.inf
    assert neural.log_prob(ended, prompt_length=2).tolist() == [0.0, -math.inf]


@pytest.mark.parametrize("seed", [0, 1])
def test_generated_sequences_follow_the_table(seed):
    neural, tabular = both(seed=seed, temperature=0.8)
    written = neural.generate(40_000, seed=seed)
    assert chi_square(written.tokens, tabular) > ALARM
    torch.testing.assert_close(written.log_prob, tabular.log_prob(written.tokens))
    assert (written.finished == (written.tokens == STOP).any(-1)).all()
    assert 0.01 < written.finished.float().mean() < 0.99


def test_the_program_follows_the_table_and_flags_what_was_cut():
    neural, tabular = both()
    samples = ImportanceSampler(neural.program(), num_samples=40_000, seed=2).run().samples
    assert chi_square(samples["tokens"], tabular) > ALARM
    assert (samples["tokens_finished"] == tabular.finished(samples["tokens"])).all()
    assert not samples["tokens_finished"].all()


def test_smc_finds_the_evidence_of_the_table():
    neural, tabular = both(length=5, stop=False)

    def reward(y):
        return (y[..., 1:] == 2).sum(-1) - 0.5 * y[..., 0]

    beta = 1.3
    exact = tabular.soft_values(reward, beta)
    twist = tabular.value_function([0.7 * value for value in exact])
    found = []
    for seed in range(60):
        options = {"num_particles": 300, "seed": seed, "ess_threshold": 1.0}
        sampler = SMC(neural.program(), reward=reward, beta=beta, twist=twist, **options)
        found.append(sampler.run().log_normalizer)
    ratio = (torch.stack(found) - exact[0]).exp()
    # Two-sided, about 1e-5 of false alarms.
    assert abs(ratio.mean() - 1.0) < 4.4 * ratio.std() / math.sqrt(len(ratio))
    assert ratio.std() < 0.2


def test_smc_draws_follow_the_tilted_table():
    neural, tabular = both(length=4)
    reward = rewards.Bounded(lambda y: (y == 2).double().sum(-1), low=0.0, high=4.0, event_dim=1)
    tilted = tabular.log_law() + 1.5 * tabular.reward_table(reward)
    law = tilted.softmax(0)
    twist = tabular.value_function(tabular.soft_values(reward, 1.5))
    total, runs = torch.zeros(len(law), dtype=torch.double), []
    for seed in range(40):
        sampler = SMC(neural.program(), reward=reward, beta=1.5, twist=twist, seed=seed,
                      num_particles=500, ess_threshold=1.0)  # fmt: skip
        result = sampler.run()
        weights = result.get_normalized_weights()
        total = torch.zeros_like(law).index_add(0, tabular.index(result.samples["tokens"]), weights)
        runs.append(total)
    means = torch.stack(runs)
    likely = law > 0.01
    z = (means.mean(0) - law)[likely] / (means.std(0)[likely] / math.sqrt(len(runs)))
    assert likely.sum() > 5
    # At most twenty outcomes; the bias of self-normalisation, of order 1/500, is far below.
    assert z.abs().max() < 5.5


def test_a_plain_run_is_an_ordinary_pyro_program():
    neural, _ = both()
    trace = poutine.trace(neural.program(prompt=[2])).get_trace()
    latent = [name for name in trace.stochastic_nodes if name.startswith("token_")]
    assert latent == ["token_1", "token_2", "token_3", "token_4"]
    tokens = trace.nodes["tokens"]["value"]
    assert tokens.shape == (5,) and tokens[0] == 2
    torch.testing.assert_close(
        sum(trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"]) for name in latent),
        neural.log_prob(tokens, prompt_length=1),
    )
    data = {"token_0": torch.tensor(2), "token_1": torch.tensor(0)}
    held = poutine.condition(neural.program(), data=data)()
    assert held[:2].tolist() == [2, 0]


def test_one_particle_is_a_plain_run():
    neural, _ = both()
    pyro.set_rng_seed(5)
    plain = neural.program()()
    one = ImportanceSampler(neural.program(), num_samples=1, seed=5).run()
    assert (one.samples["tokens"][0] == plain).all()


def test_only_rows_that_go_on_are_computed():
    neural, _ = both(length=6)
    with CountRows() as count:
        written = neural.generate(500, seed=0)
    lengths = (written.tokens != STOP).sum(-1)
    # The first token of all comes from one row; a row is read after each token but the last.
    assert count.rows == 1 + int(lengths.clamp(max=5).sum())


def test_all_that_end_are_filled():
    net = TwoBack()
    net.table[..., 0] = net.table[..., 2] = -torch.inf
    lm = NeuralLM(net, max_tokens=5, begin_token=BEGIN, stop_token=STOP)
    assert (lm.generate(7).tokens == STOP).all()
    result = SMC(lm.program(), num_particles=7, seed=0).run()
    assert (result.samples["tokens"] == STOP).all()


def test_several_stop_tokens_fill_with_the_first():
    lm = NeuralLM(TwoBack(), max_tokens=4, begin_token=BEGIN, stop_token=[STOP, 2])
    tokens = lm.generate(2000, seed=0).tokens
    ends = tokens == 2
    assert ends.any()
    after = ends.cumsum(-1) - ends.long() > 0
    assert (tokens[after] == STOP).all()
    grid = torch.cartesian_prod(*[torch.arange(SIZE)] * 4)
    assert lm.log_prob(grid).exp().sum().item() == pytest.approx(1.0)


def test_prompts_follow_the_rest_of_the_table():
    neural, tabular = both(length=5, stop=False)
    lm = NeuralLM(neural.model, max_tokens=3, begin_token=BEGIN)
    prompts = [[2, 0], [0, 1], [1]]
    written = lm.generate_each(prompts, 20_000, seed=1)
    for prompt, each in zip(prompts, written):
        assert each.tokens.shape == (20_000, len(prompt) + 3)
        assert each.tokens[:, : len(prompt)].unique(dim=0).tolist() == [prompt]
        rest = tabular.given(prompt)
        follow = each.tokens[:, len(prompt) :]
        log_prob = lm.log_prob(each.tokens, prompt_length=len(prompt))
        torch.testing.assert_close(each.log_prob, log_prob)
        whole = rest.log_prob(follow)
        torch.testing.assert_close(log_prob, whole)
    rest, follow = tabular.given([2, 0]), written[0].tokens[:, 2:]
    assert chi_square(follow, rest) > ALARM


def test_prompts_of_one_length_share_their_calls():
    neural, _ = both(stop=False)
    calls = []
    neural.model.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    neural.generate_each([[2, 0], [0, 2], [0, 0]], 10)
    assert calls == [3, 30, 30, 30]


def test_seeds_reproduce_and_leave_the_global_state():
    neural, _ = both()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again = neural.generate(20, seed=3), neural.generate(20, seed=3)
    assert (first.tokens == again.tokens).all()
    assert (torch.get_rng_state() == before).all()
    assert not (neural.generate(20, seed=4).tokens == first.tokens).all()


def test_the_carry_holds_tokens_and_state():
    neural, _ = both()
    seen = []

    def twist(carry, t):
        assert isinstance(carry, Decoding)
        seen.append((carry.tokens.shape, carry.state["before"][0].shape))
        return torch.zeros(6)

    SMC(neural.program(), twist=twist, num_particles=6, seed=0, check_lineage=False).run()
    assert seen[0] == ((6, 1), (6, SIZE))
    assert seen[-1] == ((6, 4), (6, SIZE))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.9}, "max_tokens must be a whole number, got 2.9"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"context": 8.5}, "context must be a whole number"),
        ({"stop_token": 1.2}, "stop_token must be a whole number"),
        ({"stop_token": [1, 1.2]}, "stop_token must be a whole number"),
        ({"begin_token": 2.2}, "begin_token must be integers"),
        ({"suppress_tokens": [0.5]}, "suppress_tokens must be a whole number"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"stop_token": SIZE}, "stop_token must lie in"),
        ({"begin_token": -1}, "begin_token must lie in"),
        ({"suppress_tokens": [7]}, "suppress_tokens must lie in"),
        ({"suppress_tokens": range(SIZE)}, "no token"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NeuralLM(TwoBack(), **{"max_tokens": 3, "begin_token": BEGIN, **options})


@pytest.mark.parametrize(
    "prompt,message",
    [
        ([SIZE], "prompt must lie in"),
        ([1.5], "prompt must be integers"),
        ([True], "prompt must be integers"),
        (torch.tensor([0.0]), "prompt must be integers"),
        ([0, STOP], "stop tokens"),
        ([[0, 2]], "several prompts are several programs"),
        ([0] * 9, "context is 8"),
        ("CC", "tokenizer"),
    ],
)
def test_bad_prompts(prompt, message):
    lm = NeuralLM(TwoBack(), max_tokens=3, begin_token=BEGIN, stop_token=STOP, context=8)
    with pytest.raises(ValueError, match=message):
        lm.program(prompt)
    with pytest.raises(ValueError, match=message):
        lm.generate(2, prompt)


def test_the_context_holds_begin_and_prompt_and_all_but_the_last_token():
    lm = NeuralLM(TwoBack(), max_tokens=3, begin_token=BEGIN, context=8)
    lm.program([0] * 5)
    with pytest.raises(ValueError, match="need 9 positions"):
        lm.program([0] * 6)
    with pytest.raises(ValueError, match="longer than the context"):
        lm.log_prob(torch.zeros(2, 9, dtype=torch.long))


def test_nothing_to_read_before_the_first_token():
    lm = NeuralLM(TwoBack(), max_tokens=3)
    with pytest.raises(ValueError, match="begin_token"):
        lm.program()
    with pytest.raises(ValueError, match="begin_token"):
        lm.log_prob(torch.zeros(2, 3, dtype=torch.long))
    assert lm.log_prob(torch.zeros(2, 3, dtype=torch.long), prompt_length=1).shape == (2,)


def test_texts():
    neural, _ = both()
    tokens = torch.tensor([[0, 2], [2, 1]])
    assert neural.decode(tokens) == ["0 2", "2 1"]
    lm = NeuralLM(TwoBack(), max_tokens=2, begin_token=BEGIN, decode=lambda y: ["a"] * len(y))
    assert lm.program().decode(tokens) == ["a", "a"]


def test_bad_sequences_and_models():
    neural, _ = both()
    with pytest.raises(ValueError, match="integers"):
        neural.log_prob(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="do the vocabularies agree"):
        neural.log_prob(torch.full((2, 3), SIZE))
    with pytest.raises(ValueError, match="prompt_length=3"):
        neural.log_prob(torch.zeros(2, 3, dtype=torch.long), prompt_length=3)
    with pytest.raises(ValueError, match="n must be"):
        neural.generate(0)
    with pytest.raises(TypeError, match="initial_state"):
        NeuralLM(torch.nn.Linear(2, 2), max_tokens=3)
    with pytest.raises(TypeError, match="torch module"):
        NeuralLM(lambda x: x, max_tokens=3)


def test_a_program_runs_outside_of_plates():
    neural, _ = both()
    plates = pyro.plate("a", 3, dim=-1), pyro.plate("b", 2, dim=-2)
    with pytest.raises(ValueError, match="outside of plates"), plates[0], plates[1]:
        neural.program()()
