# SPDX-License-Identifier: Apache-2.0
import json
import pickle
import sys

import pyro
import pytest
import torch
from pyro import poutine

from pyro_tilt import rewards
from pyro_tilt.examples.digits import data, model, train
from pyro_tilt.examples.digits import program as program_module
from pyro_tilt.examples.digits.__main__ import Settings, demo, main
from pyro_tilt.examples.digits.classifier import Classifier, load_classifier, score
from pyro_tilt.examples.digits.program import DiffusionSampler, digits_program
from pyro_tilt.examples.digits.report import mosaic, save_summary, second_opinion
from pyro_tilt.examples.digits.rewards import LogProbability, ink_reward, reads_as
from pyro_tilt.infer.cost import CountRows

FILES = ("unet", "classifier_a", "classifier_b")


@pytest.fixture(scope="module")
def denoiser():
    return model.load_denoiser()


@pytest.fixture(scope="module")
def digits():
    return data.load_digits()


@pytest.fixture(scope="module")
def held_out(digits):
    return digits[data.split_indices().held_out]


@pytest.fixture(scope="module")
def base(denoiser):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return DiffusionSampler(denoiser).sample((512,))


@pytest.mark.parametrize("name", FILES)
def test_weights_are_small_and_carry_their_facts(name):
    path = model.WEIGHTS / f"{name}.safetensors"
    assert 10_000 < path.stat().st_size < 1_000_000
    facts = model.load_facts(path)
    assert facts["trained_on"] in (1000, 437)
    assert facts["counts"] == {"train": 1000, "confirm": 437, "held_out": 360}


def test_network_has_the_stated_size(denoiser):
    assert model.count_parameters(denoiser) == 176_849
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())


def test_network_was_trained_for_the_stated_steps_and_keeps_its_loss(denoiser, held_out):
    facts = model.load_facts(model.WEIGHTS / "unet.safetensors")
    assert facts["settings"]["steps"] == 3800
    levels = model.make_scheduler().alphas_cumprod
    loss = train.diffusion_loss(denoiser, held_out.images, levels)
    assert loss == pytest.approx(facts["loss_held_out"], rel=1e-3)
    assert loss < 0.15


def test_parts_are_disjoint_and_cover_all_images(digits):
    split = data.split_indices()
    parts = [set(part.tolist()) for part in vars(split).values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(digits) == 1797
    pictures = [
        {tuple(image.flatten().tolist()) for image in digits.images[p]} for p in map(list, parts)
    ]
    assert not pictures[0] & pictures[1]
    assert not pictures[0] & pictures[2]
    assert not pictures[1] & pictures[2]


def test_images_are_real_and_scaled(digits):
    assert digits.images.min() == -1.0
    assert digits.images.max() == 1.0
    # Ink levels are whole sixteenths.
    assert torch.equal((digits.images + 1) * 8, ((digits.images + 1) * 8).round())
    assert digits.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("name", ["a", "b"])
def test_classifier_scores_as_stored_on_real_digits(name, held_out):
    found = score(load_classifier(name), held_out)
    stored = model.load_facts(model.WEIGHTS / f"classifier_{name}.safetensors")["held_out"]
    assert found == pytest.approx(stored, rel=1e-4)
    assert found["accuracy"] > 0.97
    assert found["log_loss"] < 0.1


def test_classifiers_learned_from_different_images():
    a, b = (model.load_facts(model.WEIGHTS / f"classifier_{n}.safetensors") for n in "ab")
    assert (a["trained_on"], b["trained_on"]) == (1000, 437)
    assert a["settings"]["seed"] != b["settings"]["seed"]
    with pytest.raises(ValueError, match="named"):
        load_classifier("c")


@pytest.mark.parametrize("steps", [1, 30, 50, 200])
def test_schedule_is_that_of_the_diffusers_scheduler(steps):
    scheduler = model.make_scheduler()
    scheduler.set_timesteps(steps)
    x, noise = torch.randn(2, 7, 1, 8, 8)
    for i, step in enumerate(model.reverse_steps(steps)):
        expected = scheduler.step(
            noise, step.timestep, x, generator=torch.Generator().manual_seed(i)
        ).prev_sample
        fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
        torch.testing.assert_close(
            step.mean(x, noise) + step.std * fresh, expected, rtol=1e-4, atol=1e-5
        )
    assert step.std == 0.0
    assert all(s.std > 0.0 for s in model.reverse_steps(steps)[:-1])


@pytest.mark.parametrize("steps", [0, 201])
def test_schedule_refuses_impossible_steps(steps):
    with pytest.raises(ValueError, match="between 1 and 200"):
        model.reverse_steps(steps)


def test_all_steps_are_sites_with_the_stated_density(denoiser):
    trace = poutine.trace(digits_program).get_trace(denoiser, steps=4, record="all")
    trace.compute_log_prob()
    nodes = trace.nodes
    assert trace.stochastic_nodes == ["x_T", "x_3", "x_2", "x_1"]
    image, total = nodes["x_T"]["value"], 0.0
    total = -0.5 * (image.square() + torch.tensor(2 * torch.pi).log()).sum()
    for left, step in zip((3, 2, 1), model.reverse_steps(4)):
        guess = denoiser(image.unsqueeze(0), step.timestep)[0]
        mean = step.mean(image, guess)
        image = nodes[f"x_{left}"]["value"]
        total += torch.distributions.Normal(mean, step.std).log_prob(image).sum()
    torch.testing.assert_close(trace.log_prob_sum(), total, rtol=1e-4, atol=1e-3)
    last = model.reverse_steps(4)[-1]
    digit = last.mean(image, denoiser(image.unsqueeze(0), last.timestep)[0])
    torch.testing.assert_close(nodes["_RETURN"]["value"], digit)
    assert digit.abs().max() <= 1.0


def test_density_has_a_gradient_in_every_noisy_image(denoiser):
    trace = poutine.trace(digits_program).get_trace(denoiser, steps=3, record="all")
    values = {name: trace.nodes[name]["value"].requires_grad_() for name in trace.stochastic_nodes}
    conditioned = poutine.condition(digits_program, data=values)
    again = poutine.trace(conditioned).get_trace(denoiser, steps=3, record="all")
    grads = torch.autograd.grad(again.log_prob_sum(), list(values.values()))
    assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize("record", ["all", "last"])
def test_program_runs_under_plates(denoiser, record):
    with pyro.plate("particles", 5, dim=-2):
        trace = poutine.trace(digits_program).get_trace(denoiser, steps=3, record=record)
    assert trace.nodes["_RETURN"]["value"].shape == (5, 1, 1, 8, 8)
    first = "x_T" if record == "all" else "x_0"
    assert trace.nodes[first]["value"].shape == (5, 1, 1, 8, 8)
    assert trace.nodes[first]["fn"].event_shape == (1, 8, 8)


def test_both_records_draw_the_same_digits(denoiser):
    def run(record):
        pyro.set_rng_seed(5)
        with pyro.plate("particles", 20):
            return digits_program(denoiser, steps=10, record=record)

    torch.testing.assert_close(run("all"), run("last"), rtol=0, atol=2e-3)


def test_program_names_the_records():
    with pytest.raises(ValueError, match='"last" or "all"'):
        digits_program(None, record="some")


def test_sampler_keeps_shapes_when_chunks_do_not_divide(denoiser):
    law = DiffusionSampler(denoiser, 2, chunk=4)
    assert law.sample((3,)).shape == (3, 1, 8, 8)
    wide = law.expand(torch.Size((3,)))
    assert wide.sample((3,)).shape == (3, 3, 1, 8, 8)
    assert wide.sample((0,)).shape == (0, 3, 1, 8, 8)
    draws = wide.sample((3,)).reshape(9, -1)
    assert torch.cdist(draws, draws).add(torch.eye(9)).min() > 1e-3
    with pytest.raises(ValueError, match="chunk"):
        DiffusionSampler(denoiser, 2, chunk=0)


def test_sampler_has_no_density_and_says_what_to_do(denoiser):
    with pytest.raises(NotImplementedError, match='record="all"'):
        DiffusionSampler(denoiser, 2).log_prob(torch.zeros(1, 8, 8))


@pytest.mark.parametrize("record", ["all", "last"])
def test_network_rows_are_counted(denoiser, record):
    with CountRows() as count, pyro.plate("particles", 7):
        digits_program(denoiser, steps=4, record=record, chunk=3)
    assert count.rows == 28


def test_base_digits_look_like_digits_to_both_classifiers(base, held_out):
    # On the real held-out digits the levels are 0.99 and 0.98.
    readings = [load_classifier(name)(base) for name in "ab"]
    for log_probs, level in zip(readings, (0.96, 0.94)):
        assert log_probs.max(-1).values.exp().mean() > level
    chosen = [log_probs.argmax(-1) for log_probs in readings]
    assert (chosen[0] == chosen[1]).double().mean() > 0.93
    assert chosen[0].bincount(minlength=10).min() >= 20
    ink = ink_reward()
    assert ink(base).mean() == pytest.approx(ink(held_out.images).mean().item(), abs=0.015)
    assert ink(base).std() == pytest.approx(ink(held_out.images).std().item(), rel=0.25)


def test_base_digits_are_no_copies(base, digits):
    split = data.split_indices()
    real = digits.images.flatten(1)
    nearest = torch.cdist(base.flatten(1), real[split.train]).min(1).values
    assert nearest.median() > 1.0


def test_ink_is_linear_and_in_unit_range(base):
    reward = ink_reward()
    assert isinstance(reward, rewards.Linear)
    torch.testing.assert_close(reward(base), ((base + 1) / 2).mean((1, 2, 3)))
    x, y = base[:2]
    torch.testing.assert_close(reward(0.25 * x + 0.75 * y), 0.25 * reward(x) + 0.75 * reward(y))


def test_reading_is_the_log_probability_and_bounded(base):
    classifier = load_classifier("a")
    reward = reads_as(classifier, 3)
    assert isinstance(reward, rewards.Bounded)
    assert reward.upper_bound == 0.0
    found = reward(base)
    assert found.max() <= 0.0
    torch.testing.assert_close(
        found, classifier.layers(base).div(classifier.temperature).log_softmax(-1)[:, 3]
    )
    assert found.argmax() in (classifier(base).argmax(-1) == 3).nonzero()
    assert torch.equal(pickle.loads(pickle.dumps(reward))(base), found)
    torch.testing.assert_close(
        reward.to(torch.float64)(base.double()), found.double(), rtol=1e-4, atol=1e-4
    )


def test_reading_refuses_what_is_no_digit():
    with pytest.raises(ValueError, match="0 to 9"):
        LogProbability(Classifier(), 10)


def test_training_repeats_from_its_seed_and_leaves_the_random_state(digits):
    settings = train.DiffusionSettings(seed=4, steps=3, batch=8)
    state = torch.get_rng_state()
    first, second = (train.train_diffusion(digits.images[:50], settings) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters()))
    short = train.ClassifierSettings(seed=4, steps=3, batch=8)
    a, b = (train.train_classifier(digits[torch.arange(50)], (4, 4), short) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_temperature_calibrates(held_out):
    classifier = load_classifier("a")
    with torch.no_grad():
        classifier.layers[-1].weight.mul_(20.0)
        classifier.layers[-1].bias.mul_(20.0)
    overconfident = score(classifier, held_out)
    train.fit_temperature(classifier, held_out)
    calibrated = score(classifier, held_out)
    assert calibrated["accuracy"] == overconfident["accuracy"]
    assert calibrated["log_loss"] < 0.5 * overconfident["log_loss"]
    assert abs(calibrated["confidence"] - calibrated["accuracy"]) < 0.01


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("diffusers", model.make_unet),
        ("sklearn.datasets", data.load_digits),
        ("safetensors", lambda: model.load_facts(model.WEIGHTS / "unet.safetensors")),
    ],
)
def test_missing_extra_is_named(monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install pyro-tilt\[demo\]"):
        call()


def test_missing_weights_say_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="digits.train"):
        model.load_denoiser(tmp_path / "none.safetensors")


def test_chunk_bounds_the_rows_of_a_call():
    sizes = []

    class Spy(torch.nn.Module):
        def forward(self, image, timestep):
            sizes.append(len(image))
            return torch.zeros_like(image)

    DiffusionSampler(Spy(), 1, chunk=program_module.MAX_ROWS).sample((2500,))
    assert sizes == [1024, 1024, 452]


def test_demo_writes_its_pages_and_confirms_the_effect(tmp_path, capsys):
    settings = Settings(
        steps=5,
        ink_beta=30.0,
        ink_draws=300,
        ink_accepted=10,
        calibration=2000,
        digit_accepted=30,
    )
    demo(tmp_path, settings)
    assert {path.name for path in tmp_path.iterdir()} == {
        "digits_ink.png",
        "digits_three.png",
        "health_ink.png",
        "health_ink_lcb.png",
        "health_three.png",
        "health_three_lcb.png",
        "summary.json",
    }
    found = json.loads((tmp_path / "summary.json").read_text())
    ink, three = found["ink"]["importance"], found["three"]["rejection"]
    # In units of the gain's own standard error; the base has a spread of 0.03.
    assert ink["reward"]["gain"] > 5 * ink["reward"]["gain_error"]
    assert ink["kl"]["value"] > 0.1
    assert ink["cost"]["network_rows"] == 5 * 300
    assert three["certificate"]["law"] == "exact"
    assert three["reward"]["after"] > -0.5 > three["reward"]["before"]
    assert three["cost"]["network_rows"] == 5 * three["cost"]["base_draws"]
    # About one digit in ten is a 3, and beta = 2 accepts hardly anything else.
    assert 0.03 < three["acceptance"]["rate"] < 0.25
    opinion = found["second_opinion"]
    assert opinion["before"]["probability"]["mean"] < 0.25
    assert opinion["after"]["probability"]["mean"] > 0.75
    printed = capsys.readouterr().out
    assert "READS AS A 3" in printed
    assert "accuracy 98.9%" in printed


def test_demo_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SystemExit, match=r"pip install pyro-tilt\[demo\]"):
        main(["--out", str(tmp_path)])


def test_mosaic_places_images_by_rows():
    images = torch.full((3, 1, 8, 8), -1.0)
    images[2] = 1.0
    page = mosaic(images, rows=2, columns=2)
    assert page.shape == (18, 18)
    assert page[10:, :8].eq(1).all()
    assert page.sum() == 64


def test_second_opinion_averages_what_the_judge_says():
    probabilities = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.9, 0.1]], dtype=torch.float64)
    found = second_opinion(lambda images: probabilities.log(), torch.zeros(3, 1, 8, 8), 0)
    assert found["probability"]["mean"] == pytest.approx(1.7 / 3)
    assert found["probability"]["error"] == pytest.approx(probabilities[:, 0].std().item() / 3**0.5)
    assert found["log_probability"]["mean"] == pytest.approx(
        probabilities[:, 0].log().mean().item()
    )
    assert found["read_as"]["mean"] == pytest.approx(2 / 3)
    assert found["images"] == 3


def test_summary_writes_null_for_what_is_not_finite(tmp_path):
    save_summary(tmp_path / "s.json", {"a": [float("nan"), 1.5], "b": {"c": -float("inf")}})
    found = json.loads((tmp_path / "s.json").read_text())
    assert found == {"a": [None, 1.5], "b": {"c": None}}
