"""The loop: what it promises of checkpoints, logs and interruptions, on a model of two numbers."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mu.core.compute import generator
from mu.core.errors import ConfigError, OutputError
from mu.core.files import atomic_path, write_text
from mu.core.loop import train
from mu.core.run import RunDirectory


class Problem:
    """Noisy regression; also counts, as a part with state of its own."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.draws = generator(0)
        self.count: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.detach(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.weight.copy_(state["weight"])
        self.count = state["count"]

    def step(self, i: int) -> dict[str, Tensor]:
        self.count = [*self.count, i]
        return {"loss": (self.weight - torch.randn(2, generator=self.draws)).pow(2).mean()}

    def run(
        self, iterations: int = 20, stop: int | None = None, late: bool = False, **options: Any
    ) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []
        optimizer = torch.optim.AdamW([self.weight], lr=0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, iterations)

        def step(i: int) -> dict[str, Tensor]:
            losses = self.step(i)
            if i == stop and not late:
                raise KeyboardInterrupt
            return losses

        def after(i: int) -> None:
            if i == stop and late:
                raise KeyboardInterrupt

        train(
            step,
            optimizer,
            iterations,
            generator=self.draws,
            schedule=schedule,
            state={"problem": self},
            after_step=after,
            log=lambda row: rows.append(dict(row)),
            **options,
        )
        return rows


@pytest.mark.parametrize("stop", [0, 3, 7, 19])
@pytest.mark.parametrize("late", [False, True])
def test_interrupted_and_resumed_is_uninterrupted(stop: int, late: bool, tmp_path: Path) -> None:
    whole = Problem()
    rows = whole.run()
    path = tmp_path / "c.pt"
    broken = Problem()
    with pytest.raises(KeyboardInterrupt):
        broken.run(stop=stop, late=late, checkpoint=path, checkpoint_every=5)
    again = Problem()
    resumed = again.run(checkpoint=path, checkpoint_every=5)
    assert torch.equal(again.weight, whole.weight)
    assert again.count == whole.count == list(range(20))
    assert resumed == rows[len(rows) - len(resumed) :]
    assert not path.exists()
    if not late:  # nothing finished is lost
        assert len(resumed) == 20 - stop


def test_what_stop_changes_belongs_to_its_step(tmp_path: Path) -> None:
    """A stop that counts and slows the optimiser: interrupted right after a step that it changed, nothing is lost."""

    class Slowed(Problem):
        def run_to(self, end: int | None, checkpoint: Path | None) -> list[int]:
            seen: list[int] = []

            def stop(i: int) -> bool:
                if i % 5 == 4:
                    self.count = [*self.count, -i]
                    for group in optimizer.param_groups:
                        group["lr"] /= 2
                return False

            def step(i: int) -> dict[str, Tensor]:
                if i == end:
                    raise KeyboardInterrupt
                seen.append(i)
                return self.step(i)

            optimizer = torch.optim.AdamW([self.weight], lr=0.1)
            train(step, optimizer, 20, generator=self.draws, state={"problem": self}, stop=stop, checkpoint=checkpoint)
            return seen

    whole, broken, again = Slowed(), Slowed(), Slowed()
    whole.run_to(None, None)
    with pytest.raises(KeyboardInterrupt):
        broken.run_to(10, tmp_path / "c.pt")
    assert again.run_to(None, tmp_path / "c.pt") == list(range(10, 20))
    assert again.count == whole.count and torch.equal(again.weight, whole.weight)
    never = Slowed()
    never.run()
    assert not torch.equal(never.weight, whole.weight), "control: the stop matters"


def test_the_control_without_a_checkpoint_differs(tmp_path: Path) -> None:
    whole, broken = Problem(), Problem()
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        broken.run(stop=3)
    broken.run()
    assert not torch.equal(broken.weight, whole.weight)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "another run's"])
def test_a_checkpoint_that_cannot_be_resumed_is_one_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    with pytest.raises(KeyboardInterrupt):
        Problem().run(stop=8, checkpoint=path, checkpoint_every=5)
    whole = path.read_bytes()
    if damage == "another run's":
        torch.save({"done": 5, "generator": generator(0).get_state(), "state": {"factors": []}}, path)
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no checkpoint"}[damage])
    with pytest.raises(OutputError, match=r"training\.pt") as caught:
        Problem().run(checkpoint=path)
    assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    Problem().run(checkpoint=path)  # control
    assert not path.exists()


@pytest.mark.parametrize(("before", "now", "resumes"), [(1, 4, False), (None, 4, False), (4, 4, True), (None, 1, True)])
def test_a_checkpoint_whose_updates_had_other_draws_is_not_resumed(
    before: int | None, now: int, resumes: bool, tmp_path: Path
) -> None:
    path = tmp_path / "training.pt"
    with pytest.raises(KeyboardInterrupt):
        Problem().run(stop=8 * (before or now), draws=before or now, checkpoint=path, checkpoint_every=5)
    if before is None:  # as an earlier version wrote it, which did not say
        content = torch.load(path)
        del content["draws"]
        torch.save(content, path)
    whole = path.read_bytes()
    if resumes:
        assert len(Problem().run(draws=now, checkpoint=path)) == 12
        return
    with pytest.raises(OutputError, match=rf"training\.pt cannot be resumed: .* now {now}"):
        Problem().run(draws=now, checkpoint=path)
    assert path.read_bytes() == whole


def test_a_part_says_in_one_line_why_it_cannot_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "training.pt"
    with pytest.raises(KeyboardInterrupt):
        Problem().run(stop=8, checkpoint=path)
    whole = path.read_bytes()

    def refuse(self: Problem, state: dict[str, Any]) -> None:
        raise ConfigError("its count is of another kind")

    with monkeypatch.context() as patch:
        patch.setattr(Problem, "load_state_dict", refuse)
        with pytest.raises(OutputError, match=r"training\.pt cannot be resumed: its count .* kind: delete it"):
            Problem().run(checkpoint=path)
    assert path.read_bytes() == whole
    assert Problem().run(checkpoint=path)[0]["step"] == 8, "control"


def test_each_step_is_logged_once_with_its_rate() -> None:
    rows = Problem().run(iterations=7, log_every=3)
    assert [row["step"] for row in rows] == list(range(7))
    assert rows[0]["lr"] == 0.1
    assert rows[-1]["lr"] < 0.1
    assert rows == Problem().run(iterations=7, log_every=100)


def test_clipping_bounds_the_gradient() -> None:
    problem, norms = Problem(), []
    optimizer = torch.optim.SGD([problem.weight], lr=1.0)

    def step(i: int) -> dict[str, Tensor]:
        norms.append(problem.weight.detach().clone())
        return {"loss": 1000 * problem.step(i)["loss"]}

    train(step, optimizer, 5, generator=problem.draws, max_grad_norm=0.5)
    moves = [float((b - a).norm()) for a, b in itertools.pairwise(norms)]
    assert all(move == pytest.approx(0.5, abs=1e-4) for move in moves)


class HalfProblem(Problem):
    """Its gradients, at most 1e-8, come through float16 numbers, which below 6e-8 are 0."""

    def step(self, i: int) -> dict[str, Tensor]:
        self.count = [*self.count, i]
        half = (self.weight + 1).half() * torch.rand(2, generator=self.draws)
        return {"loss": (half.float() * 1e-8).sum()}


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)


def test_float16_gradients_are_scaled() -> None:
    plain, scaled, clipped = HalfProblem(), HalfProblem(), HalfProblem()
    plain.run(iterations=3)
    scaled.run(iterations=3, scaler=scaler())
    clipped.run(iterations=3, scaler=scaler(), max_grad_norm=1e-5)  # above the true gradients, below the scaled ones
    assert not plain.weight.any()  # control: what training in float16 comes to without it
    assert (scaled.weight < -0.03).all()
    assert torch.equal(clipped.weight, scaled.weight)


def test_the_scale_is_resumed(tmp_path: Path) -> None:
    whole, used = HalfProblem(), scaler()
    whole.run(scaler=used)
    with pytest.raises(KeyboardInterrupt):
        HalfProblem().run(stop=8, scaler=scaler(), checkpoint=tmp_path / "c.pt")
    again, resumed = HalfProblem(), scaler()
    again.run(scaler=resumed, checkpoint=tmp_path / "c.pt")
    assert torch.equal(again.weight, whole.weight)
    assert resumed.state_dict() == used.state_dict()
    assert used.get_scale() == 2.0**18  # control: it moved, 20 steps with a growth every third


# -- what a run leaves
# ------------------------------------------------------------------------------------------------------


def test_a_torn_line_costs_its_own_row_only(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin("a: 1\n", {})
    with run.recording() as log:
        log({"step": 0, "loss": 1.0})
    run.metrics.write_text(run.metrics.read_text() + '{"step": 1, "lo')
    run.begin("a: 1\n", {}, resume=True)
    with run.recording() as log:
        for step in range(3):
            log({"step": step, "loss": 2.0})
    assert [(row["step"], row["loss"]) for row in run.read_metrics()] == [(0, 1.0), (1, 2.0), (2, 2.0)]


def test_a_run_is_not_overwritten_silently(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin("a: 1\n", {"method": "x"})
    with pytest.raises(OutputError, match="--resume"):
        run.begin("a: 1\n", {})
    with pytest.raises(OutputError, match=r"config\.yaml"):
        run.begin("a: 2\n", {}, resume=True)
    run.begin("a: 1\n", {}, resume=True)
    run.edit.write_text("edit")
    with pytest.raises(OutputError, match=r"^(?!.*--resume).*--overwrite"):
        run.begin("a: 1\n", {})
    run.begin("a: 2\n", {}, overwrite=True)
    assert not run.edit.exists()
    assert run.config.read_text() == "a: 2\n"
    assert "torch" in run.read_environment()["versions"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        RunDirectory(tmp_path / "file" / "run").begin("a: 1\n", {})


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_text(path, json.dumps({"a": 1}))
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_ctrl_c_inside_an_update_ends_the_training_after_it_and_nothing_is_lost(tmp_path: Path) -> None:
    """The signal arrives in the optimiser's step, long before the first periodic checkpoint."""
    problem = Problem()

    class Interrupted(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1
            if self.steps == 4:
                signal.raise_signal(signal.SIGINT)
            return super().step(closure)

    rows: list[float] = []

    def run(of: Problem, optimizer: torch.optim.Optimizer, checkpoint: Path | None) -> None:
        rows.clear()
        train(
            of.step,
            optimizer,
            10,
            generator=of.draws,
            state={"problem": of},
            checkpoint=checkpoint,
            checkpoint_every=500,
            log=lambda row: rows.append(row["step"]),
        )

    with pytest.raises(KeyboardInterrupt):
        run(problem, Interrupted([problem.weight], 0.1), tmp_path / "c.pt")
    assert torch.load(tmp_path / "c.pt", weights_only=True)["done"] == 4
    assert rows == [0, 1, 2, 3], "the update that the signal met is kept and logged"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(problem, torch.optim.SGD([problem.weight], 0.1), tmp_path / "c.pt")
    assert rows == [4, 5, 6, 7, 8, 9]
    straight = Problem()
    run(straight, torch.optim.SGD([straight.weight], 0.1), None)
    assert torch.equal(problem.weight, straight.weight)


def test_a_diverged_loss_is_one_clear_line() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ConfigError, match=r"\b10\b"):
        train(lambda i: {"loss": (weight**4).sum()}, torch.optim.SGD([weight], 1e6), 20, generator=torch.Generator())
