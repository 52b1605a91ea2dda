"""The files around the package: packaging, Makefile, the automatic check, the conda environment."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.test_layering import Tree, imports

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
BASE = [Requirement(text) for text in PROJECT["dependencies"]]

# Distributions whose import name is not their own name, and modules that come along with one.
IMPORT_NAMES = {
    "open-clip-torch": {"open_clip"},
    "pyyaml": {"yaml"},
    "pillow": {"PIL"},
    "scikit-learn": {"sklearn"},
    "types-pyyaml": set(),
}
COMES_WITH = {
    "transformers": {"tokenizers", "tqdm"},
    "jinja2": {"markupsafe"},
    "pydantic": {"pydantic_core", "typing_extensions"},
    "typer": {"click"},
    "lpips": {"torchvision"},
    "nudenet": {"onnxruntime"},
}

# Requirements that nothing imports, and why they are there all the same.
USED_OTHERWISE = {
    "ipykernel": "nbclient starts it to run the notebooks",
    "tensorboard": "mu.core.tracking writes through torch.utils.tensorboard, which needs it",
    "pytest-xdist": "pytest -n",
    "ruff": "make check runs it",
    "mypy": "make check runs it",
    "types-pyyaml": "mypy reads it",
}


# -- packaging --------------------------------------------------------------------------------------------------------


def modules_of(requirements: list[Requirement]) -> set[str]:
    found: set[str] = set()
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        found |= IMPORT_NAMES.get(name, {name.replace("-", "_")}) | COMES_WITH.get(name, set())
    return found


def undeclared(tree: Tree) -> list[str]:
    """Imports that pyproject.toml does not cover: optional packages only inside functions, developers' tools
    nowhere."""
    base = modules_of(BASE)
    optional = modules_of([r for extra, requirements in EXTRAS.items() if extra != "dev" for r in requirements])
    wrong = []
    for path in tree:
        for found in imports(tree, path):
            if found.library in sys.stdlib_module_names | {"mu"} | base:
                continue
            if found.library not in optional:
                wrong.append(f"{path}:{found.line}: {found.library} is not in pyproject.toml")
            elif not found.lazy:
                wrong.append(f"{path}:{found.line}: {found.library} is optional: import it where it is used")
    return wrong


def unused(extras: dict[str, list[Requirement]], package: Tree, tests: Tree) -> list[str]:
    """Requirements that neither the package imports nor, what is for developers, the tests; and reasons that no longer
    hold."""

    def imported(tree: Tree) -> set[str]:
        return {found.library for path in tree for found in imports(tree, path)}

    by_package, by_tests = imported(package), imported(tests)
    told, needless = [], set(USED_OTHERWISE)
    for extra, requirements in extras.items():
        for requirement in requirements:
            name = canonicalize_name(requirement.name)
            modules = IMPORT_NAMES.get(name, {name.replace("-", "_")})
            if modules & (by_package | by_tests if extra == "dev" else by_package):
                continue
            needless.discard(name)
            if name not in USED_OTHERWISE:
                told.append(
                    f"{extra}: nothing imports {requirement.name}: drop it, or say in USED_OTHERWISE what it is for"
                )
    return told + [
        f"{name} is imported or no requirement any more: take it from USED_OTHERWISE" for name in sorted(needless)
    ]


def wrong_advice(tree: Tree) -> list[str]:
    """`MissingDependency(package, extra, need)` must name an extra that brings the package."""
    wrong = []
    for path, source in tree.items():
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(
                    func=ast.Name("MissingDependency"), args=[ast.Constant(package), ast.Constant(extra), *_]
                ):
                    brought = {canonicalize_name(r.name) for r in EXTRAS.get(extra, [])} | modules_of(
                        EXTRAS.get(extra, [])
                    )
                    if package not in brought and canonicalize_name(package) not in brought:
                        wrong.append(f"{path}:{node.lineno}: the extra {extra!r} does not bring {package!r}")
    return wrong


def package() -> Tree:
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("mu/**/*.py")}


def test_every_import_is_declared() -> None:
    assert undeclared(package()) == []


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pandas", "not in pyproject"),
        ("import open_clip", "optional"),
        ("def f():\n    import pytest", "not in pyproject"),
        ("def f():\n    import open_clip_torch", "not in pyproject"),
    ],
)
def test_control_undeclared_import(source: str, what: str) -> None:
    (line,) = undeclared({"mu/models/clip.py": source})
    assert what in line
    assert (
        undeclared({"mu/models/clip.py": "import yaml, PIL.Image\ndef f():\n    import open_clip, torch_fidelity"})
        == []
    )


def test_every_requirement_is_used() -> None:
    tests = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py")}
    declared = {"dependencies": BASE, **EXTRAS}
    assert unused(declared, package(), tests) == []
    (line,) = unused({**declared, "app": [Requirement("gradio>=5")]}, package(), tests)
    assert line.startswith("app: nothing imports gradio"), "control"
    (line,) = unused({**declared, "dependencies": [*BASE, Requirement("peft")]}, package(), tests)
    assert line.startswith("dependencies: nothing imports peft"), "control: the tests do, and do not count there"
    (line,) = unused(declared, {**package(), "mu/a.py": "def f():\n    import tensorboard"}, tests)
    assert line.startswith("tensorboard is imported"), "control"
    (line,) = unused({**declared, "dev": [r for r in EXTRAS["dev"] if r.name != "ruff"]}, package(), tests)
    assert line.startswith("ruff is imported or no requirement"), "control"


def test_missing_packages_are_asked_for_by_an_extra_that_brings_them() -> None:
    assert wrong_advice(package()) == []
    assert wrong_advice({"mu/a.py": "raise MissingDependency('lpips', 'clip', 'LPIPS')"})
    assert not wrong_advice({"mu/a.py": "raise MissingDependency('open_clip', 'clip', 'x')"})


def test_version_is_one() -> None:
    version = PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    newest = re.search(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest.group(1) == version
    written = re.search(
        r"""^__version__ = ["'](.+)["']""", (ROOT / "mu/__init__.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert written is None or written.group(1) == version


def test_every_place_names_the_same_pythons() -> None:
    oldest, newest = "3.10", "3.13"
    listed = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.fullmatch(r".* :: 3\.\d+", c)]
    assert listed == [f"3.{k}" for k in range(int(oldest[2:]), int(newest[2:]) + 1)]
    assert PROJECT["requires-python"] == f">={oldest}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"Python {oldest} or newer" in makefile and f"({oldest.replace('.', ', ')})" in makefile
    for name in ("README.md", "CONTRIBUTING.md"):
        assert f"Python {oldest} to {newest}" in (ROOT / name).read_text(encoding="utf-8")


def test_constraints_pin_what_is_asked_for() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.partition(";")[0].split("==")
            pins[canonicalize_name(name)] = Version(version)
    for requirement in [*BASE, *EXTRAS["dev"]]:
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    assert all(version.local is None for version in pins.values()), "a local version (+cpu) is on one index only"


def test_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_gitignore_keeps_what_belongs_to_the_package() -> None:
    """The wheel leaves out what git ignores."""
    pathspec = pytest.importorskip("pathspec")
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = pathspec.PathSpec.from_lines("gitignore", lines).match_file
    for path in (
        ".venv/bin/python",
        "outputs/run/edit.safetensors",
        "data/i2p-dataset/sample/a.png",
        "mu_unlearning.egg-info/PKG",
    ):
        assert ignored(path), path
    for path in (
        "mu/models/canvas/weights/unet/model.safetensors",
        "mu/data/canvas/scenes.py",
        "mu/algorithms/esd/canvas.yaml",
        "mu/report/page.html",
        "mu/data/x.csv",
    ):
        assert not ignored(path), path


def test_conda_environment_finds_the_repository() -> None:
    """conda runs pip in the file's folder."""
    file = ROOT / "mu/algorithms/semipermeable_membrane/environment.yaml"
    environment = yaml.safe_load(file.read_text(encoding="utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    paths = dict(line.split() for line in pip)
    assert (file.parent / paths["-e"]).resolve() == ROOT
    assert (file.parent / paths["-c"]).resolve() == ROOT / "constraints.txt"
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= (3, 10)


# -- make and the automatic check -------------------------------------------------------------------------------------

STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
  *"-m venv "*) mkdir -p .venv/bin; for tool in pip python mu pytest ruff mypy; do cp "$0" ".venv/bin/$tool"; done ;;
  *"pip install"*) exit "${PIP_STATUS:-0}" ;;
esac
"""


@dataclass
class Clone:
    """A fresh clone where the interpreter is a stand-in that writes down what it is asked to do."""

    folder: Path

    def make(self, *targets: str, **environment: str) -> tuple[int, list[str]]:
        log = self.folder.parent / "log"
        log.write_text("")
        done = subprocess.run(
            ["make", *targets, f"PYTHON={self.folder.parent / 'python3'}"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "LOG": str(log), **environment},
            timeout=60,
        )
        return done.returncode, [line for line in log.read_text().splitlines() if " -c import" not in line]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    python = tmp_path / "python3"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "benchmarks").mkdir()
    return Clone(folder)


TEST = "pytest -n 2 --dist worksteal"
INSTALL = ["python3 -m venv .venv", "python -m pip install -c constraints.txt -e .[dev]"]


@pytest.mark.parametrize(
    ("target", "work"),
    [
        ("demo", ["mu demo --overwrite"]),
        ("test", [TEST]),
        ("check", ["ruff format --check .", "ruff check .", "mypy "]),
        ("docs", ["python docs/generate.py"]),
    ],
)
def test_make_installs_once_then_works(clone: Clone, target: str, work: list[str]) -> None:
    assert clone.make(target) == (0, INSTALL + work)
    assert clone.make(target) == (0, work)


def test_make_installs_again_when_requirements_change(clone: Clone) -> None:
    clone.make("test")
    later = time.time() + 5
    os.utime(clone.folder / "constraints.txt", (later, later))
    assert clone.make("test") == (0, [INSTALL[1], TEST])


def test_make_does_not_take_a_failed_installation_for_one(clone: Clone) -> None:
    code, lines = clone.make("demo", PIP_STATUS="1")
    assert code != 0 and lines == INSTALL
    assert clone.make("demo") == (0, [INSTALL[1], "mu demo --overwrite"])


def test_make_bench_runs_each_plan_and_script(clone: Clone) -> None:
    assert clone.make("bench")[0] != 0
    for name in ("b.py", "a.py", "_shared.py"):
        (clone.folder / "benchmarks" / name).touch()
    train = "mu canvas train --world {0} --steps unet=6500 --out outputs/world-{0}"
    worlds = [train.format(world) for world in (5, 7, 8, 9)]
    scripts = ["python benchmarks/a.py", "python benchmarks/b.py"]
    assert clone.make("bench") == (0, [*worlds, *scripts])
    (clone.folder / "benchmarks" / "plans").mkdir()
    (clone.folder / "benchmarks" / "plans" / "some.yaml").touch()
    planned = [*worlds, "mu grid run benchmarks/plans/some.yaml", *scripts]
    assert clone.make("bench") == (0, planned), "plans come first"


def test_make_alone_lists_the_targets(clone: Clone) -> None:
    done = subprocess.run(["make"], cwd=clone.folder, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 0
    assert {line.split()[1] for line in done.stdout.splitlines()} == {"help", "demo", "test", "check", "bench", "docs"}


@pytest.mark.parametrize(("failing", "expected"), [("", ["check", "test"]), ("check", ["check"])])
def test_the_automatic_check(tmp_path: Path, failing: str, expected: list[str]) -> None:
    run = tmp_path / "clone" / ".ci" / "run"
    run.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", run)
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "$1" >> "{tmp_path}/log"\n[ "$1" != "{failing}" ]\n')
    make.chmod(0o755)
    done = subprocess.run([run], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, cwd=tmp_path)
    assert (done.returncode != 0) == bool(failing)
    assert (tmp_path / "log").read_text().split() == expected
