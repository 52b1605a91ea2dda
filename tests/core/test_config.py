"""Settings: nothing that was set is lost, nothing is changed in place, every mistake is one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml

from mu.core.concept import ConceptList
from mu.core.config import BaseConfig, Devices, Templates, filled, read_settings
from mu.core.errors import ConfigError, DataError, nearest
from mu.core.program import parsed


class Deep(BaseConfig):
    x: int = 1
    """A number."""


class Inner(BaseConfig):
    rate: float = 0.1
    """Another."""
    deep: Deep = Deep()
    """Further down."""


class Settings(BaseConfig):
    name: str = "a"
    """What it is called."""
    inner: Inner = Inner()
    """A section."""
    many: list[Inner] | None = None
    """Several sections."""


def test_an_edit_by_attribute_survives_every_copy() -> None:
    config = Settings()
    config.inner.deep.x = 5
    assert config.merged({}).inner.deep.x == 5
    assert config.merged({"inner": {"rate": 2}}, {"name": "b"}).model_dump() == {
        "name": "b",
        "inner": {"rate": 2.0, "deep": {"x": 5}},
        "many": None,
    }
    assert Settings().inner.deep.x == 1


def test_only_what_was_set_counts_as_set_in_the_copy() -> None:
    copy = Settings.parse({"inner": {"rate": 3}}).merged({"many": [{"rate": 1}]})
    assert copy.model_fields_set == {"inner", "many"}
    assert copy.inner.model_fields_set == {"rate"}


@pytest.mark.parametrize(
    "overrides",
    [{"inner": {"deep": {"x": 3}}}, {"inner.deep.x": 3}, {"inner": {"deep.x": 3}}, {"inner": Inner(deep=Deep(x=3))}],
)
def test_overrides_may_be_nested_dotted_or_objects(overrides: dict[str, Any]) -> None:
    base = Settings.parse({"inner": {"rate": 7}})
    merged = base.merged(overrides)
    assert (merged.inner.deep.x, merged.inner.rate) == (3, 7)
    assert base.inner.deep.x == 1


def test_an_object_override_with_an_edited_section_keeps_it() -> None:
    inner = Inner()
    inner.deep.x = 9
    assert Settings().merged({"inner": inner}).inner.deep.x == 9


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"nam": 1}, "'name'"),
        ({"inner": {"rat": 1}}, "inner.rat.*'rate'"),
        ({"inner": {"rate": "x"}}, "inner.rate.*'x'"),
        ({"inner": 3}, "inner"),
        ({"many": [{"rat": 1}]}, "many.0.rat.*'rate'"),
        ({"nam": 1, "inner": {"rat": 1}}, "inner.rat.*1"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Settings.parse(wrong)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        Settings().merged(wrong)


@pytest.mark.parametrize(
    ("content", "said"), [("- 1\n", "c.yaml"), ("a: [\n", r"c\.yaml\D*\b2\b"), ("name: [1]\n", "name")]
)
def test_bad_files_are_one_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        Settings.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        Settings.load(path)
    for missing in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError):
            Settings.load(missing)
    path.write_text("name: b")
    assert Settings.load(path) == Settings(name="b")


def test_yaml_is_the_settings(tmp_path: Path) -> None:
    config = Settings.parse({"name": "yes: #1", "inner": {"rate": 1e-5}, "many": [{"rate": 2}]})
    for comments in (True, False):
        text = config.to_yaml(comments)
        assert Settings.parse(yaml.safe_load(text)) == config
        assert ("# What it is called." in text) == comments


class Prompted(BaseConfig):
    templates: Templates = []
    """Prompts around a concept."""


@pytest.mark.parametrize("templates", [["a picture"], ["{} and {}"], ["{}", "a picture"], ["{name}"]])
def test_a_template_has_one_place_for_the_concept(templates: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^templates.*{}"):
        Prompted.parse({"templates": templates})
    assert Prompted.parse({"templates": ["{}", "a {} image"]}).templates == ["{}", "a {} image"]


def test_nearest() -> None:
    close = nearest("itterations", ["iterations", "lr"])
    assert "'iterations'" in close and "lr" not in close
    assert "a, b" in nearest("zzz", ["a", "b"])
    assert nearest("zzz", []) == ""


class Renamed(BaseConfig):
    renamed: ClassVar[Mapping[str, str]] = {"old": "new"}

    new: dict[str, int] = {}
    """Any."""


def test_settings_answer_to_their_former_names() -> None:
    """In files, in overrides on top of the present name, and never in what is written."""
    config = Renamed.parse({"new": {"a": 1}}).merged({"old.b": 2})
    assert config.new == {"a": 1, "b": 2} == Renamed.parse({"old": {"a": 1, "b": 2}}).new
    assert "old" not in config.to_yaml()
    with pytest.raises(ConfigError, match="older"):
        Renamed.parse({"older": {}})


class Outer(BaseConfig):
    section: Renamed = Renamed()
    """A section with a former name inside."""


def test_a_setting_under_both_its_names_is_refused() -> None:
    """In one file or one call; an override by the former name still replaces the present one."""
    nested: dict[str, Any] = {"section": {"old": {"a": 1}, "new": {"a": 2}}}
    with pytest.raises(ConfigError, match="'old' is the former name of 'new'"):
        Outer.parse(nested)
    for both in (nested, {"section.old.a": 1, "section.new.b": 2}):
        with pytest.raises(ConfigError, match="former name"):
            Outer().merged(both)
    assert Outer.parse({"section": {"new": {"a": 1}}}, {"section.old.a": 3}).section.new == {"a": 3}
    assert Outer.parse({"section": {"old": {"a": 1}}}, {"section.new.a": 3}).section.new == {"a": 3}


@pytest.mark.parametrize("template", ["{} {0.__class__}", "{}}", "{{}", "{}{", "a {} {name}", "{!r} {}"])
def test_a_template_has_no_other_braces(template: str) -> None:
    with pytest.raises(ConfigError, match=r"^templates\.0.*no other braces"):
        Prompted.parse({"templates": [template]})


def test_a_template_takes_any_text_as_it_is() -> None:
    assert filled("a {} image", "{0.__class__} {}") == "a {0.__class__} {} image"


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(number: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"inner: {{rate: {number}}}\n")
    with pytest.raises(ConfigError, match=r"inner\.rate.*finite"):
        Settings.load(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "wrong",
    [
        {"x" * 100_000: 1},
        {"inner": {"rate": "x" * 100_000}},
        {"inner": {"rate": [["x" * 1000] * 100] * 1000}},
        {"a" + ".a" * 5000: 1},
        {"inner.deep.x": 10**5000},
        {"name": "\x00"},
        {"na\nme\x1b": 1},
    ],
)
def test_mistakes_of_any_size_are_a_short_line(wrong: dict[str, Any]) -> None:
    for refuse in (Settings.parse, Settings().merged):
        with pytest.raises(ConfigError) as caught:
            refuse(wrong)
        assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


class Texts(BaseConfig):
    concepts: ConceptList = []
    """Text in a list."""
    anchor: str | None = None
    """Text or nothing."""
    many: list[Inner] | None = None
    """Sections."""
    inner: Settings = Settings()
    """A section with text."""
    anchors: dict[str, str] = {}
    """Text in a mapping."""
    devices: Devices = ""
    """Text or numbers."""
    rate: float | Literal["off"] = 0.0
    """A number, or a word that YAML reads as another."""
    seed: int | None = None
    """A number."""


WRITTEN = [
    "012",
    "0x1F",
    "1_000",
    ".nan",
    "-.inf",
    "yes",
    "Off",
    "1.50",
    "2001-02-03",
    "1:30",
    "+7",
    "null",
    "0b11",
    "1e3",
    "1984",
]


@pytest.mark.parametrize("word", WRITTEN)
def test_a_text_is_what_is_written_whatever_yaml_makes_of_it(word: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        f"concepts: [{word}, neon]\ninner:\n  name: &x {word}\nanchors: {{star: {word}}}\nseed: 012\nmany: [{{rate: 1_0}}]\n"
    )
    found = Texts.load(file)
    assert found.concepts == [word, "neon"] and found.inner.name == word and found.anchors == {"star": word}
    assert (found.seed, found.many) == (10, [Inner(rate=10)]), "control: numbers are YAML's"
    assert parsed(Texts, {"concepts": f"[{word}]", "seed": "012"}) == {"concepts": [word], "seed": 10}


def test_nothing_and_words_for_numbers_stay_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("anchor: null\ndevices: [0, 1]\nrate: off\ninner: {<<: {name: 007}, many: ~}\n")
    found = Texts.load(file)
    assert (found.anchor, found.devices, found.rate, found.inner.name) == (None, "0,1", "off", "007")
    file.write_text("devices: 00\nrate: 1_0\nconcepts: [~]\n")
    with pytest.raises(DataError, match="a concept must be text, not None"):
        Texts.load(file)
    file.write_text("devices: 00\nrate: 1_0\n")
    assert (Texts.load(file).devices, Texts.load(file).rate) == ("00", 10.0)


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "{}", "~", " \n"])
def test_an_empty_file_of_settings_is_no_request_for_the_defaults(content: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"a\.yaml is empty"):
        Texts.load(file)
    file.write_text("seed: 1")
    assert read_settings(file) == {"seed": 1}  # control
