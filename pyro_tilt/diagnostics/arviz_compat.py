# SPDX-License-Identifier: Apache-2.0
"""The one place that knows which ArviZ is installed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr


def import_arviz() -> ModuleType:
    """
    Imports ArviZ, without the notice that its 0.x releases print once a day.

    >>> arviz_major(import_arviz()) in (0, 1)
    True
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        import arviz
    return arviz


def arviz_major(arviz: ModuleType) -> int:
    """
    The major version of ArviZ, the only thing that tells its two containers apart.

    From 1.0 on ``arviz.InferenceData`` still exists, as a shim that returns a ``DataTree``, so
    that asking for the attribute is no test.

    :param arviz: the imported module.
    """
    return int(arviz.__version__.split(".")[0])


def make_container(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> Any:
    """
    Joins datasets into what the installed ArviZ works with.

    :param groups: group name -> dataset, the empty ones left out.
    :param attrs: attributes of the whole.
    :return: an ``InferenceData`` under ArviZ 0.x, an ``xarray.DataTree`` from 1.0 on.
    """
    arviz = import_arviz()
    if arviz_major(arviz) >= 1:
        return make_datatree(groups, attrs)
    return arviz.InferenceData(attrs=dict(attrs), **dict(groups))


def make_datatree(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> xr.DataTree:
    """
    The container of ArviZ 1.x, which needs xarray alone.

    :param groups: group name -> dataset.
    :param attrs: attributes of the root.
    """
    import xarray as xr

    root = xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in groups.items()})
    root.attrs.update(attrs)
    return root
