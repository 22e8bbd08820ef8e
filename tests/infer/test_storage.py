# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math
import pickle

import h5netcdf
import pytest
import torch

from pyro_tilt.infer.base_draws import BaseDraws
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.storage import FORMAT_VERSION, load, save
from pyro_tilt.infer.weighted_samples import WeightedSamples

EXACT = Certificate(target="joint tilt", law="exact")
DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
]  # fmt: skip


def bits(value):
    if value.is_complex():
        value = torch.view_as_real(value)
    return value.contiguous().flatten().view(torch.uint8) if value.numel() else value.flatten()


def same(first, second):
    assert first.dtype == second.dtype and first.shape == second.shape
    assert torch.equal(bits(first), bits(second))


def random_tensor(dtype, shape):
    raw = torch.randn(shape, dtype=torch.complex128) * 50
    value = raw.to(dtype) if dtype.is_complex else (raw.real + 1).abs().to(dtype)
    return -value if dtype.is_floating_point else value


def full():
    torch.manual_seed(3)
    log_weights = torch.tensor([0.1, -math.inf, 0.3, 1e-300], dtype=torch.float64)
    return WeightedSamples(
        kind="weighted",
        samples={
            "x": torch.randn(4, 2, 2),
            "outer/inner[0] ü": torch.tensor([math.nan, -0.0, math.inf, 1e-42]),
            "empty": torch.empty(4, 0, 3, dtype=torch.int32),
            "strided": torch.randn(3, 4).t(),
        },
        log_weights=log_weights,
        log_normalizer_error=torch.tensor(math.nan),
        certificate=Certificate(
            target="joint tilt", law="bounded", kl=0.1, confidence=0.95, covers="§ ü", budget="n"
        ),
        cost=Cost(base_draws=10**12, seconds=0.1 + 0.2),
        stats={"reward": torch.randn(4), "capped": torch.tensor([True, False, True, True])},
        steps={"ess": torch.randn(2, 5), "resampled": torch.ones(2, 5, dtype=torch.bool)},
        beta=1 / 3,
        psis_log_weights=torch.randn(4, dtype=torch.float64),
        pareto_k=math.inf,
        residual_log_weights=torch.randn(4),
        info={"acceptance_rate": 0.1, "baseline": math.nan, "low": -math.inf},
        base=BaseDraws(reward=torch.randn(7), log_factors=torch.randn(7, dtype=torch.float64)),
        chain_sizes=(1, 3),
        sampler="Importance",
        program=len,
        args=(1,),
    )


def assert_equal_results(first, second):
    for item in dataclasses.fields(WeightedSamples):
        if item.name in ("program", "args", "kwargs"):
            continue
        one, two = getattr(first, item.name), getattr(second, item.name)
        if isinstance(one, torch.Tensor):
            same(one, two)
        elif item.name in ("samples", "stats", "steps"):
            assert one.keys() == two.keys()
            for key in one:
                same(one[key], two[key])
        elif item.name == "base":
            assert (one is None) == (two is None)
            if one is not None:
                same(one.reward, two.reward)
                same(one.log_factors, two.log_factors)
        else:
            assert repr(one) == repr(two), item.name


def test_every_field_round_trips_bit_for_bit(tmp_path):
    made = full()
    made.save(tmp_path / "draws.nc")
    read = WeightedSamples.load(str(tmp_path / "draws.nc"))
    assert_equal_results(made, read)
    assert list(read.samples) == list(made.samples)
    assert read.program is None and read.args == () and read.kwargs == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_round_trips(tmp_path, dtype):
    value = random_tensor(dtype, (6, 3))
    if dtype.is_floating_point:
        value[0] = torch.tensor([math.nan, -math.inf, -0.0])
    made = WeightedSamples(
        kind="iid", samples={"x": value}, log_weights=torch.zeros(6), certificate=EXACT
    )
    save(made, tmp_path / "draws.nc")
    same(load(tmp_path / "draws.nc").samples["x"], value)


def test_nan_payloads_survive(tmp_path):
    value = torch.tensor([0x7FC00001, -0x3FFFFF, 0x7F800001]).to(torch.int32).view(torch.float32)
    assert value.isnan().all()
    made = WeightedSamples(
        kind="iid", samples={"x": value}, log_weights=torch.zeros(3), certificate=EXACT
    )
    save(made, tmp_path / "draws.nc")
    same(load(tmp_path / "draws.nc").samples["x"], value)


def test_no_draws_and_no_sites_round_trip(tmp_path):
    made = WeightedSamples(
        kind="iid", samples={}, log_weights=torch.zeros(0), certificate=EXACT, log_normalizer=0.5
    )
    save(made, tmp_path / "draws.nc")
    assert_equal_results(made, load(tmp_path / "draws.nc"))


def test_a_saved_result_goes_on(tmp_path):
    made = full()
    made.save(tmp_path / "draws.nc")
    read = WeightedSamples.load(tmp_path / "draws.nc")
    assert torch.equal(made.get_samples(9, seed=1)["x"], read.get_samples(9, seed=1)["x"])
    merged, again = WeightedSamples.merge([made, made]), WeightedSamples.merge([read, made])
    assert torch.equal(merged.log_weights, again.log_weights)


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    made = full()
    for module, name in ((pickle, "dump"), (pickle, "dumps"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    made.save(tmp_path / "draws.nc")
    WeightedSamples.load(tmp_path / "draws.nc")


def test_a_later_format_says_what_to_do(tmp_path):
    path = tmp_path / "draws.nc"
    full().save(path)
    with h5netcdf.File(path, "a") as file:
        file.groups["pyro_tilt"].attrs["format_version"] = FORMAT_VERSION + 1
        file.groups["pyro_tilt"].attrs["pyro_tilt_version"] = "9.1"
    with pytest.raises(ValueError, match=r"format 2, written by pyro_tilt 9\.1.*upgrade"):
        load(path)


def test_other_files_are_refused(tmp_path):
    with h5netcdf.File(tmp_path / "other.nc", "w") as file:
        file.attrs["title"] = "rain"
    with pytest.raises(ValueError, match="no result of pyro_tilt"):
        load(tmp_path / "other.nc")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.nc")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*missing"):
        full().save(tmp_path / "missing" / "draws.nc")


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "draws.nc"
    made = full()
    made.save(path)
    before = path.read_bytes()
    made.samples["bad"] = "not a tensor"
    with pytest.raises(AttributeError):
        made.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["draws.nc"]


def test_numbers_are_readable_by_other_tools(tmp_path):
    import xarray

    path = tmp_path / "draws.nc"
    made = full()
    made.save(path)
    with xarray.open_dataset(path, group="pyro_tilt", engine="h5netcdf") as data:
        assert data["stats.capped"].dtype == "int8"
        assert data["log_weights"].values.tolist() == made.log_weights.tolist()
        assert data.attrs["format_version"] == FORMAT_VERSION


def test_one_file_for_arviz_and_for_us(tmp_path):
    import arviz

    torch.manual_seed(0)
    made = WeightedSamples(
        kind="weighted",
        samples={"x": torch.randn(50, 2), "flag": torch.rand(50) < 0.5},
        log_weights=torch.randn(50),
        stats={"reward": torch.randn(50)},
        certificate=Certificate(target="joint tilt", law="consistent"),
        beta=1.0,
        chain_sizes=(25, 25),
    )
    made.save(tmp_path / "both.nc", arviz=True)
    assert_equal_results(made, WeightedSamples.load(tmp_path / "both.nc"))
    data = arviz.from_netcdf(str(tmp_path / "both.nc"))
    assert data["posterior"]["x"].shape == (2, 25, 2)
    assert "reward" in data["sample_stats"]
