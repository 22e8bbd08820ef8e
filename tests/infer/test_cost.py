# SPDX-License-Identifier: Apache-2.0
import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_tilt.infer.cost import Cost, CountRows, counted


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.kind = "denoiser"

    def forward(self, x, scale=1.0):
        return self.layer(x) * scale


def test_costs_add_entry_by_entry():
    first = Cost(base_draws=1, reward_calls=2, value_calls=3, network_rows=4, seconds=0.5)
    second = Cost(base_draws=10, reward_calls=20, value_calls=30, network_rows=40, seconds=0.25)
    assert first + second == Cost(
        base_draws=11, reward_calls=22, value_calls=33, network_rows=44, seconds=0.75
    )
    assert sum([first, second]) == first + second


def test_rows_not_counted_are_none():
    assert (Cost() + Cost()).network_rows is None
    assert (Cost(network_rows=3) + Cost()).network_rows == 3
    assert (Cost() + Cost(network_rows=0)).network_rows == 0


def test_cost_refuses_negative_work_and_unknown_entries():
    with pytest.raises(ValueError, match="base_draws"):
        Cost(base_draws=-1)
    with pytest.raises(ValueError, match="calls"):
        Cost.from_dict({"calls": 1})
    with pytest.raises(TypeError):
        Cost() + 1


def test_cost_round_trip():
    cost = Cost(base_draws=3, network_rows=None, seconds=0.1)
    assert Cost.from_dict(cost.to_dict()) == cost


def test_counts_rows_not_calls():
    net = counted(Net())
    with CountRows() as count:
        net(torch.zeros(5, 2))
        net(torch.zeros(3, 4, 2))
        net(scale=2.0, x=torch.zeros(7, 2))
    assert count.rows == 5 + 3 + 7
    net(torch.zeros(100, 2))
    assert count.rows == 15


def test_nothing_counted_is_none_and_entries_go_on():
    count = CountRows()
    net = counted(Net())
    with count:
        Net()(torch.zeros(5, 2))
    assert count.rows is None
    for _ in range(2):
        with count:
            net(torch.zeros(5, 2))
    assert count.rows == 10


def test_every_counter_on_the_stack_counts():
    net = counted(Net())
    with CountRows() as outer:
        net(torch.zeros(1, 2))
        with CountRows() as inner:
            net(torch.zeros(2, 2))
    assert (outer.rows, inner.rows) == (3, 2)


def test_counts_inside_programs_and_through_block():
    net = counted(Net())

    def program():
        with pyro.plate("particles", 6):
            x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.deterministic("y", net(x).squeeze(-1))

    with CountRows() as count:
        trace = poutine.trace(poutine.block(program, hide=["x"])).get_trace()
    assert count.rows == 6
    assert set(trace.nodes) - {"_INPUT", "_RETURN"} <= {"y", "particles"}


def test_counting_twice_counts_once():
    net = counted(counted(Net()))
    with CountRows() as count:
        net(torch.zeros(5, 2))
    assert count.rows == 5


class Guided(torch.nn.Module):
    """Two rows of the network for each of its own, as with and without a condition."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with_it, without = self.net(torch.cat([x, x])).chunk(2)
        return 2.0 * with_it - without


def test_a_counted_module_inside_a_counted_module_counts_once():
    net = counted(Net())
    guided = counted(Guided(net))
    with CountRows() as outer:
        guided(torch.zeros(5, 2))
        with CountRows() as inner:
            guided(torch.zeros(3, 2))
        net(torch.zeros(7, 2))
    assert (outer.rows, inner.rows) == (15, 3)
    with CountRows() as count:
        Guided(net)(torch.zeros(5, 2))
    assert count.rows == 10


def test_a_call_that_raises_leaves_the_count_in_order():
    net = counted(Net())
    guided = counted(Guided(net))
    with CountRows() as count:
        with pytest.raises(RuntimeError):
            guided(torch.zeros(4, 9))
        net(torch.zeros(2, 2))
        guided(torch.zeros(3, 2))
    assert count.rows == 4 + 2 + 3


def test_the_module_stays_what_it_was():
    plain = Net()
    net = counted(plain)
    assert isinstance(net, Net) and net.kind == "denoiser"
    assert list(net.state_dict()) == ["layer.weight", "layer.bias"]
    net.load_state_dict(Net().state_dict())
    assert net.to(torch.float64).layer.weight.dtype == torch.float64
    outer = torch.nn.Sequential(net)
    assert list(outer.state_dict()) == ["0.layer.weight", "0.layer.bias"]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_still_count(clone):
    net = counted(clone(counted(Net())))
    with CountRows() as count:
        net(torch.zeros(4, 2))
    assert count.rows == 4


@pytest.mark.parametrize(
    ("args", "rows"),
    [
        (({"x": torch.zeros(3, 1)},), 3),
        ((0, [None, torch.zeros(2)], torch.zeros(9)), 2),
        ((torch.tensor(1.0),), 1),
        ((), 1),
    ],
)
def test_finds_the_first_tensor(args, rows):
    class Anything(torch.nn.Module):
        def forward(self, *args):
            return args

    net = counted(Anything())
    with CountRows() as count:
        net(*args)
    assert count.rows == rows


def test_only_modules_are_counted():
    with pytest.raises(TypeError, match="Module"):
        counted(lambda x: x)
