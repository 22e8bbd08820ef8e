# SPDX-License-Identifier: Apache-2.0
"""Every tutorial runs, with few draws, in this process; its committed notebook is up to date."""

import runpy
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
def test_script_runs(script, monkeypatch):
    monkeypatch.setenv("PYRO_TILT_SMOKE", "1")
    monkeypatch.chdir(FOLDER)
    try:
        runpy.run_path(str(script), run_name="__main__")
        assert plt.get_fignums(), "a tutorial shows at least one figure"
    finally:
        plt.close("all")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_matches_its_script_and_is_executed(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    source = jupytext.read(script)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in source.cells]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # What a tutorial has to say it prints; a warning would show paths of one machine.
    assert not [output for output in outputs if output.get("name") == "stderr"]
    for cell in code:
        if "plt.show()" in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_there_are_tutorials():
    assert len(SCRIPTS) >= 2
