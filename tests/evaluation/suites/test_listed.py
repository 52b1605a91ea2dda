"""Lists of prompts: rows that count once, and images of a list that were made elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mu.core.errors import ConfigError, DataError
from mu.core.intervals import wilson
from mu.core.run import RunDirectory
from mu.diffusion.image_files import read_images, save_image
from mu.evaluation.judges.nudenet import PRESETS, NudityJudge
from mu.evaluation.suites import evaluate_found, i2p, prompts
from mu.evaluation.suites.listed import read_list
from mu.report import write_report
from mu.report.page import read_page
from tests.evaluation.suites.conftest import COLOURS, Colours
from tests.evaluation.suites.test_i2p import detector

LIST = """case_number,prompt,evaluation_seed,class,artist,categories
3,one,11,red,Van Gogh,"sexual, hate"
4,two,12,red,Van Gogh,hate
5,three,13,green,Monet,hate
6,four,14,green,Monet,sexual
"""
LAYOUTS: dict[str, Callable[[int], str]] = {
    "ESD": lambda case: f"{case}_0.png",
    "numbers": lambda case: f"{case}.jpg",
    "COCO": lambda case: f"COCO_val2014_{case:012}.jpg",
    "padded": lambda case: f"{case:012}.png",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "list.csv"
    path.write_text(LIST)
    return path


def drawn(folder: Path, layout: str, **colours: str) -> Path:
    """``folder`` with an image of one colour for each case."""
    for case, name in colours.items():
        image = torch.tensor(COLOURS[name]).view(3, 1, 1).expand(3, 8, 8)
        save_image(image, folder / LAYOUTS[layout](int(case.removeprefix("c"))))
    return folder


def found(tmp_path: Path, suite: str, concept: str, images: Path, out: str = "out", **options: Any) -> dict[str, Any]:
    table = evaluate_found(RunDirectory(tmp_path / out), suite, [concept], images, **options)
    return {column: {score.name: score for score in scores} for column, scores in table.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_made_elsewhere_by_every_suite_of_a_list(
    layout: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_networks: None
) -> None:
    monkeypatch.setattr(prompts, "open_judge", lambda name, device: Colours())
    base = drawn(tmp_path / "base", layout, c3="red", c4="red", c5="green", c6="green")
    made = drawn(tmp_path / "made", layout, c3="blue", c4="red", c5="green", c6="red")
    scores = found(tmp_path, "prompts", "red", made, base_images=base, prompts=file)
    assert (scores["base"]["target shown"].value, scores["edited"]["target shown"].value) == (1, 0.5)
    assert scores["edited"]["expected shown"].value == 0.5 and scores["edited"]["target distance"].value > 0.1
    assert "sampled elsewhere" in scores["edited"]["target shown"].protocol
    alone = found(tmp_path, "prompts", "red", made, "alone", prompts=file)
    assert set(alone) == {"edited"} and alone["edited"]["target shown"].value == 0.5
    assert alone["edited"]["expected shown"].value == 0.5 and "target distance" not in alone["edited"]
    judge = NudityJudge(detector, PRESETS["mace"], "nudenet:mace")
    monkeypatch.setattr(i2p, "open_judge", lambda name, device: judge)
    nude = found(tmp_path, "i2p", "nudity", made, "nude", base_images=base, prompts=file)
    assert nude["base"]["flagged"].value == 0.5 and nude["edited"]["flagged"].value == 0.75
    assert nude["edited"]["flagged"].per_item["hate"] == pytest.approx(2 / 3)
    more: dict[str, Any] = {"clip": "canvas-clip", "prompts": file}
    coco = found(tmp_path, "coco", "red", made, "coco", base_images=base, reference=base, **more)
    to_reference = {column: scores["CMMD to reference"].value for column, scores in coco.items()}
    assert to_reference["base"] == pytest.approx(0, abs=1e-3) and to_reference["edited"] > 0.05
    art = found(tmp_path, "artists", "Van Gogh", made, "art", base_images=base, **more)
    assert art["edited"]["target distance"].value > 0 and art["edited"]["distance kept"].n == 2
    with pytest.raises(DataError, match="--base-images"):
        found(tmp_path, "artists", "Van Gogh", made, "art2", **more)


def test_missing_images_are_told_or_left_out(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_networks: None
) -> None:
    monkeypatch.setattr(prompts, "open_judge", lambda name, device: Colours())
    made = drawn(tmp_path / "made", "ESD", c3="blue", c5="green", c6="green")
    with pytest.raises(DataError, match=r"1 images of 4 are missing in .*made: 4_0\.png; make them"):
        found(tmp_path, "prompts", "red", made, prompts=file)
    base = drawn(tmp_path / "base", "ESD", c3="red", c4="red", c5="green")
    with pytest.raises(
        DataError, match=r"2 images of 8 are missing in .*base and .*made: 6_0\.png, 4_0\.png; make them"
    ):
        found(tmp_path, "prompts", "red", made, prompts=file, base_images=base)
    for name, value in {"size": (8, 8), "guidance": 3.0, "steps": 9}.items():
        with pytest.raises(ConfigError, match=f"{name} is for images made here"):
            found(tmp_path, "prompts", "red", made, prompts=file, allow_missing=True, **{name: value})
    some = found(tmp_path, "prompts", "red", made, prompts=file, allow_missing=True)["edited"]
    assert (some["target shown"].n, some["expected shown"].n) == (1, 2)
    assert some["target shown"].protocol.endswith("3 of 4 images")


def sampled(folder: Path, **colours: str) -> Path:
    """``folder`` with the samples of each case, ``c3="red blue"``, as ESD's sampler names them."""
    for case, names in colours.items():
        for k, name in enumerate(names.split()):
            image = torch.tensor(COLOURS[name]).view(3, 1, 1).expand(3, 8, 8)
            save_image(image, folder / f"{case.removeprefix('c')}_{k}.png")
    return folder


def test_every_sample_of_a_prompt_enters(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_networks: None, caplog: Any
) -> None:
    """By hand: 6 target images of which 3 are red, 6 others of which 4 are green."""
    monkeypatch.setattr(prompts, "open_judge", lambda name, device: Colours())
    base = sampled(
        tmp_path / "base", c3="red red red", c4="red red red", c5="green green green", c6="green green green"
    )
    made = sampled(
        tmp_path / "made", c3="red blue red", c4="blue red blue", c5="green green blue", c6="green red green"
    )
    scores = found(tmp_path, "prompts", "red", made, base_images=base, prompts=file)
    shown, expected = scores["edited"]["target shown"], scores["edited"]["expected shown"]
    assert (shown.value, shown.n) == (0.5, 6) and shown.interval == pytest.approx(wilson(3, 6))
    assert (expected.value, expected.n) == (pytest.approx(4 / 6), 6) and scores["base"]["target shown"].n == 6
    assert ", 3 samples a prompt" in shown.protocol and "enter no number" not in caplog.text
    judge = NudityJudge(detector, PRESETS["mace"], "nudenet:mace")
    monkeypatch.setattr(i2p, "open_judge", lambda name, device: judge)
    nude = found(tmp_path, "i2p", "nudity", made, "nude", base_images=base, prompts=file)["edited"]
    assert nude["flagged"].n == nude["body parts"].n == 12 and nude["body parts of hate"].n == 9
    more: dict[str, Any] = {"clip": "canvas-clip", "prompts": file, "base_images": base}
    art = found(tmp_path, "artists", "Van Gogh", made, "art", **more)["edited"]
    assert art["target distance"].n == art["distance kept"].n == 6
    assert art["distance kept"].value == pytest.approx(art["target distance"].value * 2 / 3, rel=0.5)
    coco = found(tmp_path, "coco", "red", made, "coco", reference=base, **more)["edited"]
    assert coco["CLIP score"].n == 12


def test_samples_that_some_prompts_lack_are_told(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prompts, "open_judge", lambda name, device: Colours())
    made = sampled(tmp_path / "made", c3="red blue", c4="red red", c5="green green", c6="green")
    with pytest.raises(DataError, match="1 images of 8 are missing"):
        found(tmp_path, "prompts", "red", made, prompts=file)
    save_image(torch.zeros(3, 8, 8), made / "6_1.png")
    assert found(tmp_path, "prompts", "red", made, prompts=file)["edited"]["expected shown"].n == 4
    base = sampled(tmp_path / "base", c3="red", c4="red", c5="green", c6="green")
    with pytest.raises(DataError, match="4 images of 16 are missing"):
        found(tmp_path, "prompts", "red", made, "b", base_images=base, prompts=file)
    some = found(tmp_path, "prompts", "red", made, "b", base_images=base, prompts=file, allow_missing=True)
    assert some["edited"]["expected shown"].n == some["base"]["expected shown"].n == 2
    assert "images that enter no number" not in caplog.text  # they are asked for, and only the base's are missing
    save_image(torch.zeros(3, 8, 8), made / "7_0.png")
    table = found(tmp_path, "prompts", "red", made, "c", prompts=file)
    assert "images that enter no number: 1, such as" in caplog.text and "7_0.png" in caplog.text
    assert table["edited"]["target shown"].n == 4
    (made / "3_1.png").rename(made / "3_4.png")
    for case in (4, 5, 6):
        (made / f"{case}_1.png").unlink()
    with pytest.raises(DataError, match="no image CASE_1"):
        found(tmp_path, "prompts", "red", made, "d", prompts=file)
    assert not (tmp_path / "d").exists()


def test_images_of_cases_that_the_list_does_not_have_are_no_samples(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By hand: two images ask for red, and one of them is. The list is a part of a longer one."""
    monkeypatch.setattr(prompts, "open_judge", lambda name, device: Colours())
    made = sampled(tmp_path / "made", c3="red", c4="blue", c5="green", c6="green", c7="red red red", c33="red")
    (made / "33_0.png").rename(made / "33_5.png")
    shown = found(tmp_path, "prompts", "red", made, prompts=file)["edited"]["target shown"]
    assert (shown.value, shown.n) == (0.5, 2) and "samples a prompt" not in shown.protocol
    assert "images that enter no number: 4, such as" in caplog.text
    sampled(made, c3="red red", c4="red red", c5="green green", c6="green green")  # control: those of its own cases are
    shown = found(tmp_path, "prompts", "red", made, "again", prompts=file)["edited"]["target shown"]
    assert (shown.value, shown.n) == (1, 4) and "2 samples a prompt" in shown.protocol


def test_prompts_without_a_seed_have_as_many_samples_as_seeds(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "open_judge", lambda name, device: Colours())
    file.write_text("case_number,prompt\n3,one\n4,two\n")
    made = sampled(tmp_path / "made", c3="red blue", c4="blue blue")
    with pytest.raises(ConfigError, match="have no seed, and 2 images each: name as many with --seeds, not 4"):
        found(tmp_path, "prompts", "red", made, prompts=file, retain=["green"])
    shown = found(tmp_path, "prompts", "red", made, prompts=file, retain=["green"], seeds=[5, 6])["edited"]
    assert (shown["target shown"].value, shown["target shown"].n) == (0.25, 4)
    assert "samples a prompt" not in shown["target shown"].protocol


def test_rows_of_the_same_image_count_once_and_blank_ones_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "list.csv"

    def cases(text: str, **options: Any) -> tuple[list[int], list[str]]:
        path.write_text(text)
        listed = read_list("prompts/1", path, [1, 2], **options)
        return [case.row.case_number for case in listed.cases], listed.how.get("left out of the list", [])

    kept, told = cases("prompt,seed\na cat,1\na cat,1\n a  cat ,1\n   ,3\na cat,2\n")
    assert kept == [0, 4] and "2 rows ask for an image that another asks for" in told[0]
    assert "1 prompts are blank, the first one of case 3" in told[1] and all(each in caplog.text for each in told)
    assert cases("prompt\na cat\na cat\n")[0] == [0, 0]  # both seeds, once
    assert cases("prompt,seed\n ,3\na cat,1\n", blank=True) == ([0, 1], [])  # I2P's own blank prompt
    labelled = "prompt,seed,class\na cat,1,cat\na cat,1,dog\n"
    assert cases(labelled) == ([0, 1], [])  # two questions about one image
    assert cases("prompt,seed\na cat,1\na dog,1\n") == ([0, 1], [])  # the control
    with pytest.raises(DataError, match="only blank prompts"):
        cases('prompt,seed\n" ",3\n')


def test_the_page_of_images_made_elsewhere_shows_them_and_says_what_is_unknown(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_networks: None
) -> None:
    monkeypatch.setattr(prompts, "open_judge", lambda name, device: Colours())
    file.write_text(LIST.replace("3,one", "3,a red door").replace("5,three", "5,a green door"))
    base = drawn(tmp_path / "base", "ESD", c3="red", c4="red", c5="green", c6="green")
    made = drawn(tmp_path / "made", "ESD", c3="blue", c4="blue", c5="green", c6="green")
    found(tmp_path, "prompts", "red", made, base_images=base, prompts=file)
    page = read_page(RunDirectory(tmp_path / "out"))
    named, other, changed = page.grids
    assert [label for label, _ in named.rows] == ["a red door"] and "changed most" in changed.title
    assert [label for label, _ in other.rows] == ["two", "a green door", "four"]
    for grid in page.grids:
        assert grid.columns == ["base", "edited"]
    shown = [read_images([tmp_path / "out" / shot.file])[0].mean(dim=(1, 2)) for shot in named.rows[0][1]]
    assert [each.round().tolist() for each in shown] == [list(COLOURS[name]) for name in ("red", "blue")]
    assert page.losses.compared and not any("The base" in gap for gap in page.unmeasured)
    names = [name for name, _ in page.hashes]
    assert {f"images made elsewhere, {column}, SHA-256, suite prompts" for column in ("base", "edited")} <= {*names}
    assert "digest of the prompts, suite prompts" in names
    found(tmp_path, "prompts", "red", made, "alone", prompts=file)
    page = read_page(RunDirectory(tmp_path / "alone"))
    assert [grid.columns for grid in page.grids] == [["edited"], ["edited"]]
    assert not page.losses.sentences and page.losses.nothing.startswith("Unknown")
    assert "The base, by suite prompts: none of its images were given." in page.unmeasured
    html = write_report(RunDirectory(tmp_path / "alone")).read_text(encoding="utf-8")
    assert "No score got worse" not in html and "None yet" not in html
    found(tmp_path, "prompts", "blue", made, "again", prompts=file)  # no prompt names it
    assert [grid.title for grid in read_page(RunDirectory(tmp_path / "again")).grids] == ["Other prompts (prompts)"]
