# SPDX-License-Identifier: Apache-2.0
"""Every test starts from a seeded, validated, empty Pyro."""

from collections.abc import Iterator

import matplotlib
import pyro
import pytest
import torch

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _clean_pyro() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(20)
    torch.set_default_dtype(torch.float32)
    with pyro.validation_enabled(True):
        yield
