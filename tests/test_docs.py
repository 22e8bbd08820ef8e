# SPDX-License-Identifier: Apache-2.0
"""The code on the pages of the documentation runs, and prints what the pages say."""

import doctest
import importlib
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = [
    "diagnostics",
    "diffusion",
    "distributions",
    "infer",
    "ops",
    "poutine",
    "rewards",
    "tractability",
]
FENCE = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_a_page_runs(page, monkeypatch, tmp_path):
    """Blocks marked python are executed, blocks marked pycon are doctests, in one namespace."""
    text = page.read_text()
    namespace = {"__name__": "__main__"}
    monkeypatch.chdir(tmp_path)
    pyro.set_rng_seed(0)
    try:
        for fence in FENCE.finditer(text):
            line = text.count("\n", 0, fence.start(2))
            if fence[1] == "python":
                # The empty lines make a traceback name the line of the page.
                exec(compile("\n" * line + fence[2], str(page), "exec"), namespace)
            else:
                _check_session(fence[2], namespace, page, line)
    finally:
        plt.close("all")


def _check_session(source, namespace, page, line):
    runner = doctest.DebugRunner(optionflags=doctest.ELLIPSIS)
    session = doctest.DocTestParser().get_doctest(source, namespace, page.name, str(page), line)
    assert session.examples
    try:
        runner.run(session, clear_globs=False)
    except doctest.DocTestFailure as failure:
        wrong = failure.example
        pytest.fail(
            f"{page.name}, line {line + wrong.lineno + 1}: {wrong.source.strip()}\n"
            f"the page says {wrong.want!r}, the code {failure.got!r}"
        )
    except doctest.UnexpectedException as failure:
        raise failure.exc_info[1] from None
    namespace.update(session.globs)


def test_the_pages_hold_code():
    with_code = {page.name for page in PAGES if FENCE.search(page.read_text())}
    assert {"README.md", "concepts.md", "rewards.md", "extending.md"} <= with_code


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_lists_every_public_name(package):
    page = (ROOT / "docs" / "api" / f"{package}.rst").read_text()
    listed = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(importlib.import_module(f"pyro_tilt.{package}").__all__)
