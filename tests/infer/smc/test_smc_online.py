# SPDX-License-Identifier: Apache-2.0
"""A stream filtered step by step is the scan over the same data."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import scan
from pyro_tilt.infer import SMC, ZeroWeights
from pyro_tilt.infer.smc import OnlineSMC, ResumeError, StepError

DATA = torch.tensor([0.3, 1.0, 0.4, -0.6, 0.1, 0.9])


def init():
    return pyro.sample("start", dist.Normal(torch.tensor(0.0), 1.0))


def step(x, y):
    x = pyro.sample("x", dist.Normal(0.9 * x, 0.5))
    pyro.sample("y", dist.Normal(x, 0.4), obs=y)
    return x


def test_a_stream_is_the_scan_over_its_data():
    """The evidence of one step at a time, against Kalman's, and bit for bit against the scan."""

    def program():
        def named(carry, y):
            x, t = carry
            x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.5))
            pyro.sample(f"y_{t}", dist.Normal(x, 0.4), obs=y)
            return x, t + 1

        return scan("chain", named, (init(), 0), DATA)[0]

    stream = OnlineSMC(init, step, num_particles=5000, seed=4).start()
    whole = SMC(program, num_particles=5000, seed=4, check_lineage=False).run()
    before = torch.get_rng_state()
    for y in DATA:
        stream.step(y)
    assert torch.equal(before, torch.get_rng_state())
    result = stream.result()
    assert torch.equal(result.samples["x"], whole.samples["x_5"])
    assert torch.equal(result.samples["start"], whole.samples["start"])
    assert torch.equal(result.log_weights, whole.log_weights)
    assert torch.equal(result.steps["ess"], whole.steps["ess"])
    mean, variance, log_z = 0.0, 1.0, 0.0
    for y in DATA.tolist():
        mean, variance = 0.9 * mean, 0.81 * variance + 0.25
        total = variance + 0.16
        log_z += float(dist.Normal(mean, total**0.5).log_prob(torch.tensor(y)))
        mean, variance = mean + variance / total * (y - mean), variance * 0.16 / total
    assert float(stream.log_normalizer) == pytest.approx(log_z, abs=0.1)
    assert 1.0 <= stream.effective_sample_size <= 5000.0


def test_a_twist_does_not_stay_in_the_result():
    plain = OnlineSMC(init, step, num_particles=20_000, seed=0).start()
    twisted = OnlineSMC(
        init, step, num_particles=20_000, seed=1, twist=lambda x, y: -0.5 * (x - 1.0).square()
    ).start()
    for y in DATA[:3]:
        plain.step(y)
        twisted.step(y)
    means = [float(each.result().expectation("x")) for each in (plain, twisted)]
    assert means[0] == pytest.approx(means[1], abs=0.03)
    assert float(plain.log_normalizer) == pytest.approx(float(twisted.log_normalizer), abs=0.06)


def test_a_bad_datum_leaves_the_particles_of_before():
    stream = OnlineSMC(init, step, num_particles=50, seed=0).start()
    stream.step(DATA[0])
    kept = stream.result()
    with pytest.raises(StepError, match="step 1"):
        stream.step("no number")
    assert torch.equal(stream.result().samples["x"], kept.samples["x"])
    stream.step(DATA[1])
    with pytest.raises(ZeroWeights, match="step 2"):
        stream.step(torch.tensor(float("inf")))


def test_a_stream_wants_a_start():
    stream = OnlineSMC(init, step)
    with pytest.raises(RuntimeError, match="start"):
        stream.step(DATA[0])
    with pytest.raises(ValueError, match="resampling"):
        OnlineSMC(init, step, resampling="none")


@pytest.mark.parametrize("seed", [5, None])
def test_a_saved_filter_goes_on_as_if_nothing_had_happened(tmp_path, seed):
    def make(**options):
        return OnlineSMC(init, step, **{"num_particles": 80, "seed": seed, **options}).start()

    path = tmp_path / "filter.pt"
    pyro.set_rng_seed(8)
    stream = make()
    for k, y in enumerate(DATA):
        if k == 3:
            stream.save(path)
        stream.step(y)
    pyro.set_rng_seed(9)
    again = make().restore(path)
    for y in DATA[3:]:
        again.step(y)
    here, there = again.result(), stream.result()
    for name in ("start", "x"):
        assert torch.equal(here.samples[name], there.samples[name])
    for name in ("ess", "resampled", "log_normalizer"):
        assert torch.equal(here.steps[name], there.steps[name])
    assert int(there.steps["resampled"].sum()) >= 2
    assert torch.equal(here.log_weights, there.log_weights)
    for options, words in (({"num_particles": 81}, "num_particles was 80"), ({"seed": 6}, "seed")):
        with pytest.raises(ResumeError, match=words):
            make(**options).restore(path)
    with pytest.raises(RuntimeError, match="start"):
        OnlineSMC(init, step).restore(path)
