"""The documents tell the truth: the README's Python runs, its commands parse, and generated pages are up to date."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def mu_commands() -> list[str]:
    lines = [line.split("   #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("mu ")]


@pytest.mark.parametrize("command", mu_commands())
def test_the_readme_s_commands_are_of_the_program_s_form(command):
    from mu.cli import app

    group = get_command(app)
    name, *arguments = shlex.split(command)[1:]
    assert name in group.commands
    context = group.commands[name].make_context(name, arguments)
    assert context.params


def from_pypi(text: str) -> list[str]:
    """Where ``text`` tells to install mu by its name, or names it with extras: it is not on PyPI yet."""
    return re.findall(r"pip3? install [^\n`]*mu-unlearning|mu-unlearning\[[\w,]+\]", text)


def test_no_page_installs_mu_from_pypi():
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "mu").rglob("*.py")]
    assert len(files) > 100
    assert not [(file.name, told) for file in files for told in from_pypi(file.read_text(encoding="utf-8"))]
    wrong = ('pip install "mu-unlearning[grid]"', "pip install -U mu-unlearning", "needs `mu-unlearning[grid,track]`")
    assert all(map(from_pypi, wrong)), "control"
    assert not from_pypi("pip install -e '.[grid]'; pip install dist/mu_unlearning-0.1.0-py3-none-any.whl")


def test_the_form_check_can_fail():
    from mu.cli import app

    result = CliRunner().invoke(app, ["erase", "spm", "--no-such-flag"])
    assert result.exit_code == 2


def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    quick = code.replace('method="spm")', 'method="spm", train={"iterations": 2})')
    assert quick != code
    names: dict = {}
    exec(compile(quick, "README.md", "exec"), names)
    assert names["images"].shape == (1, 3, 64, 64)
    assert (tmp_path / "neon.safetensors").exists()
    assert names["bank"].restored == {"neon"}


def test_the_page_of_grids_runs_as_typed(tmp_path, monkeypatch, few_phrasings):
    from mu.cli import app

    page = (ROOT / "docs" / "grid.md").read_text(encoding="utf-8")
    plan, tune = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(plan, encoding="utf-8")
    (tmp_path / "tuned.yaml").write_text(re.sub(r"    sweep: .*\n", "", plan) + tune, encoding="utf-8")
    lines = [
        line.split("   #")[0]
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]
    for line in [*lines, "mu grid run tuned.yaml --dry-run"]:
        words = shlex.split(line)[1:]
        here = ["--jobs", "0"] if words[:2] == ["grid", "run"] or words[0] == "tune" else []
        ended = CliRunner().invoke(app, [*words, *here])
        assert ended.exit_code == 0, (line, ended.output)
    assert (tmp_path / "outputs" / "grid" / "report.html").exists()
    assert len((tmp_path / "outputs" / "grid.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3


def test_the_links_of_the_documents_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "mailto")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_generated_pages_are_current():
    from mu.algorithms import ALGORITHMS, algorithm

    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for name in ALGORITHMS:
        assert algorithm(name).config_class.parse({}).to_yaml() in page, "run make docs"
