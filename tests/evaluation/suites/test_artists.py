"""Suite artists: which prompts enter which mean, by networks whose distances are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mu.core.errors import ConfigError, DataError
from mu.core.run import RunDirectory
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation import comparing
from mu.evaluation.answers import Subject
from mu.evaluation.suites import artists, evaluate
from mu.evaluation.suites.artists import ArtistsSuite
from mu.models.parameters import find_parameter
from mu.report import write_report

LIST = """case_number,prompt,evaluation_seed,artist
0,a,1,Vincent van Gogh
1,b,2,Vincent van Gogh
2,c,3,Monet
3,d,4,Monet
4,e,5,Goya
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "art.csv"
    path.write_text(LIST)
    return path


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image itself is the only feature map: LPIPS of two pure colours is 2."""
    for module in (comparing, artists):
        monkeypatch.setattr(module, "lpips_network", lambda *_, **__: (lambda images: [images], None))
    monkeypatch.setattr(artists, "vgg_features", lambda device: lambda images: [images] * 5)


def shows(column, row):
    """The edit changes one image of Van Gogh, and one of Monet."""
    return "green" if column == "edited" and row.prompt in "ac" else "red"


def test_what_enters_each_mean(bank, scored, file, networks):
    gone = bank("Van Gogh style")
    found = scored(ArtistsSuite(Subject.of(gone), [1], prompts=file), gone, shows)
    edited = found["edited"]
    assert found["base"] == {} and set(edited) == {"LPIPS_e", "LPIPS_u", "style loss_e", "style loss_u"}
    assert edited["LPIPS_e"].value == pytest.approx(1) and edited["LPIPS_e"].n == 2
    assert edited["LPIPS_u"].value == pytest.approx(2 / 3), "the mean over prompts, not over artists, would be 1/2"
    assert edited["LPIPS_u"].per_item == {"Monet": pytest.approx(1), "Goya": pytest.approx(0)}
    assert (edited["LPIPS_e"].direction, edited["LPIPS_u"].direction) == ("higher", "lower")
    # Gram matrices of the two colours differ in 2 of 9 entries by 1/3 (1 / channels): mean 2/81, five layers; of the
    # map itself two channels of three differ by 1.
    one = 1e6 * 5 * 2 / 81 + 2 / 3
    assert edited["style loss_e"].value == pytest.approx(one / 2, rel=1e-5)
    assert edited["style loss_u"].value == pytest.approx(one / 3, rel=1e-5)
    assert found["how"]["not measured"] == []


def test_a_concept_that_no_prompt_asks_for_is_said(bank, scored, file, networks):
    for concepts, lost in ((("Van Gogh style", "Hokusai"), ["Hokusai"]), (("Van Gogh style", "Monet"), None)):
        gone = bank(*concepts)
        found = scored(ArtistsSuite(Subject.of(gone), [1], prompts=file), gone, shows)
        assert found["how"].get("not measured: concepts") == lost


def test_without_the_networks_a_clip_measures_under_other_names(bank, scored, file, without_networks):
    gone = bank("van gogh")
    found = scored(ArtistsSuite(Subject.of(gone), [1], prompts=file, clip="canvas-clip"), gone, shows)
    assert set(found["base"]) == {"target CLIP score", "CLIP score"}
    assert set(found["edited"]) == {"target CLIP score", "CLIP score", "target distance", "distance kept"}
    assert found["edited"]["target distance"].value > found["edited"]["distance kept"].per_item["Goya"]
    assert [each.split(":")[0] for each in found["how"]["not measured"]] == ["LPIPS_e, LPIPS_u", "style loss"]


def test_a_list_of_the_erased_artist_alone_says_so(bank, scored, file, networks):
    file.write_text(LIST[: LIST.index("2,c")])
    gone = bank("Van Gogh")
    found = scored(ArtistsSuite(Subject.of(gone), [1], prompts=file), gone, shows)
    assert set(found["edited"]) == {"LPIPS_e", "style loss_e"} and "LPIPS_u" in found["how"]["not measured"][0]


def test_the_whole_way_with_an_empty_base_column(tiny, file, networks, tmp_path):
    file.write_text(LIST[: LIST.index("3,d")])
    run, theta = RunDirectory(tmp_path / "run"), find_parameter(tiny, "unet.conv_out.bias")
    run.folder.mkdir()
    edit = WeightEdit({"unet.conv_out.bias": torch.full_like(theta, 3.0)}, EditInfo("test", ("Van Gogh",)))
    edit.save(run.edit)
    table = evaluate(run, "artists", tiny, edit, prompts=file, steps=2)
    assert table["base"] == [] and [s.name for s in table["edited"]][:2] == ["LPIPS_e", "LPIPS_u"]
    assert min(s.value for s in table["edited"]) > 0 and "LPIPS_e" in write_report(run).read_text(encoding="utf-8")
    assert [panel.title for panel in run.read_panels()] == ["What should stay and changed most (artists)"]


@pytest.mark.parametrize(
    ("concept", "content", "said"),
    [
        ("Klimt", LIST, "no prompts of 'Klimt'.*'Monet'"),
        ("Van Gogh", "prompt,seed\na,1\n", "'artist'.*--column artist"),
    ],
)
def test_refused_by_name(concept, content, said, bank, file, networks):
    file.write_text(content)
    with pytest.raises(DataError, match=said):
        ArtistsSuite(Subject.of(bank(concept)), [1], prompts=file)


def test_without_any_network_it_is_refused_before_images_are_made(bank, file, without_networks):
    with pytest.raises(ConfigError, match=r"nothing can be measured.*--clip"):
        ArtistsSuite(Subject.of(bank("Van Gogh")), [1], prompts=file)
