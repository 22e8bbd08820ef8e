# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pyro_tilt.infer.stepwise.rows import fork, is_shared, spread


@dataclass(frozen=True)
class Data:
    value: Tensor
    inner: object
    count: int = 3


class Named(NamedTuple):
    value: Tensor
    inner: object
    count: int = 3


@pytest.mark.parametrize("kind", [Data, Named])
@pytest.mark.parametrize("wrap", [lambda carry: carry, lambda carry: {"deep": [carry]}])
def test_a_shared_carry_is_spread_whatever_holds_it(kind, wrap):
    shared = kind(torch.arange(2.0), Data(torch.tensor(7.0), None))
    assert is_shared(wrap(shared), 5)
    wide = spread(wrap(shared), 5)
    wide = wide["deep"][0] if isinstance(wide, dict) else wide
    assert type(wide) is kind and wide.count == 3
    assert wide.value.shape == (5, 2) and wide.inner.value.tolist() == [7.0] * 5
    assert not is_shared(wrap(wide), 5)
    copied = fork(wrap(shared), torch.tensor([1, 3]), 5)
    assert is_shared(copied, 5)


def test_what_holds_no_tensor_is_not_shared():
    assert not is_shared(Data(None, 2), 5)
    assert spread(Data(None, 2), 5) == Data(None, 2)
