"""The files around the package: packaging, Makefile, the automatic check, downloads, the conda environment."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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
    "open-clip-torch": {"open_clip"}, "pyyaml": {"yaml"}, "pillow": {"PIL"}, "scikit-learn": {"sklearn"}, "types-pyyaml": set(),
}  # fmt: skip
COMES_WITH = {
    "transformers": {"tokenizers", "huggingface_hub", "tqdm"},
    "jinja2": {"markupsafe"}, "pydantic": {"typing_extensions"}, "typer": {"click"}, "lpips": {"torchvision"}, "nudenet": {"onnxruntime"},
}  # fmt: skip

# Requirements that nothing imports, and why they are there all the same.
USED_OTHERWISE = {
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
    """Imports that pyproject.toml does not cover: optional packages only inside functions, developers' tools nowhere."""
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
    """Requirements that neither the package imports nor, what is for developers, the tests; and reasons that no longer hold."""

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
                told.append(f"{extra}: nothing imports {requirement.name}: drop it, or say in USED_OTHERWISE what it is for")
    return told + [f"{name} is imported or no requirement any more: take it from USED_OTHERWISE" for name in sorted(needless)]


def wrong_advice(tree: Tree) -> list[str]:
    """`MissingDependency(package, extra, need)` must name an extra that brings the package."""
    wrong = []
    for path, source in tree.items():
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(func=ast.Name("MissingDependency"), args=[ast.Constant(package), ast.Constant(extra), *_]):
                    brought = {canonicalize_name(r.name) for r in EXTRAS.get(extra, [])} | modules_of(EXTRAS.get(extra, []))
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
    assert undeclared({"mu/models/clip.py": "import yaml, PIL.Image\ndef f():\n    import open_clip, torch_fidelity"}) == []


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
    written = re.search(r"""^__version__ = ["'](.+)["']""", (ROOT / "mu/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert written is None or written.group(1) == version


def test_constraints_pin_what_is_asked_for() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
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
        "mu/algorithms/presets/esd-canvas.yaml",
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
            ["make", *targets, f"PYTHON={self.folder.parent / 'python3'}"], cwd=self.folder, capture_output=True, text=True,
            env={"PATH": os.environ["PATH"], "LOG": str(log), **environment}, timeout=60,
        )  # fmt: skip
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


def test_make_bench_runs_each_script(clone: Clone) -> None:
    assert clone.make("bench")[0] != 0
    for name in ("b.py", "a.py", "_shared.py"):
        (clone.folder / "benchmarks" / name).touch()
    assert clone.make("bench") == (0, ["python benchmarks/a.py", "python benchmarks/b.py"])


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


# -- downloads --------------------------------------------------------------------------------------------------------

TOOLS = "bash env basename dirname awk sed tail head wc tr df grep ls mkdir mv rm rmdir cat cp curl unzip sleep".split()
COMMANDS = {
    "download_models.sh": {"compvis": "../models/compvis", "diffuser": "../models/diffuser"},
    "download_i2p_dataset.sh": {"sample": "data/i2p-dataset/sample", "full": "data/i2p-dataset/full"},
    "download_quick_canvas_dataset.sh": {
        "sample": "data/quick-canvas-dataset/sample",
        "full": "data/quick-canvas-dataset/full",
    },
}
EACH = [pytest.param(script, choice, id=f"{script}-{choice}") for script, choices in COMMANDS.items() for choice in choices]
needs_tools = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="the download scripts' tools are not installed")


def archive(*members: tuple[str, bytes], link: str | None = None) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, data in members:
            file.writestr(name, data)
        if link is not None:
            entry = zipfile.ZipInfo("link")
            entry.create_system, entry.external_attr = 3, 0o120777 << 16
            file.writestr(entry, link)
    return content.getvalue()


GOOD = archive(("weights/model.bin", bytes(range(256)) * 400), ("card.md", b"a card\n"))


@dataclass
class Host:
    """A file server that can misbehave. Every path serves ``body``."""

    body: bytes = GOOD
    status: int = 200
    head_status: int = 200
    kind: str = "application/zip"
    stop_after: int | None = None
    """Break the connection after so many bytes of each answer, up to ``breaks`` times."""
    breaks: int = 10**6
    ranges: bool = True
    redirect: bool = False
    hang: threading.Event | None = None
    """With ``stop_after``: hold the connection open until this is set."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range header of each request."""
    url: str = ""

    def got(self) -> list[str | None]:
        return [span for method, _, span in self.asked if method == "GET"]


@pytest.fixture
def host() -> Iterator[Host]:
    serving = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(serving.head_status)

        def do_GET(self) -> None:
            self.answer(200)

        def answer(self, status: int) -> None:
            span = self.headers.get("Range")
            serving.asked.append((self.command, self.path, span))
            if serving.redirect and not self.path.startswith("/store"):
                self.send_response(302)
                self.send_header("Location", f"{serving.url}/store{self.path}")
                self.send_header("Content-Length", "7")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(b"moved\r\n")
                return
            status = serving.status if status == 200 else status
            start = int(re.findall(r"\d+", span)[0]) if span and serving.ranges and status == 200 else 0
            body = serving.body[start:]
            self.send_response(206 if start and status == 200 else status)
            self.send_header("Content-Type", serving.kind)
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(serving.body) - 1}/{len(serving.body)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if serving.stop_after is not None and serving.breaks > 0:
                serving.breaks -= 1
                body = body[: serving.stop_after]
            self.wfile.write(body)
            if serving.hang:
                self.wfile.flush()
                serving.hang.wait(30)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield serving
    server.shutdown()
    server.server_close()


@dataclass
class Shell:
    """A place to run the scripts as from the top of a clone, with a PATH that holds their tools and nothing else."""

    top: Path
    bin: Path
    url: str = "http://127.0.0.1:9"  # nobody listens there

    def environment(self) -> dict[str, str]:
        return {"PATH": str(self.bin), "HF_ENDPOINT": self.url, "HOME": str(self.top), "NO_PROXY": "127.0.0.1", "LC_ALL": "C"}

    def run(self, script: str, *arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [ROOT / "scripts" / script, *arguments],
            cwd=self.top, env=self.environment(), capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def fails(self, code: int, script: str, *arguments: str) -> str:
        """The one line it says."""
        returned, _, err = self.run(script, *arguments)
        assert returned == code, err
        (line,) = err.splitlines()
        assert line.startswith(f"{script}: ")
        return line

    def stand_in(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def files(self) -> dict[str, bytes]:
        """All files around: relative path -> content."""
        around = self.top.parent
        found = (path for path in around.rglob("*") if path.is_file() and self.bin not in path.parents)
        return {path.relative_to(around).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    top, tools = tmp_path / "clone", tmp_path / "bin"
    top.mkdir()
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(str(shutil.which(tool)))
    return Shell(top, tools)


@pytest.mark.parametrize("script", COMMANDS)
def test_download_scripts_are_well_formed(script: str) -> None:
    path = ROOT / "scripts" / script
    assert os.access(path, os.X_OK)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-x", path], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@needs_tools
@pytest.mark.parametrize("script", COMMANDS)
def test_download_arguments(shell: Shell, script: str) -> None:
    for flag in ("--help", "-h"):
        code, out, err = shell.run(script, flag)
        assert (code, err) == (0, "")
        assert all(choice in out for choice in COMMANDS[script]) and f"scripts/{script}" in out
    both = " ".join(COMMANDS[script])
    for arguments in ([], ["everything"], [both], [*COMMANDS[script]], [""]):
        assert both in shell.fails(2, script, *arguments)
    assert shell.files() == {}


@needs_tools
@pytest.mark.parametrize(("script", "choice"), EACH)
def test_download_without_network(shell: Shell, script: str, choice: str) -> None:
    line = shell.fails(2, script, choice)
    assert "no network: 127.0.0.1:9 cannot be reached" in line
    assert list(shell.top.parent.rglob("*")) == [*shell.top.parent.glob("*"), *shell.bin.glob("*")]


@needs_tools
@pytest.mark.parametrize(("script", "choice"), EACH)
def test_download(shell: Shell, host: Host, script: str, choice: str) -> None:
    shell.url = host.url
    code, _, err = shell.run(script, choice)
    assert (code, err) == (0, "")
    folder = os.path.normpath(f"clone/{COMMANDS[script][choice]}")
    everything = {f"{folder}/weights/model.bin": bytes(range(256)) * 400, f"{folder}/card.md": b"a card\n"}
    assert shell.files() == everything
    before = len(host.asked)
    code, out, _ = shell.run(script, choice)
    assert code == 0 and "already there" in out
    assert len(host.asked) == before and shell.files() == everything


@needs_tools
def test_download_addresses(shell: Shell, host: Host) -> None:
    shell.url = host.url
    for script, choices in COMMANDS.items():
        for choice in choices:
            assert shell.run(script, choice)[0] == 0
    assert [path for method, path, _ in host.asked if method == "GET"] == [
        "/nebulaanish/unlearn_models/resolve/main/compvis.zip",
        "/nebulaanish/unlearn_models/resolve/main/diffuser.zip",
        "/datasets/dipeshlav/sample_i2p_dataset/resolve/main/sample.zip",
        "/datasets/nebulaanish/i2p-dataset/resolve/main/full.zip",
        "/datasets/dipeshlav/sample-quick-unlearn-canvas/resolve/main/sample-quick-unlearn-canvas.zip",
        "/datasets/nebulaanish/quick-canvas-benchmark/resolve/main/full.zip",
    ]


@needs_tools
def test_download_through_a_redirect(shell: Shell, host: Host) -> None:
    shell.url, host.redirect = host.url, True
    assert shell.run("download_models.sh", "compvis")[0] == 0
    assert "models/compvis/card.md" in shell.files()


@needs_tools
def test_download_from_a_host_without_head(shell: Shell, host: Host) -> None:
    shell.url, host.head_status = host.url, 405
    assert shell.run("download_models.sh", "compvis")[0] == 0
    assert "models/compvis/card.md" in shell.files()


@needs_tools
def test_download_of_a_folder_in_a_folder_of_the_same_name(shell: Shell, host: Host) -> None:
    shell.url, host.body = host.url, archive(("sample/a.png", b"1"), ("sample/b.png", b"2"), ("__MACOSX/sample/._a", b""))
    assert shell.run("download_i2p_dataset.sh", "sample")[0] == 0
    assert shell.files() == {"clone/data/i2p-dataset/sample/a.png": b"1", "clone/data/i2p-dataset/sample/b.png": b"2"}


@needs_tools
def test_download_goes_on_by_itself_and_in_a_later_run(shell: Shell, host: Host) -> None:
    shell.url, host.stop_after = host.url, len(GOOD) // 2
    host.body = GOOD
    part = shell.top.parent / "models" / "compvis.zip.part"
    part.parent.mkdir()
    part.write_bytes(GOOD[:1000])
    assert shell.run("download_models.sh", "compvis")[0] == 0
    assert host.got() == ["bytes=1000-", f"bytes={1000 + len(GOOD) // 2}-"]
    assert "models/compvis/card.md" in shell.files() and not part.exists()


@needs_tools
def test_download_that_breaks_keeps_what_came(shell: Shell, host: Host) -> None:
    shell.url, host.stop_after = host.url, 0
    part = shell.top.parent / "models" / "compvis.zip.part"
    part.parent.mkdir()
    part.write_bytes(GOOD[:1000])
    assert f"broke after 1000 of {len(GOOD)} bytes" in shell.fails(2, "download_models.sh", "compvis")
    assert shell.files() == {"models/compvis.zip.part": GOOD[:1000]}


@needs_tools
def test_download_begins_anew_where_the_host_cannot_go_on(shell: Shell, host: Host) -> None:
    shell.url, host.ranges = host.url, False
    part = shell.top.parent / "models" / "compvis.zip.part"
    part.parent.mkdir()
    part.write_bytes(GOOD[:1000])
    assert shell.run("download_models.sh", "compvis")[0] == 0
    assert "models/compvis/card.md" in shell.files()
    shutil.rmtree(part.parent / "compvis")
    part.write_bytes(b"x" * (len(GOOD) + 1))
    assert shell.run("download_models.sh", "compvis")[0] == 0


@needs_tools
def test_download_stopped_by_ctrl_c_goes_on(shell: Shell, host: Host) -> None:
    shell.url, host.stop_after, host.breaks, host.hang = host.url, len(GOOD) // 2, 1, threading.Event()
    process = subprocess.Popen(
        [ROOT / "scripts" / "download_models.sh", "compvis"], cwd=shell.top, env=shell.environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    part = shell.top.parent / "models" / "compvis.zip.part"
    for _ in range(200):
        if part.exists() and part.stat().st_size > 1000:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    host.hang.set()
    assert process.returncode == 130
    ((left, kept),) = shell.files().items()
    assert left == "models/compvis.zip.part" and len(kept) > 1000 and GOOD.startswith(kept)
    assert shell.run("download_models.sh", "compvis")[0] == 0
    assert host.got() == [None, f"bytes={len(kept)}-"]


@needs_tools
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"status": 404, "kind": "text/html"}, "HTTP 404"),
        ({"status": 401}, "refuses"),
        ({"status": 503}, "HTTP 503"),
        ({"kind": "text/html; charset=utf-8", "body": b"<!doctype html><title>Sign in</title>"}, "answers with a web page"),
        ({"head_status": 405, "body": b"<!doctype html><title>Sign in</title>"}, "no zip archive"),
        ({"body": GOOD[: len(GOOD) // 2]}, "damaged"),
        ({"body": archive(("good.txt", b"1"), ("../evil.txt", b"2"))}, "outside its folder: ../evil.txt"),
        ({"body": archive(("a/../../evil.txt", b"2"))}, "outside its folder"),
        ({"body": archive(("/evil.txt", b"2"))}, "outside its folder: /evil.txt"),
        ({"body": archive(("good.txt", b"1"), link="/etc")}, "a link"),
    ],
    ids=["404", "401", "503", "page", "page-as-zip", "truncated", "dotdot", "dotdot-inside", "absolute", "link"],
)
def test_download_refuses_what_is_not_the_archive(shell: Shell, host: Host, wrong: dict[str, Any], says: str) -> None:
    shell.url = host.url
    for name, value in wrong.items():
        setattr(host, name, value)
    assert says in shell.fails(1, "download_models.sh", "compvis")
    assert shell.files() == {}
    assert not (shell.top.parent / "models" / "compvis").exists()
    host.body, host.status, host.head_status, host.kind = GOOD, 200, 200, "application/zip"
    assert shell.run("download_models.sh", "compvis")[0] == 0, "a refusal must not stand in the way of a later run"


@needs_tools
def test_download_says_which_tool_is_missing(shell: Shell, host: Host) -> None:
    shell.url = host.url
    (shell.bin / "unzip").unlink()
    assert "needs unzip," in shell.fails(2, "download_models.sh", "compvis")
    (shell.bin / "curl").unlink()
    assert "needs curl unzip," in shell.fails(2, "download_models.sh", "compvis")
    assert host.asked == []


@needs_tools
def test_download_asks_for_room_first(shell: Shell, host: Host) -> None:
    shell.url = host.url
    shell.stand_in("df", "echo Filesystem; echo disk 100 90 10 90% /")
    assert "needs 205." in shell.fails(2, "download_models.sh", "compvis")
    assert host.got() == []


@needs_tools
def test_download_leaves_other_peoples_files_alone(shell: Shell, host: Host) -> None:
    shell.url = host.url
    models = shell.top.parent / "models"
    models.mkdir()
    (models / "compvis").write_text("mine")
    assert "in the way" in shell.fails(2, "download_models.sh", "compvis")
    (models / "diffuser").mkdir()
    assert shell.run("download_models.sh", "diffuser")[0] == 0, "an empty folder is filled"
    assert shell.files()["models/compvis"] == b"mine"


@needs_tools
def test_download_of_a_dataset_kept_as_single_files(shell: Shell, host: Host) -> None:
    shell.url, host.status = host.url, 404
    assert "pip install huggingface_hub" in shell.fails(2, "download_i2p_dataset.sh", "full")
    shell.stand_in(
        "hf", 'mkdir -p "$6/.cache/x"; echo "$*" > "$6/asked.txt"; echo half > "$6/.cache/x/y"; exit "$(cat "$HOME/code")"'
    )
    (shell.top / "code").write_text("1")
    assert shell.run("download_i2p_dataset.sh", "full")[0] == 2
    assert not (shell.top / "data/i2p-dataset/full").exists()
    (shell.top / "code").write_text("0")
    assert shell.run("download_i2p_dataset.sh", "full")[0] == 0
    (shell.top / "code").unlink()
    asked = b"download nebulaanish/i2p-dataset --repo-type dataset --local-dir ./data/i2p-dataset/full.part\n"
    assert shell.files() == {"clone/data/i2p-dataset/full/asked.txt": asked}
