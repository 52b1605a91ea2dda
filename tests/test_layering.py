"""The import direction of the package and its other laws of structure, held by reading the sources.

    cli -> demo -> grid -> report, algorithms -> attacks -> evaluation -> training -> diffusion -> edits -> models -> data -> core

A law takes a tree (path -> source) and returns what breaks it, one line each. Every law also runs on a made-up tree
that breaks it: a law that catches nothing would pass on everything.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
Tree = dict[str, str]

# Each package may import those before it in this line. A package that is not in it has no place yet.
ORDER = (
    "core",
    "data",
    "models",
    "edits",
    "diffusion",
    "training",
    "evaluation",
    "attacks",
    "algorithms",
    "report",
    "grid",
    "demo",
    "cli",
)
BEFORE = {package: set(ORDER[:place]) for place, package in enumerate(ORDER)}
MAY_IMPORT = {
    **BEFORE,
    "algorithms": BEFORE["algorithms"] - {"attacks"},
    "report": {"core"},  # it reads run folders only
    "cli": BEFORE["cli"] | {""},
    "": set(ORDER) - {"demo"},  # mu/__init__.py and mu/__main__.py, the public face
}

MODEL_LIBRARIES = {"diffusers", "transformers", "open_clip", "peft"}
HEAVY = MODEL_LIBRARIES | {"torch", "accelerate"}
IMPORTING = {"import_module", "__import__", "_package"}
"""Functions whose first argument names a module to import."""
NAMES_THAT_SAY_NOTHING = {"util", "utils", "helper", "helpers", "misc", "common"}


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    lazy: bool
    """Inside a function, or for type checkers only."""

    @property
    def library(self) -> str:
        return self.target.partition(".")[0]


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def package_of(module: str) -> str:
    """``core`` of ``mu.core.run``; empty for the public face."""
    name = module.split(".")[1] if "." in module else ""
    return "" if name == "__main__" else name


def imports(tree: Tree, path: str) -> tuple[Import, ...]:
    return _imports(tree[path], path, frozenset(map(module_of, tree)))


@cache
def _imports(source: str, path: str, modules: frozenset[str]) -> tuple[Import, ...]:
    module = module_of(path)
    here = module if path.endswith("/__init__.py") else module.rpartition(".")[0]

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    parts = here.split(".")
                    base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield Import(inner if inner in modules else base, node.lineno, lazy)
            case ast.Call(func=ast.Attribute(attr=called) | ast.Name(id=called)) if called in IMPORTING:
                if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                    yield Import(node.args[0].value, node.lineno, lazy)
        for child in ast.iter_child_nodes(node):
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or for_types_only(
                node, child
            )
            yield from walk(child, lazy or inside)

    def for_types_only(node: ast.AST, child: ast.AST) -> bool:
        return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body

    return tuple(walk(ast.parse(source, path), False))


def one_direction(tree: Tree) -> Iterator[str]:
    for path in tree:
        package = package_of(module_of(path))
        if package not in MAY_IMPORT:
            yield f"{path}: mu.{package} has no layer"
            continue
        for found in imports(tree, path):
            target = package_of(found.target)
            if found.library == "mu" and target != package and target not in MAY_IMPORT[package]:
                yield f"{path}:{found.line}: {package or 'mu'} must not import {found.target}"


def no_circles(tree: Tree) -> Iterator[str]:
    """Within a package too, also through imports inside functions: what needs each other is one file, or one of them is
    misplaced."""
    by_module = {module_of(path): path for path in tree}
    needs = {
        module: {found.target for found in imports(tree, path) if found.target in by_module and found.target != module}
        for module, path in by_module.items()
        if not path.endswith("__init__.py")
    }

    def back_to(start: str, module: str, seen: set[str]) -> bool:
        for target in needs.get(module, ()):
            if target == start:
                return True
            if target not in seen:
                seen.add(target)
                if back_to(start, target, seen):
                    return True
        return False

    for circle in {
        frozenset(other for other in needs if back_to(module, other, set()) and back_to(other, module, set()))
        for module in needs
        if back_to(module, module, set())
    }:
        yield f"{', '.join(sorted(circle))} import each other"


def algorithms_apart(tree: Tree) -> Iterator[str]:
    def algorithm(module: str) -> str:
        parts = module.split(".")
        return parts[2] if parts[:2] == ["mu", "algorithms"] and len(parts) > 2 else ""

    for path in tree:
        own = algorithm(module_of(path))
        for found in imports(tree, path):
            other = algorithm(found.target)
            if own and other and own != other:
                yield f"{path}:{found.line}: one algorithm must not import another ({other}); what they share moves down"


def one_home(tree: Tree) -> Iterator[str]:
    for path in tree:
        if package_of(module_of(path)) == "models":
            continue
        for found in imports(tree, path):
            if found.library in MODEL_LIBRARIES:
                yield f"{path}:{found.line}: {found.library} belongs in mu.models"


def telling_names(tree: Tree) -> Iterator[str]:
    for path in tree:
        for part in Path(path).with_suffix("").parts:
            if part.strip("_").lower() in NAMES_THAT_SAY_NOTHING:
                yield f"{path}: a file is named by what it holds"


PARSING = {f"{library}.{name}" for library in ("json", "yaml") for name in ("load", "loads", "safe_load", "load_all")}
OWN_TEXT = {
    "mu/core/documents.py": {"json.loads(text, object_pairs_hook=once, parse_int=whole if long else None)"},
    "mu/edits/tensor_file.py": {"json.loads(file.read(size))"},
    "mu/edits/merged_folder.py": {"json.loads(file.read(size))"},
    "mu/models/formats/single_file.py": {
        "json.loads(_config_text(module))", "json.loads(pipeline.scheduler.to_json_string())",
    },
    "mu/grid/plan.py": {"json.loads(json.dumps(values, default=str))"},
    "mu/grid/tuning.py": {"json.loads(json.dumps(cell.settings))"},
}  # fmt: skip
"""Where Python's parsers may stand: in the one reader, for a header that safetensors wrote or has read, and for text
that the same line makes of values."""


def one_reader(tree: Tree) -> Iterator[str]:
    """Users' files are read by `mu.core.documents`, which bounds what Python's parsers accept."""
    for path, source in tree.items():
        for node in ast.walk(ast.parse(source)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in PARSING and ast.unparse(node) not in OWN_TEXT.get(path, ()):
                yield f"{path}:{getattr(node, 'lineno', 0)}: {called} belongs in mu.core.documents"
        for found in imports(tree, path):
            if found.target in ("json", "yaml") and f"from {found.target} import" in source:
                yield f"{path}:{found.line}: import {found.target} as a whole, so that its parsers can be found"


def chain_of_imports(tree: Tree, module: str, named: Callable[[Import], str]) -> str:
    """The chain that importing ``module`` runs to an import that ``named`` has a name for; empty where none does."""
    by_module = {module_of(path): path for path in tree}
    seen: set[str] = set()

    def first(module: str) -> str:
        parts = module.split(".")
        for name in (".".join(parts[: k + 1]) for k in range(len(parts))):
            if name not in by_module or name in seen:
                continue
            seen.add(name)
            for found in imports(tree, by_module[name]):
                if found.lazy:
                    continue
                chain = named(found) or (first(found.target) if found.library == "mu" else "")
                if chain:
                    return f"{name} -> {chain}"
        return ""

    return first(module)


def light_where_promised(tree: Tree) -> Iterator[str]:
    """The face, the command line, the report and every ``configs`` come without torch, also through what they
    import."""
    for path in tree:
        module = module_of(path)
        if package_of(module) in ("", "cli", "report") or "configs" in module.split("."):
            chain = chain_of_imports(tree, module, lambda found: found.library if found.library in HEAVY else "")
            if chain:
                yield f"{path}: importing it loads {chain}"


def methods_know_no_world(tree: Tree) -> Iterator[str]:
    """No method imports the embedded model's world, not even inside a function, or loads it through what it imports."""

    def is_world(found: Import) -> bool:
        return found.target.split(".")[:3] == ["mu", "data", "canvas"]

    for path in tree:
        module = module_of(path)
        if package_of(module) not in ("algorithms", "training"):
            continue
        own = [found for found in imports(tree, path) if is_world(found)]
        for found in own:
            yield f"{path}:{found.line}: what a method knows of {found.target} belongs in its settings"
        chain = chain_of_imports(tree, module, lambda found: found.target if is_world(found) else "")
        if chain and not own:
            yield f"{path}: importing it loads {chain}"


LAWS: dict[Callable[[Tree], Iterator[str]], list[Tree]] = {
    one_direction: [
        {"mu/core/run.py": "from mu.data import canvas", "mu/data/canvas.py": ""},
        {"mu/core/run.py": "import mu"},
        {"mu/models/clip.py": "def f():\n    from mu.algorithms import ALGORITHMS"},
        {"mu/evaluation/suite.py": "from ..algorithms.esd import ESD"},
        {"mu/edits/bank.py": "from mu.diffusion.sampling import generate"},
        {
            "mu/data/pairs.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mu.models.clip import ClipModel"
        },
        {"mu/evaluation/suite.py": "from mu.attacks import prompt", "mu/attacks/__init__.py": ""},
        {"mu/algorithms/esd.py": "from mu.attacks import prompt", "mu/attacks/__init__.py": ""},
        {"mu/attacks/__init__.py": "import importlib\nimportlib.import_module('mu.algorithms.esd')"},
        {
            "mu/report/html.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mu.models.clip import ClipModel"
        },
        {"mu/algorithms/esd.py": "from mu import cli", "mu/cli/__init__.py": ""},
        {"mu/diffusion/sampling.py": "import mu.report.html"},
        {"mu/novelties/__init__.py": ""},
    ],
    no_circles: [
        {
            "mu/edits/edit.py": "def f():\n    from mu.edits.bank import Bank",
            "mu/edits/bank.py": "from mu.edits.edit import Edit",
        },
        {
            "mu/edits/a.py": "import mu.edits.b",
            "mu/edits/b.py": "from mu.edits import c",
            "mu/edits/c.py": "from . import a",
            "mu/edits/d.py": "import mu.edits.a",
            "mu/edits/__init__.py": "",
        },
    ],
    one_reader: [
        {"mu/edits/lora_files.py": "import json\ndef f(text):\n    return json.loads(text)"},
        {"mu/grid/plan.py": "import yaml\ndef f(file):\n    return yaml.safe_load(file)"},
        {"mu/core/run.py": "from json import load"},
    ],
    algorithms_apart: [
        {"mu/algorithms/esd.py": "import mu.algorithms.slug.trainer"},
        {"mu/algorithms/spm/model.py": "from ..slug.model import scores"},
        {"mu/algorithms/spm/model.py": "from mu.algorithms import slug", "mu/algorithms/slug/__init__.py": ""},
    ],
    one_home: [
        {"mu/evaluation/suite.py": "from transformers import CLIPModel"},
        {"mu/algorithms/esd.py": "def f():\n    import diffusers.optimization"},
        {"mu/edits/export.py": "import peft"},
        {"mu/edits/export.py": "def f():\n    import open_clip"},
        {"mu/edits/files.py": "def f():\n    _package('open_clip')"},
    ],
    telling_names: [
        {"mu/core/utils.py": ""},
        {"mu/models/common/names.py": ""},
        {"mu/edits/_helpers.py": ""},
    ],
    light_where_promised: [
        {"mu/__init__.py": "import torch"},
        {"mu/report/html.py": "from mu.core.run import X", "mu/core/run.py": "", "mu/core/__init__.py": "import torch"},
        {
            "mu/algorithms/spm/configs/__init__.py": "from mu.core import seeds",
            "mu/core/seeds.py": "from torch import nn",
        },
        {"mu/cli/erase.py": "if True:\n    from mu.models import load", "mu/models/__init__.py": "import diffusers"},
    ],
    methods_know_no_world: [
        {"mu/algorithms/esd.py": "from mu.data import canvas as world", "mu/data/canvas/__init__.py": ""},
        {"mu/algorithms/esd.py": "def f():\n    from mu.data.canvas import PHRASES"},
        {"mu/training/clip_method.py": "import mu.data.canvas.prompts"},
        {"mu/algorithms/slug/probe.py": "import mu.data.sets", "mu/data/sets.py": "from mu.data.canvas import STYLES"},
    ],
}

ALLOWED: Tree = {
    "mu/__init__.py": "def load(name):\n    from mu.models import load\n    return load(name)",
    "mu/models/__init__.py": "import torch, transformers\nfrom mu.core import run\nfrom mu.data import canvas",
    "mu/models/clip.py": "import open_clip\nfrom . import parameters",
    "mu/models/parameters.py": "import torch",
    "mu/core/run.py": "import json\nfrom mu.core.scores import Score",
    "mu/core/scores.py": "",
    "mu/data/canvas.py": "import numpy",
    "mu/data/sets.py": "def f():\n    from mu.data import canvas",
    "mu/edits/export.py": "def write():\n    from mu.models import load\n    _package('lpips', 'LPIPS')",
    "mu/algorithms/__init__.py": "ALGORITHMS = {}",
    "mu/algorithms/spm/configs/__init__.py": "from mu.core import run",
    "mu/algorithms/spm/algorithm.py": "from mu.algorithms import ALGORITHMS\nfrom mu.algorithms.spm.model import X",
    "mu/algorithms/spm/model.py": "from mu.data import sets\nfrom mu.edits import export",
    "mu/report/html.py": "from mu.core.run import RunDirectory",
    "mu/cli/__init__.py": "import mu\ndef main():\n    from mu.algorithms.spm.algorithm import X",
}


def names(law: object) -> str:
    return law.__name__ if callable(law) else ""


@pytest.fixture(scope="module")
def package() -> Tree:
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("mu/**/*.py"))
    }


@pytest.mark.parametrize("law", LAWS, ids=names)
def test_the_package_keeps(law: Callable[[Tree], Iterator[str]], package: Tree) -> None:
    assert len(package) > 10
    broken = list(law(package))
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("law", "tree"),
    [pytest.param(law, tree, id=f"{names(law)}-{k}") for law, trees in LAWS.items() for k, tree in enumerate(trees)],
)
def test_control_is_caught(law: Callable[[Tree], Iterator[str]], tree: Tree) -> None:
    assert len(list(law(tree))) == 1


@pytest.mark.parametrize("law", LAWS, ids=names)
def test_what_is_allowed_is_not_caught(law: Callable[[Tree], Iterator[str]]) -> None:
    assert list(law(ALLOWED)) == []


def loaded_by_import(folder: Path) -> set[str]:
    """Heavy libraries that ``import mu`` really loads, with ``folder`` first on the path."""
    code = f"import sys, mu; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_mu_loads_nothing_heavy() -> None:
    assert loaded_by_import(ROOT) == set()


def test_control_import_of_torch_is_seen(tmp_path: Path) -> None:
    (tmp_path / "mu").mkdir()
    (tmp_path / "mu" / "__init__.py").write_text("import torch\n")
    (tmp_path / "torch.py").write_text("")  # a stand-in: the real one takes seconds
    assert loaded_by_import(tmp_path) == {"torch"}
