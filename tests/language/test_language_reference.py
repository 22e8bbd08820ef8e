# SPDX-License-Identifier: Apache-2.0
"""The reference page of language models lists every public name."""

import re
from pathlib import Path

from pyro_tilt import language
from pyro_tilt.diagnostics import kl
from pyro_tilt.language import laws

PAGE = Path(__file__).parents[2] / "docs" / "api" / "language.rst"


def test_every_public_name_is_listed():
    parts = re.split(r"^\.\. currentmodule:: (\S+)$", PAGE.read_text(), flags=re.MULTILINE)
    listed = {
        name: re.findall(r"^\.\. auto(?:class|function):: (\w+)$", text, re.MULTILINE)
        for name, text in zip(parts[1::2], parts[2::2])
    }
    assert sorted(listed["pyro_tilt.language"]) == sorted(set(language.__all__) - {"laws"})
    assert sorted(listed["pyro_tilt.language.laws"]) == sorted(laws.__all__)
    assert sorted(listed["pyro_tilt.diagnostics.kl"]) == sorted(kl.__all__)
