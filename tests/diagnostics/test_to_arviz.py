# SPDX-License-Identifier: Apache-2.0
"""The export to ArviZ: schema, weights, and files, under both of its containers."""

import json
import subprocess
import sys
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from pyro_tilt.diagnostics import arviz_compat, to_arviz
from pyro_tilt.diagnostics.arviz_compat import arviz_major, import_arviz, make_datatree
from pyro_tilt.infer import WeightedSamples

MAJOR = arviz_major(import_arviz())


def _datasets(container):
    """Group name -> dataset, of either container."""
    if isinstance(container, xr.DataTree):
        return {name: node.to_dataset() for name, node in container.children.items()}
    return {name: container[name] for name in container.groups()}


def test_groups_dims_and_attributes(weighted):
    result = weighted(200, chains=3)
    groups = _datasets(to_arviz(result))
    assert set(groups) == {"posterior", "sample_stats", "sample_stats_prior"}
    posterior = groups["posterior"]
    assert posterior["x"].dims == ("chain", "draw")
    assert posterior["x"].shape == (3, 200)
    assert posterior["y"].dims == ("chain", "draw", "y_dim_0", "y_dim_1")
    assert posterior["y"].shape == (3, 200, 2, 3)
    assert posterior["chain"].values.tolist() == [0, 1, 2]
    attrs = posterior.attrs
    assert attrs["inference_library"] == "pyro_tilt"
    assert attrs["sampling_time"] == 0.25
    assert attrs["beta"] == 1.0
    assert attrs["sampler"] == "ImportanceSampler"
    assert json.loads(attrs["certificate"])["law"] == "consistent"
    np.testing.assert_array_equal(
        groups["sample_stats_prior"]["reward"].values[0], result.base.reward.numpy()
    )


def test_weighted_particles_come_as_they_are(weighted):
    result = weighted(200, chains=2)
    groups = _datasets(to_arviz(result, resample=False))
    stats = groups["sample_stats"]
    expected = result.samples["x"].reshape(2, 200).numpy()
    np.testing.assert_array_equal(groups["posterior"]["x"].values, expected)
    chains = result.log_weights.reshape(2, 200)
    normalized = chains - chains.logsumexp(1, keepdim=True)
    np.testing.assert_allclose(stats["log_weight"].values, normalized.numpy(), atol=1e-12)
    np.testing.assert_array_equal(stats["particle"].values.ravel(), np.arange(400))
    assert (stats["unique"].values == 1).all()


def test_resampled_draws_and_stats_move_together(weighted):
    result = weighted(300, chains=2)
    groups = _datasets(to_arviz(result))
    stats, particle = groups["sample_stats"], groups["sample_stats"]["particle"].values
    np.testing.assert_array_equal(
        groups["posterior"]["x"].values, result.samples["x"].numpy()[particle]
    )
    np.testing.assert_array_equal(
        groups["posterior"]["y"].values, result.samples["y"].numpy()[particle]
    )
    np.testing.assert_array_equal(stats["reward"].values, result.stats["reward"].numpy()[particle])
    chains = result.log_weights.reshape(2, 300)
    raw = (chains - chains.logsumexp(1, keepdim=True)).flatten().numpy()
    np.testing.assert_allclose(stats["particle_log_weight"].values, raw[particle], atol=1e-12)
    # The draws themselves are equally weighted now; weighting them again would be wrong.
    np.testing.assert_allclose(stats["log_weight"].values, -np.log(300.0), atol=1e-12)
    for row in range(2):
        assert ((particle[row] // 300) == row).all()
        assert stats["unique"].values[row].sum() == len(set(particle[row]))
    assert stats["unique"].values.sum() < 600


def test_systematic_copies_are_floor_or_ceiling_of_the_weight(weighted):
    result = weighted(100)
    expected = 100 * torch.softmax(result.psis_log_weights, 0).numpy()
    particle = _datasets(to_arviz(result))["sample_stats"]["particle"].values[0]
    counts = np.bincount(particle, minlength=100)
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()


def test_resampling_takes_the_weights_of_expectation(weighted):
    # The smoothed weights are those of the reversed draws: only they can explain the result.
    raw = torch.linspace(-6.0, 0.0, 400, dtype=torch.float64)
    x = torch.linspace(0.0, 1.0, 400, dtype=torch.float64)
    result = weighted(400, log_weights=raw, psis_log_weights=raw.flip(0), samples={"x": x})
    mean = float(_datasets(to_arviz(result))["posterior"]["x"].mean())
    assert mean == pytest.approx(float(result.expectation("x")), abs=2e-3)
    assert mean < 0.3


def test_export_repeats_and_leaves_the_random_state_alone(weighted):
    result = weighted(100)
    before = torch.get_rng_state()
    first = _datasets(to_arviz(result))["posterior"]["x"].values
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, _datasets(to_arviz(result))["posterior"]["x"].values)
    other = to_arviz(result, generator=torch.Generator().manual_seed(5))
    assert not np.array_equal(first, _datasets(other)["posterior"]["x"].values)


def test_draws_of_equal_weight_keep_their_order(clipped):
    result = clipped(50, chains=2, capped=3)
    groups = _datasets(to_arviz(result))
    expected = result.samples["x"].reshape(2, 50).numpy()
    np.testing.assert_array_equal(groups["posterior"]["x"].values, expected)
    capped = groups["sample_stats"]["capped"]
    assert capped.dtype == np.int8
    assert int(capped.sum()) == 3
    assert groups["sample_stats"]["proposals"].shape == (2, 50)


def test_unequal_runs_become_one_chain_with_their_number(weighted):
    result = weighted(100, chain_sizes=(30, 70))
    groups = _datasets(to_arviz(result))
    assert groups["posterior"]["x"].shape == (1, 100)
    stats = groups["sample_stats"]
    particle, run = stats["particle"].values[0], stats["run"].values[0]
    np.testing.assert_array_equal(run, (particle >= 30).astype(int))
    assert "run" not in _datasets(to_arviz(weighted(100, chains=2)))["sample_stats"]


def test_a_run_without_mass_is_pooled_rather_than_resampled_from_nothing(weighted):
    result = weighted(50, chains=2)
    dead = result.log_weights.clone()
    dead[50:] = -torch.inf
    groups = _datasets(to_arviz(weighted(50, chains=2, log_weights=dead, psis_log_weights=None)))
    assert groups["posterior"]["x"].shape == (1, 100)
    assert (groups["sample_stats"]["run"].values == 0).all()


def test_no_mass_at_all_is_an_error(weighted):
    dead = torch.full((5,), -torch.inf)
    with pytest.raises(ValueError, match="positive weight"):
        to_arviz(weighted(5, log_weights=dead, psis_log_weights=None))


@pytest.mark.parametrize("chains", [1, 3])
def test_steps_have_a_group_of_their_own(stepped, chains):
    result = stepped(chains=chains, steps=9)
    group = _datasets(to_arviz(result))["smc_stats"]
    assert group["ess"].dims == ("chain", "draw", "step")
    assert group["ess"].shape == (chains, 1, 9)
    np.testing.assert_array_equal(
        group["ess"].values[:, 0], result.steps["ess"].reshape(chains, 9).numpy()
    )
    assert group["resampled"].dtype == np.int8
    np.testing.assert_array_equal(
        group["log_evidence"].values[:, 0],
        result.steps["log_normalizer"].reshape(chains, 9).numpy(),
    )


def test_dtypes_and_names_that_netcdf_takes(weighted):
    samples = {
        "chain/x": torch.ones(10, dtype=torch.bfloat16),
        "flag": torch.ones(10, dtype=torch.bool),
        "draw": torch.arange(10),
        "half": torch.ones(10, 2, dtype=torch.float16),
    }
    posterior = _datasets(to_arviz(weighted(10, samples=samples), resample=False))["posterior"]
    assert set(posterior.data_vars) == {"chain|x", "flag", "draw_", "half"}
    assert posterior["chain|x"].dtype == np.float32
    assert posterior["flag"].dtype == np.int8
    assert posterior["half"].dtype == np.float32
    np.testing.assert_array_equal(posterior["draw_"].values[0], np.arange(10))


def test_observed_data_are_read_from_the_program(weighted):
    data = torch.tensor([0.5, 1.5, 3.0])

    def program(data):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("obs", dist.Normal(x, 1.0), obs=data)
        pyro.factor("bonus", x)
        pyro.deterministic("twice", 2 * x)
        return x

    fields = {"program": program, "args": (data,), "base": None}
    before = torch.get_rng_state()
    groups = _datasets(to_arviz(weighted(20, **fields)))
    assert torch.equal(torch.get_rng_state(), before)
    assert set(groups["observed_data"].data_vars) == {"obs"}
    np.testing.assert_array_equal(groups["observed_data"]["obs"].values, data.numpy())


def test_a_minibatch_is_not_passed_off_as_the_data(weighted):
    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 10, subsample_size=2) as rows:
            pyro.sample("obs", dist.Normal(x, 1.0), obs=torch.arange(10.0)[rows])

    groups = _datasets(to_arviz(weighted(20, program=program, base=None)))
    assert "observed_data" not in groups


def test_a_program_without_factors_is_not_run_again(weighted):
    def program():
        raise AssertionError("the program was run")

    assert "observed_data" not in _datasets(to_arviz(weighted(20, program=program)))


def test_the_file_says_what_the_container_said(stepped, weighted, tmp_path):
    result = stepped(20, chains=2, steps=4)
    container = to_arviz(result)
    path = str(tmp_path / "draws.nc")
    container.to_netcdf(path)
    loaded = _datasets(import_arviz().from_netcdf(path))
    for name, dataset in _datasets(container).items():
        xr.testing.assert_equal(loaded[name].load(), dataset)
        for key, value in dataset.attrs.items():
            assert loaded[name].attrs[key] == value


def test_summary_of_arviz_reads_the_equally_weighted_draws(weighted):
    # With x standard normal and reward x + 1/2 the tilted law is N(1, 1): a mean of 0 would mean
    # that the weights were dropped.
    result = weighted(2000, chains=4)
    table = import_arviz().summary(to_arviz(result), var_names=["x"], round_to="none")
    assert table.loc["x", "mean"] == pytest.approx(float(result.expectation("x")), abs=0.01)
    assert abs(table.loc["x", "mean"] - 1.0) < 0.1


def test_method_of_the_result_delegates(weighted):
    result = weighted(30)
    direct = _datasets(to_arviz(result))["posterior"]
    xr.testing.assert_equal(_datasets(result.to_arviz())["posterior"], direct)


def test_the_tree_of_later_versions_holds_the_same_groups(weighted, monkeypatch, tmp_path):
    # A stand-in names only a version: the branch needs xarray alone.
    later = types.SimpleNamespace(__version__="1.3.0", InferenceData=None)
    expected = _datasets(to_arviz(weighted(40, chains=2)))
    monkeypatch.setattr(arviz_compat, "import_arviz", lambda: later)
    tree = to_arviz(weighted(40, chains=2))
    assert isinstance(tree, xr.DataTree)
    found = _datasets(tree)
    assert set(found) == set(expected)
    for name, dataset in expected.items():
        xr.testing.assert_identical(found[name], dataset)
    assert tree.attrs["inference_library"] == "pyro_tilt"
    path = tmp_path / "tree.nc"
    tree.to_netcdf(path, engine="h5netcdf")
    with xr.open_datatree(path, engine="h5netcdf") as loaded:
        xr.testing.assert_equal(loaded["posterior"].to_dataset(), expected["posterior"])


@pytest.mark.skipif(
    sys.version_info < (3, 12) or MAJOR < 1,
    reason="ArviZ 1.x needs Python 3.12 or later, and is not installed here",
)
def test_arviz_1_reads_the_tree(weighted):
    result = weighted(2000, chains=4)
    tree = to_arviz(result)
    assert isinstance(tree, xr.DataTree)
    arviz = import_arviz()
    table = arviz.summary(tree, var_names=["x"], round_to="none")
    assert float(table.loc["x", "mean"]) == pytest.approx(float(result.expectation("x")), abs=0.01)
    assert set(arviz.extract(tree, group="posterior").data_vars) == {"x", "y"}


@pytest.mark.skipif(MAJOR >= 1, reason="ArviZ 1.x has no InferenceData of its own")
def test_arviz_0_gets_inference_data(weighted):
    container = to_arviz(weighted(20))
    assert type(container).__name__ == "InferenceData"
    assert container.attrs["inference_library"] == "pyro_tilt"


def test_datatree_of_no_groups_is_a_root_with_attributes():
    assert make_datatree({}, {"a": 1}).attrs == {"a": 1}


def test_the_import_of_arviz_stays_silent(monkeypatch, recwarn):
    assert import_arviz().__version__
    assert not recwarn.list


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import sys, pyro_tilt.diagnostics as d; d.summary, d.plot_health, d.to_arviz;"
        "heavy = {'arviz', 'matplotlib', 'xarray', 'pandas', 'h5netcdf'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_draw(weighted):
    one = weighted(1)
    assert isinstance(one, WeightedSamples)
    assert _datasets(to_arviz(one))["posterior"]["y"].shape == (1, 1, 2, 3)
