# SPDX-License-Identifier: Apache-2.0
import sys

import matplotlib.pyplot as plt
import pytest

from pyro_tilt.examples.molecules import draw_molecule, draw_molecules, molecule_image, qed

pytest.importorskip("rdkit", reason="needs pyro-tilt[language]")
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def ink(image):
    """The share of a picture that is not white."""
    return float((image[..., :3] < 0.9).any(-1).mean())


def test_the_picture_is_of_the_molecule():
    image = molecule_image(ASPIRIN, width=300, height=200)
    assert image.shape[:2] == (200, 300)
    assert 0.0 <= image.min() < image.max() <= 1.0
    red = (image[..., 0] > 0.8) & (image[..., 1:3] < 0.5).all(-1)
    assert red.sum() > 20, "oxygen is red"
    assert ink(molecule_image("CC")) < ink(image) < 0.3
    border = [image[0], image[-1], image[:, 0], image[:, -1]]
    assert all(float(edge[..., :3].min()) > 0.9 for edge in border), "nothing is cut off"


def test_pictures_differ_between_molecules():
    assert (molecule_image(ASPIRIN) != molecule_image("c1ccncc1")).any()


def test_no_picture_of_what_is_no_molecule():
    for string in ("C1CC", ""):
        with pytest.raises(ValueError, match="no molecule"):
            molecule_image(string)


def test_a_grid_keeps_order_and_hides_nothing():
    strings = [ASPIRIN, "C1CC", "", "CCO"]
    figure = draw_molecules({"first": strings, "second": ["c1ccccc1"]}, columns=3)
    captions = [ax.get_title() for ax in figure.axes]
    expected = [f"QED {qed(ASPIRIN):.2f}", "no molecule", "no molecule", f"QED {qed('CCO'):.2f}"]
    assert captions == [*expected, f"QED {qed('c1ccccc1'):.2f}"]
    assert [text.get_text() for text in figure.texts] == ["first", "second"]
    assert [len(ax.images) for ax in figure.axes] == [1, 0, 0, 1, 1]
    assert figure.axes[1].texts[0].get_text() == "C1CC"
    assert figure.axes[2].texts[0].get_text() == "(nothing written)"


def test_cells_lie_apart_and_inside_the_figure():
    figure = draw_molecules({"a": ["CCO"] * 5, "b": ["CC"] * 2}, columns=3)
    boxes = [ax.get_position() for ax in figure.axes]
    for i, box in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0.0 and max(box.x1, box.y1) <= 1.0
        for other in boxes[:i]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(wide, high) <= 1e-9
    assert boxes[5].y0 < boxes[3].y0 < boxes[0].y0
    assert boxes[0].x0 < boxes[1].x0 < boxes[2].x0


def test_captions_can_be_given():
    figure = draw_molecules(["CCO", "CC"], caption=str.lower)
    assert [ax.get_title() for ax in figure.axes] == ["cco", "cc"]
    _, ax = plt.subplots()
    assert draw_molecule("CCO", ax=ax, caption="ethanol").get_title() == "ethanol"


@pytest.mark.parametrize("strings", [[], {"a": []}, "CCO"])
def test_nothing_to_draw(strings):
    with pytest.raises(ValueError, match="SMILES strings in a list"):
        draw_molecules(strings)


def test_no_columns():
    with pytest.raises(ValueError, match="columns"):
        draw_molecules(["CC"], columns=0)


def test_without_rdkit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit.Chem", None)
    with pytest.raises(ImportError, match=r"pyro-tilt\[language\]"):
        molecule_image("CCO")
