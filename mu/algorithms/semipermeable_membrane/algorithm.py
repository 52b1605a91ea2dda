"""SPM as a method of this package."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any, cast

from mu.algorithms.semipermeable_membrane.configs import SemipermeableMembraneConfig, SemipermeableMembraneMethod
from mu.algorithms.semipermeable_membrane.data_handler import SemipermeableMembraneDataHandler, resolutions
from mu.algorithms.semipermeable_membrane.model import SemipermeableMembraneModel
from mu.algorithms.semipermeable_membrane.trainer import SemipermeableMembraneTrainer
from mu.core import compute, parallel
from mu.core.algorithm import Algorithm, Found, citation
from mu.core.concept import Concept, distinct
from mu.core.errors import ConfigError, titled
from mu.core.files import check_writing
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.core.tracking import Tracking
from mu.edits.edit import Edit, EditInfo, base_fingerprint
from mu.edits.files import open_edit
from mu.edits.lora_files import spm_tensors
from mu.edits.low_rank import LowRankEdit
from mu.edits.tensor_file import write_tensors
from mu.models import is_single_file, load
from mu.models.diffusion import DiffusionModel
from mu.training.calibration import Calibration, settled
from mu.training.closed_form import anchored
from mu.training.diffusion_method import check_placed

log = logging.getLogger("mu")


class SemipermeableMembraneAlgorithm(SemipermeableMembraneMethod, Algorithm):
    """Loads the model, puts fresh adapters on it, trains them, and returns the edit.

    `trainer` holds the objective (Eq. 4 and 8), `model` the adapter, `data_handler` the anchors (Eq. 6). The gate gamma
    is stated in `mu.edits.gates` and computed for each prompt by `mu.edits.gatekeeper`.
    """

    config: SemipermeableMembraneConfig

    def run_folder(self) -> Path:
        return Path(self.config.run_dir) if self.config.run_dir else self.config.folder / self.config.file_stem

    @property
    def final_file(self) -> Path:
        """The SPM file, named as by the original tools, next to the run folder."""
        return self.config.folder / f"{self.config.file_stem}_last.safetensors"

    def concepts(self) -> tuple[Concept, ...]:
        """The targets without their templates."""
        return tuple(distinct(entry.target for entry in self.config.entries()))

    def describe(self) -> dict[str, Any]:
        name = self.config.pretrained_model.name if self.model is None else self.model.name
        return {**super().describe(), "model": name, "concepts": list(self.concepts())}

    def load_model(self) -> DiffusionModel:
        """The model that the settings name, or the one given. Raises `ConfigError` if settings contradict it."""
        wanted, model = self.config.pretrained_model, self.model
        if model is None:
            model = load(
                wanted.name,
                device=self.config.devices,
                precision=self.config.train.precision,
                clip_skip=wanted.clip_skip or 1,
                prediction_type=self._prediction_type(),
            )
        if not isinstance(model, DiffusionModel):
            raise ConfigError(
                f"SPM edits diffusion models, but {titled(model.name)} is not one: name a diffusion model"
            )
        if model is self.model:
            self._check_loaded(model)
        model.check_concepts(self.concepts())
        width = model.text_width
        if wanted.v2 not in (None, width == 1024):
            said = str(wanted.v2).lower()
            raise ConfigError(
                f"pretrained_model.v2 is {said}, but the text width of {titled(model.name)} is {width} "
                f"(SD 2.x: 1024): remove v2 or name another model"
            )
        if wanted.v_pred is True and model.prediction_type == "epsilon":
            model = copy.copy(model)  # do not change the caller's model; the copy shares all weights
            model.prediction_type = "v_prediction"
        elif wanted.v_pred is False and model.prediction_type == "v_prediction":
            log.warning("pretrained_model.v_pred is false, but %s predicts v: v_pred is ignored, remove it", model.name)
        return model

    def _prediction_type(self) -> str | None:
        """The prediction type to load with. Old settings have ``v_pred: false`` for every model: a folder overrides
        it."""
        wanted = self.config.pretrained_model
        if wanted.v_pred:
            return "v_prediction"
        return "epsilon" if wanted.v_pred is False and is_single_file(wanted.name) else None

    def _check_loaded(self, model: DiffusionModel) -> None:
        """Check the loading settings against a model that is already loaded.

        Raises `ConfigError` if they differ; a difference that changes no result is logged.
        """
        skip, train = self.config.pretrained_model.clip_skip, self.config.train
        if skip not in (None, model.clip_skip):
            raise ConfigError(
                f"pretrained_model.clip_skip is {skip}, but {titled(model.name)} was loaded with {model.clip_skip}: "
                f"load it with the same"
            )
        check_placed(
            model,
            self.config.devices if "devices" in self.config.model_fields_set else None,
            train.precision if "precision" in train.model_fields_set else None,
        )

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> LowRankEdit:
        config, settings = self.config, self.config.model_dump(mode="json")
        self.model = model = self.load_model()
        targets = [str(entry.target) for entry in config.entries()] if config.calibrate.on else []
        calibrations = Calibration.of_each(model, targets, config.calibrate)
        anchored(model, calibrations)
        data = SemipermeableMembraneDataHandler(config, model, calibrations)
        info = EditInfo(
            method=self.name,
            concepts=self.concepts(),
            gate=config.gate.typed(),
            config=settings,
            seed=config.seed,
            citation=citation(type(self)),
        )
        generator = compute.generator(config.seed)
        membrane = SemipermeableMembraneModel(model, config.network.rank, config.network.alpha, generator, info)
        trainer = SemipermeableMembraneTrainer(config, membrane, data, calibrations)

        def snapshot(i: int) -> None:
            self._write(membrane.finished(), config.folder / f"{config.file_stem}_{i}_steps.safetensors")

        trainer.train(
            generator,
            checkpoint=run.checkpoints / "training.pt" if run else None,
            log=log,
            snapshot=snapshot if run else None,
        )
        found = membrane.finished()
        return settled(found, model, calibrations, curve=trainer.curve) if calibrations else found

    def notes(self) -> list[str]:
        found, named = super().notes(), self.config.old.named()
        if named and self.tracks != "wandb":
            names, have = ", ".join(named), "has" if len(named) == 1 else "have"
            found.append(f"{names} {have} no effect: W&B is off; pass --track wandb, or set logging.use_wandb")
        return found

    def idle_on(self, model: DiffusionModel) -> dict[str, str]:
        found, usual = {}, model.default_size
        for entry in self.config.entries():
            full = entry.resolution or usual
            if entry.dynamic_crops and model.time_ids(usual, usual) is None:
                found["prompt.dynamic_crops"] = f"{titled(model.name)} takes no crop, as only SDXL does"
            if entry.dynamic_resolution and resolutions(full) == [full]:
                found["prompt.dynamic_resolution"] = f"at {full} pixels there is no other size to draw"
        return found

    def tracking(self) -> Tracking:
        return cast(Tracking, self.config.old.tracking())

    def read_edit(self, path: Path) -> Edit:
        return open_edit(path)

    def base_fingerprint(self) -> str:
        return base_fingerprint(self.model) if self.model is not None else ""

    def run(self, *, resume: bool = False, overwrite: bool = False, track: str | None = None) -> Found:
        """Like `Algorithm.run`, but also write the edit as an SPM file, `final_file`, which LoRA loaders can read."""
        check_writing(self.final_file)
        found = super().run(resume=resume, overwrite=overwrite, track=track)
        assert isinstance(found.edit, LowRankEdit), "find_edit returns one"
        if not parallel.follows():
            self._write(found.edit, self.final_file)
        return found

    def _write(self, edit: LowRankEdit, path: Path) -> None:
        tensors, metadata = spm_tensors(edit)
        dtype = compute.precision(self.config.save.precision)
        write_tensors(
            path, {name: t if name.endswith(".alpha") else t.to(dtype) for name, t in tensors.items()}, metadata
        )
