# SPDX-License-Identifier: Apache-2.0
"""Results on disk, as netCDF: nothing in the file is ever executed."""

from __future__ import annotations

import json
import os
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from pyro_tilt._version import __version__
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.weighted_samples import BaseDraws, WeightedSamples

if TYPE_CHECKING:
    import h5netcdf  # type: ignore[import-untyped]

FORMAT_VERSION = 1
GROUP = "pyro_tilt"

_TENSORS = (
    "log_weights",
    "log_normalizer",
    "log_normalizer_error",
    "psis_log_weights",
    "residual_log_weights",
    "chain_log_normalizers",
)
_TABLES = ("samples", "stats", "steps", "base")
_NUMBERS = ("kind", "beta", "pareto_k", "info", "chain_sizes", "sampler")

# netCDF lacks booleans, half precision and complex numbers: their bits go into these types.
_STORED_AS = {
    torch.bool: torch.int8,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


def save(result: WeightedSamples, path: str | PathLike[str], *, arviz: bool = False) -> None:
    """
    Writes a result to a netCDF file, bit for bit, without its program and arguments.

    Everything lies in the group ``pyro_tilt``. The file appears in whole or not at all.

    :param result: what to save.
    :param path: the file, which is replaced where it exists.
    :param arviz: also write the groups of ``result.to_arviz()``, so that
        ``arviz.from_netcdf(path)`` reads the same file.
    :raises FileNotFoundError: where there is no such folder.

    >>> import tempfile
    >>> made = WeightedSamples(
    ...     kind="iid",
    ...     samples={"x": torch.arange(3.0)},
    ...     log_weights=torch.zeros(3),
    ...     certificate=Certificate(target="joint tilt", law="exact"),
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(made, f"{folder}/draws.nc")
    ...     load(f"{folder}/draws.nc").samples["x"]
    tensor([0., 1., 2.])
    """
    import h5netcdf

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {path}: there is no folder {path.parent}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if arviz:
            result.to_arviz().to_netcdf(str(partial), engine="h5netcdf")
        with h5netcdf.File(partial, "a" if arviz else "w") as file:
            _write(file.create_group(GROUP), result)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | PathLike[str], *, device: torch.device | str | None = None) -> WeightedSamples:
    """
    Reads a result that :func:`save` wrote; its program and arguments are not in the file.

    :param path: the file.
    :param device: where the tensors go; the CPU by default.
    :raises ValueError: for a file without a result, or in a format of a later version.
    """
    import h5netcdf

    with h5netcdf.File(Path(path), "r") as file:
        if GROUP not in file.groups:
            raise ValueError(f"{path} holds no result of pyro_tilt: it has no group {GROUP!r}")
        group = file.groups[GROUP]
        version = int(group.attrs["format_version"])
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{path} is in format {version}, written by pyro_tilt "
                f"{group.attrs['pyro_tilt_version']}, but this version ({__version__}) reads "
                f"formats up to {FORMAT_VERSION}: upgrade pyro_tilt to open it"
            )
        result = _read(group)
    return result if device is None else result.to(device)


def _write(group: h5netcdf.Group, result: WeightedSamples) -> None:
    group.attrs["format_version"] = FORMAT_VERSION
    group.attrs["pyro_tilt_version"] = __version__
    group.attrs["certificate"] = json.dumps(result.certificate.to_dict())
    group.attrs["cost"] = json.dumps(result.cost.to_dict())
    numbers = {name: getattr(result, name) for name in _NUMBERS if name != "chain_sizes"}
    group.attrs["fields"] = json.dumps(numbers)
    _put(group, "chain_sizes", "", torch.tensor(result.chain_sizes))
    for name in _TENSORS:
        value = getattr(result, name)
        if value is not None:
            _put(group, name, "", value)
    for table in _TABLES:
        values = getattr(result, table)
        if isinstance(values, BaseDraws):
            values = {"reward": values.reward, "log_factors": values.log_factors}
        for key, value in (values or {}).items():
            _put(group, table, key, value)


def _put(group: h5netcdf.Group, field: str, key: str, value: Tensor) -> None:
    name = f"{field}.{quote(key, safe='')}" if field in _TABLES else field
    shape, dtype = list(value.shape), value.dtype
    array = _to_array(value)
    if array.size == 0:
        # A dimension of size zero means an unlimited one in netCDF.
        array = np.zeros((), array.dtype)
    dims = tuple(f"{name}_dim_{axis}" for axis in range(array.ndim))
    for dim, size in zip(dims, array.shape):
        group.dimensions[dim] = size
    variable = group.create_variable(name, dims, array.dtype, data=array)
    variable.attrs["torch_dtype"] = str(dtype).removeprefix("torch.")
    variable.attrs["layout"] = json.dumps({"field": field, "key": key, "shape": shape})


def _to_array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu().contiguous()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    elif value.dtype == torch.bool:
        value = value.to(torch.int8)
    elif value.dtype in _STORED_AS:
        value = value.view(_STORED_AS[value.dtype])
    return value.resolve_neg().numpy()


def _from_array(array: np.ndarray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    value = torch.from_numpy(np.array(array))
    if dtype.is_complex:
        return torch.view_as_complex(value)
    if dtype == torch.bool:
        return value.to(torch.bool)
    return value.view(dtype) if dtype in _STORED_AS else value


def _read(group: h5netcdf.Group) -> WeightedSamples:
    fields: dict[str, Any] = json.loads(group.attrs["fields"])
    tables: dict[str, dict[str, Tensor]] = {table: {} for table in _TABLES}
    for variable in group.variables.values():
        layout = json.loads(variable.attrs["layout"])
        dtype = getattr(torch, variable.attrs["torch_dtype"])
        value = _from_array(variable[...], dtype, layout["shape"])
        if layout["field"] in _TABLES:
            tables[layout["field"]][layout["key"]] = value
        else:
            fields[layout["field"]] = value
    fields["chain_sizes"] = tuple(fields["chain_sizes"].tolist())
    base = tables.pop("base")
    fields.update(tables)
    return WeightedSamples(
        **fields,
        base=BaseDraws(**base) if base else None,
        certificate=Certificate.from_dict(json.loads(group.attrs["certificate"])),
        cost=Cost.from_dict(json.loads(group.attrs["cost"])),
    )
