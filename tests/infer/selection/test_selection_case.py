# SPDX-License-Identifier: Apache-2.0
"""SoftBestOfM on programs of one step, whose law for finite m is an enumeration."""

from pyro_tilt.infer.selection import SoftBestOfM
from pyro_tilt.poutine import scan
from pyro_tilt.testing.selection_case import SelectionTestCase


def one_step(program):
    """The program as the only step of a scan."""

    def stepped(*args):
        return scan("whole", lambda carry, x: program(*args), None, range(1))

    return stepped


class TestSoftBestOfM(SelectionTestCase):
    sampler = SoftBestOfM
    width = "m"
    options = {"m": 2, "check_lineage": False}

    def make(self, program, **options):
        return super().make(one_step(program), **options)
