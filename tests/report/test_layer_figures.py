"""The figures of a search for one layer: which points are drawn where, and that page and files hold them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mu.core.charts import svg
from mu.core.errors import DataError
from mu.core.run import RunDirectory
from mu.report import write_report
from mu.report.layer_figures import Layer, LayerSearch, layer_figures, pareto, short_name, steps

LAYERS = [
    {"name": "visual_projection.weight", "importance": 0.1, "alignment": 0.05, "tower": "vision", "front": True},
    {"name": "vision_model.encoder.layers.3.mlp.fc1.weight", "importance": 0.01, "alignment": 0.2, "tower": "vision"},
    {
        "name": "vision_model.encoder.layers.1.mlp.fc2.weight",
        "importance": 0.02,
        "alignment": 0.0,
        "tower": "vision",
        "front": True,
    },
    {
        "name": "text_projection.weight",
        "importance": 0.3,
        "alignment": 0.4,
        "tower": "language",
        "front": True,
        "norm": 2.0,
    },
]
CURVES = [
    {
        "name": "visual_projection.weight",
        "rho": [0.1, 0.4, 0.2],
        "fa5": [1.0, 0.0, 0.5],
        "chosen": 0.46,
        "outcome": {"fa1": 0, "fa5": 0.25},
    },
    {"name": "text_projection.weight", "rho": [0.1, 0.4], "fa5": [1.0, 1.0], "chosen": None, "outcome": None},
]
SEARCH = {
    "concept": "Ada Stone",
    "sign": "+grad L_f",
    "chosen": "visual_projection.weight",
    "layers": LAYERS,
    "curves": CURVES,
}


def search() -> LayerSearch:
    return LayerSearch.model_validate(SEARCH)


def test_the_front_is_coloured_with_its_name_and_the_others_are_black_crosses() -> None:
    (axis,) = pareto([Layer.model_validate(layer) for layer in LAYERS[:2]], "t").axes
    others, member = axis.lines
    assert (others.get_marker(), others.get_color()) == ("x", "black")
    assert [*others.get_xdata()] == [0.2] and [*others.get_ydata()] == [0.01]
    assert [*member.get_xdata()] == [0.05] and [*member.get_ydata()] == [0.1] and member.get_color() != "black"
    assert member.get_label() == "visual_projection"
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert "with 0" not in axis.get_xlabel()


def test_an_alignment_of_zero_stands_at_the_left_edge_and_is_told() -> None:
    (axis,) = pareto([Layer.model_validate(layer) for layer in LAYERS[:3]], "t").axes
    zero = next(line for line in axis.lines if line.get_label() == "1.mlp.fc2")
    edge = axis.get_xlim()[0]
    assert [*zero.get_xdata()] == [edge] and 0 < edge < 0.05
    assert "at the left edge: 1 with 0" in axis.get_xlabel()


def test_steps_are_drawn_in_order_and_a_star_marks_the_one_taken() -> None:
    (axis,) = steps(search()).axes
    line, star, other = axis.lines
    assert [*line.get_xdata()] == [0.1, 0.2, 0.4] and [*line.get_ydata()] == [1.0, 0.5, 0.0]
    assert star.get_marker() == "*" and ([*star.get_xdata()], [*star.get_ydata()]) == ([0.46], [0.25])
    assert line.get_label() == "vision visual_projection" and other.get_label() == "language text_projection"
    assert axis.get_ylabel().endswith("@5")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("text_encoder.encoder.layers.3.self_attn.q_proj.weight", "3.self_attn.q_proj"),
        ("vision_model.post_layernorm.weight", "post_layernorm"),
        ("text_projection.weight", "text_projection"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name) == short


def test_page_and_files_hold_the_figures(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_text("seed: 0\n")
    bare = write_report(run).read_text()
    assert 'id="layers"' not in bare and not list(tmp_path.glob("*.png")), "control: no search, no figures"
    (tmp_path / "slug_Ada_Stone.json").write_text(json.dumps(SEARCH))
    page = write_report(run).read_text()
    names = ["pareto-vision-Ada_Stone.png", "pareto-language-Ada_Stone.png", "steps-Ada_Stone.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(names)
    for name in names:
        content = (tmp_path / name).read_bytes()
        assert np.asarray(Image.open(io.BytesIO(content)).convert("L")).std() > 5, "something is drawn"
    for figure in layer_figures(search(), "Ada_Stone"):
        assert figure.uri in page and base64.b64decode(figure.uri.partition(",")[2]).startswith(b"<?xml")
    assert 'id="layers"' in page and "of 3 tensors of the vision tower" in page


def test_a_name_is_no_formula() -> None:
    for concept in ("$x_1$", r"$\frac$", "5 $ a picture"):
        figure = steps(LayerSearch.model_validate({**SEARCH, "concept": concept}))
        assert figure.axes[0].get_title().startswith(concept)
        assert concept.encode() in svg(figure), "its letters one by one"


def test_the_same_search_gives_the_same_bytes() -> None:
    once, again = ([(each.file, each.uri, each.png) for each in layer_figures(search(), "a")] for _ in range(2))
    assert once == again and len({uri for _, uri, _ in once}) == 3


def test_a_damaged_file_is_one_clear_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_text("seed: 0\n")
    (tmp_path / "slug_a.json").write_text(json.dumps({"concept": "a", "layers": [{"name": "x", "alignment": 0.1}]}))
    with pytest.raises(DataError, match=r"slug_a\.json: .*importance"):
        write_report(run)


NAMES = ("$x^{$", "_under_", r"\frac{", "a\nb\tc", "\x1b[31m", "<b>&", "x" * 5000)


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn_as_it_is_and_read_as_text(name: str, tmp_path: Path) -> None:
    layers = [{**LAYERS[0], "name": f"unet.{name}.weight"}, *LAYERS[1:]]
    curves = [{**CURVES[0], "name": f"unet.{name}.weight"}]
    run = RunDirectory(tmp_path)
    run.config.write_text("seed: 0\n")
    made = {**SEARCH, "concept": name, "layers": layers, "curves": curves}
    (tmp_path / "slug_Ada.json").write_text(json.dumps(made))
    page = write_report(run).read_text(encoding="utf-8")
    assert "<b>&" not in page.replace("<b>&amp;", "")
    figure = pareto([Layer.model_validate(layer) for layer in layers[:1]], "t")
    (drawn,) = (text.get_text().strip() for text in figure.legends[0].get_texts())
    assert drawn.isprintable() and len(drawn) <= 80 and drawn[:1] == repr(name)[1:2], "the legend shows it"


@pytest.mark.parametrize("tower", ["../out", "a/b", "..", "a\0b", "x" * 300])
def test_a_tower_is_part_of_a_file_name_and_leaves_no_folder(tower: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.folder.mkdir()
    (run.folder / "config.yaml").write_text("seed: 0\n")
    (run.folder / "slug_Ada.json").write_text(json.dumps({**SEARCH, "layers": [{**LAYERS[0], "tower": tower}]}))
    with pytest.raises(DataError, match=r"slug_Ada\.json: layers\.0\.tower: "):
        write_report(run)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.yaml", "run", "slug_Ada.json"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"curves": [{**CURVES[0], "fa5": [1.0]}]}, "curves.0: 3 steps rho have 1 forget accuracies"),
        ({"curves": [{**CURVES[0], "fa5": [1.0, 0.0, 2.0]}]}, "curves.0.fa5.2: expected a share from 0 to 1, not 2"),
        ({"curves": [{**CURVES[0], "outcome": {"fa5": "low"}}]}, "curves.0.outcome.fa5: expected a number, not text"),
        ({"layers": [{**LAYERS[0], "importance": 1e308}]}, "layers.0.importance: "),
        ({"layers": {}}, "layers: expected a list, not names and values"),
    ],
)
def test_wrong_values_are_named_by_their_place(change: dict[str, object], told: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "slug_Ada.json").write_text(json.dumps({**SEARCH, **change}))
    with pytest.raises(DataError) as caught:
        write_report(RunDirectory(tmp_path))
    assert f"slug_Ada.json: {told}" in str(caught.value)


def test_the_smallest_numbers_are_drawn(tmp_path: Path) -> None:
    layers = [{**LAYERS[0], "importance": 5e-324, "alignment": 5e-324}, LAYERS[1]]
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "slug_Ada.json").write_text(json.dumps({**SEARCH, "layers": layers}))
    assert "data:image/svg+xml" in write_report(RunDirectory(tmp_path)).read_text(encoding="utf-8")
