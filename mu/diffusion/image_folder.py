"""Images on disk: made in batches, written atomically, and kept when a run is resumed."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mu.core.config import filled
from mu.core.errors import ConfigError, DataError, OutputError
from mu.core.evidence import note_files
from mu.core.files import atomic_path, check_writing, is_inside, sha256, write_json, writing
from mu.core.lock import locked
from mu.core.records import Prompt, checked, read_record
from mu.core.run import RunDirectory
from mu.diffusion.image_files import encoded_image, read_pixels
from mu.diffusion.sampling import Sampling, check_request, checked_size, generate_batches
from mu.edits.bank import Bank
from mu.edits.edit import Edit, described
from mu.edits.gates import Gate, gate_to_json
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import select

Progress = Callable[[int, int], None]

log = logging.getLogger("mu")


@dataclass(frozen=True)
class ImageRow:
    """One image to make: its file name, prompt, seed, guidance scale, and height and width in pixels."""

    name: str
    prompt: str
    seed: int
    guidance: float | None = None
    size: tuple[int | None, int | None] = (None, None)
    stems: tuple[str, ...] = field(default=(), compare=False)
    """Names without ending, or paths of a folder and a name, that others give to this image."""

    @classmethod
    def named(
        cls, stem: str, prompt: str, seed: int, guidance: float | None = None,
        size: tuple[int | None, int | None] = (None, None), stems: tuple[str, ...] = (),
    ) -> ImageRow:  # fmt: skip
        """A row whose file name tells all: ``stem``, a digest of the prompt and what is its own, and the seed.

        The same name never means another image."""
        told = prompt if guidance is None and not any(size) else json.dumps([prompt, guidance, size])
        digest = hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:8]
        return cls(f"{stem}_{digest}_seed{seed}.png", prompt, seed, guidance, size, stems)

    def scale(self, usual: float) -> float:
        """Its own guidance scale, else the ``usual`` one."""
        return usual if self.guidance is None else self.guidance

    def described(self, guidance: float) -> dict[str, Any]:
        """What a recipe says of it; ``guidance`` is the usual scale."""
        size = {"size": list(self.size)} if any(self.size) else {}
        return {"prompt": self.prompt, "seed": self.seed, "guidance": self.scale(guidance), **size}


def write_images(
    model: DiffusionModel,
    rows: Sequence[ImageRow],
    folder: Path,
    *,
    steps: int,
    guidance: float,
    negative: str | None = None,
    size: tuple[int, int] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    recipe: Mapping[str, Any] | None = None,
    whole: Path | None = None,
) -> int:
    """Make the images of ``rows`` in ``folder`` and return how many were made. ``resume`` skips existing images.

    A row's own guidance scale and size come before ``guidance`` and ``size``.

    A ``recipe`` (see `recipe_of`) is written next to the images. Raises `OutputError`, before any image is made, if an
    existing image would be kept but has another recipe, or if an image exists without ``resume`` and ``overwrite``.

    If ``folder`` is a part (`part_of`) of the folder ``whole``, images that ``whole`` keeps are left out, and those
    that the part made by this recipe stay, whatever is to be overwritten. Images that parts made by this recipe are
    moved here first. In a folder of `claim`, an image is kept only if it is as it was made; the others are made again,
    with a warning.
    """
    if negative is None and not model.zeros_without_negative:
        negative = ""  # the same, and the one name for it in recipes
    there = existing(rows, folder, resume=resume or whole is not None, overwrite=overwrite)
    bound = recipe is None and _IMAGES in _noted_or_nothing(folder)
    if bound:
        there = _as_made(folder, there)
    note: dict[str, Any] = {}
    if recipe is not None:
        each = {row.name: row.described(guidance) for row in rows}
        note = {**recipe, "steps": steps, "negative": negative, "size": size and list(size), "pictures": each}
        if whole is not None:
            elsewhere = {row.name for row in existing(rows, whole, resume=True, overwrite=overwrite)}
            _require(whole, note, sorted(elsewhere))
            rows = [row for row in rows if row.name not in elsewhere]
            note["pictures"] = {row.name: each[row.name] for row in rows}
            known = _known(folder, note) if overwrite else {row.name: each[row.name] for row in there}
            there = [r for r in rows if known.get(r.name) == each[r.name] and (folder / r.name).is_file()]
        _require(folder, note, [row.name for row in there])
    check_writing(folder / RECIPE)
    folders = {each.name for each in folder.iterdir() if each.is_dir()} if folder.is_dir() else set()
    if wrong := next((row.name for row in rows if row.name in folders), ""):
        check_writing(folder / wrong)
    check_rows(model, rows, steps=steps, guidance=guidance, negative=negative, size=size)
    kept = {row.name for row in there} | (_collect(folder, note) if note else set())
    missing = [row for row in rows if row.name not in kept]
    groups = _alike(model, missing, guidance, size)
    done = len(kept)
    for (scale, (height, width)), group in groups.items():
        left = iter(group)
        prompts, seeds = [row.prompt for row in group], [row.seed for row in group]
        options: Sampling = {"steps": steps, "guidance": scale, "negative": negative, "height": height, "width": width}
        for batch in generate_batches(model, prompts, seeds, **options):
            if note:  # only after the first batch, so that a failure to make it changes nothing on disk
                _note(folder, note)
                note = {}
            _write_batch(folder, batch, [next(left).name for _ in batch], bound)
            done += len(batch)
            if progress:
                progress(done, len(rows))
    return len(missing)


def existing(rows: Sequence[ImageRow], folder: Path, *, resume: bool, overwrite: bool) -> list[ImageRow]:
    """The ``rows`` whose image is in ``folder`` and stays. Raises `OutputError` for one without the leave of either."""
    there = [] if overwrite else [row for row in rows if (folder / row.name).exists()]
    if there and not resume:
        raise OutputError(
            f"{folder / there[0].name} exists already: choose another folder, or pass --resume to make the missing "
            "images, or --overwrite"
        )
    return there


def check_rows(
    model: DiffusionModel, rows: Sequence[ImageRow], *, steps: int, guidance: float, negative: str | None = None,
    size: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Raise `ConfigError` or `DataError` if `write_images` would refuse ``rows``, before anything is written."""
    texts, seeds = [negative, *(row.prompt for row in rows)], [row.seed for row in rows]
    for scale in {guidance, *(scale for scale, _ in _alike(model, rows, guidance, size))}:
        check_request(model, texts, seeds, steps=steps, guidance=scale)


def _alike(
    model: DiffusionModel, rows: Sequence[ImageRow], guidance: float, size: tuple[int, int] | None
) -> dict[tuple[float, tuple[int, int]], list[ImageRow]]:
    """``rows`` by guidance scale and (height, width): those that one batch can hold."""
    groups: dict[tuple[float, tuple[int, int]], list[ImageRow]] = {}
    for row in rows:
        groups.setdefault((row.scale(guidance), _size_of(row, model, size)), []).append(row)
    return groups


def _write_batch(folder: Path, batch: Tensor, names: Sequence[str], bound: bool) -> None:
    """Write the images of ``batch``. If they are ``bound``, their digests come first: a killed process leaves no image
    that nobody noted."""
    _write_files(folder, {name: encoded_image(image, name) for image, name in zip(batch, names, strict=True)}, bound)


def _write_files(folder: Path, images: Mapping[str, bytes], bound: bool) -> None:
    if bound:
        _bind(folder, images)
    for name, content in images.items():
        with atomic_path(folder / name) as partial:
            partial.write_bytes(content)


def _size_of(row: ImageRow, model: DiffusionModel, size: tuple[int, int] | None) -> tuple[int, int]:
    """Raise `ConfigError` that names the image if ``model`` cannot make one of its size."""
    usual = size or (None, None)
    height, width = (common if own is None else own for own, common in zip(row.size, usual, strict=True))
    try:
        return checked_size(model, height, width)
    except ConfigError as trouble:
        told = f"{trouble} (image {row.name} is to have it: --size sets one for all)" if any(row.size) else str(trouble)
        raise ConfigError(told) from None


def before_after(
    run: RunDirectory,
    model: DiffusionModel,
    bank: Bank,
    target_prompts: Sequence[str] | None = None,
    retain_prompts: Sequence[str] | None = None,
    seeds: Sequence[int] = (188, 288),
    *,
    steps: int = 20,
    guidance: float = 4.0,
) -> None:
    """Make images of the same prompts and seeds without and with the bank's edits.

    Writes ``before/``, ``after/`` and ``prompts.json``. ``target_prompts`` default to the bank's concepts in two
    phrasings, ``retain_prompts`` to three common prompts.
    """
    concepts = [concept for edit in bank.on for concept in edit.info.concepts]
    targets = list(target_prompts or [filled(phrase, c) for c in concepts for phrase in ("{}", "a picture of {}")])
    retained = list(
        retain_prompts if retain_prompts is not None else ("a picture", "a portrait of a person", "a house, a tree")
    )
    prompts = [(text, "target") for text in targets] + [(text, "retain") for text in retained]
    rows = [ImageRow(f"{k}_{i}.png", text, seed) for k, (text, _) in enumerate(prompts) for i, seed in enumerate(seeds)]
    gates = [[round(float(gate), 4) for gate in bank.gates([text])[0]] for text, _ in prompts]
    noted_prompts = [
        Prompt(case_number=k, prompt=text, seed=seeds[0], role=role, gate=gate)
        for k, ((text, role), gate) in enumerate(zip(prompts, gates, strict=True))
    ]
    run.check()
    with run.alone():
        for folder in (run.before, run.after):
            for stale in run.made_in(folder):
                stale.unlink()
        write_images(model, rows, run.before, steps=steps, guidance=guidance)
        with bank.applied():
            write_images(model, rows, run.after, steps=steps, guidance=guidance)
        run.write_prompts(noted_prompts)
        note_files(run, run.before, run.after, run.prompts)


RECIPE = "recipe.json"
"""File next to images that states how they were made."""


_IMAGES = "images"
"""Key of a recipe: the SHA-256 of each image that was made by it, by name."""


def claim(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write ``recipe`` in ``folder``. The images that a suite made there by another recipe are deleted.

    Raises `DataError` for a recipe file that is damaged: whose images these are is unknown. Raises `OutputError` for a
    folder of images that `write_images` made by request.
    """
    before = noted(folder)
    if "pictures" in before:
        raise OutputError(f"{folder} holds images that `mu generate` made: choose another folder for a suite's images")
    made = before.pop(_IMAGES, {})
    if before != recipe:
        for name, digest in made.items():
            if is_inside(folder, name) and sha256(folder / name) == digest:
                (folder / name).unlink()
        made = {}
    write_json(folder / RECIPE, {**recipe, _IMAGES: made})


def claimed_for(folder: Path) -> dict[str, Any]:
    """The recipe that `claim` wrote in ``folder``; empty if there is none. Raises `DataError` as `noted` does."""
    return {key: value for key, value in noted(folder).items() if key != _IMAGES}


def _as_made(folder: Path, rows: Sequence[ImageRow]) -> list[ImageRow]:
    """The ``rows`` whose images are those that were noted when they were made."""
    known = _noted_or_nothing(folder).get(_IMAGES, {})
    kept = [row for row in rows if (folder / row.name).is_file() and known.get(row.name) == sha256(folder / row.name)]
    names = {row.name for row in kept}
    if others := [row.name for row in rows if row.name not in names]:
        log.warning(
            "%d images in %s are not as they were made, such as %s: they are made again", len(others), folder, others[0]
        )
    return kept


def _bind(folder: Path, images: Mapping[str, bytes]) -> None:
    """Note the digests of ``images``, the contents of files that are being made."""
    recipe = noted(folder)
    made = {name: hashlib.sha256(content).hexdigest() for name, content in images.items()}
    write_json(folder / RECIPE, {**recipe, _IMAGES: {**recipe.get(_IMAGES, {}), **made}})


def adopt(source: Path, folder: Path) -> None:
    """Move to ``folder`` the images that a suite made in ``source`` by the same recipe, as they were made.

    Both were claimed (see `claim`). Images of another recipe, or changed since, stay where they are, with a warning.
    """
    made = _noted_or_nothing(source).get(_IMAGES, {})
    if made and claimed_for(source) != claimed_for(folder):
        log.warning("the images in %s were made by another recipe than those in %s: they are not used", source, folder)
        return
    known = noted(folder).get(_IMAGES, {})
    names = [
        name
        for name, digest in made.items()
        if name not in known
        and is_inside(source, name)
        and (source / name).is_file()
        and sha256(source / name) == digest
    ]
    if names:
        _bind(folder, {name: (source / name).read_bytes() for name in names})
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(folder / name)


def borrow(sources: Sequence[Path], folder: Path, rows: Sequence[ImageRow]) -> None:
    """Copy to ``folder`` the images of ``rows`` that it lacks and that one of ``sources`` has, by the same recipe.

    All are folders that suites claimed (see `claim`). A copy is as it was made, and noted in ``folder``; what was
    changed since is not used. The log says of which folder how many are.
    """
    recipe = claimed_for(folder)
    for source in sources:
        known, made = _noted_or_nothing(folder).get(_IMAGES, {}), _noted_or_nothing(source)
        if {key: value for key, value in made.items() if key != _IMAGES} != recipe:
            continue
        found = {}
        for name in sorted(({row.name for row in rows} & made.get(_IMAGES, {}).keys()) - known.keys()):
            if is_inside(source, name):
                content = (source / name).read_bytes()
                if hashlib.sha256(content).hexdigest() == made[_IMAGES][name]:
                    found[name] = content
        if found:
            _write_files(folder, found, bound=True)
            log.info("%d images of the base are copies of those in %s: the recipe is the same", len(found), source)


def noted(folder: Path) -> dict[str, Any]:
    """The recipe in ``folder``; empty if there is none. Raises `DataError` for a file that is damaged."""
    path = folder / RECIPE
    if not path.exists():
        return {}
    recipe = read_record(path, dict[str, Any])
    checked(path, recipe.get("pictures", {}), dict[str, dict[str, Any]], "pictures")
    checked(path, recipe.get(_IMAGES, {}), dict[str, str], _IMAGES)
    return recipe


def _noted_or_nothing(folder: Path) -> dict[str, Any]:
    """`noted`, and nothing for a damaged file: it does not say how any image was made."""
    try:
        return noted(folder)
    except DataError:
        return {}


def _known(folder: Path, note: Mapping[str, Any]) -> dict[str, Any]:
    """The images that the recipe file in ``folder`` lists, if its recipe equals that of ``note``; else empty."""
    before = _noted_or_nothing(folder)
    same = {**before, "pictures": None} == {**note, "pictures": None}
    return before.get("pictures") or {} if same else {}


def _require(folder: Path, note: Mapping[str, Any], kept: Sequence[str]) -> None:
    """Raise `OutputError` if the images ``kept`` in ``folder`` were not made as ``note`` says."""
    before = _noted_or_nothing(folder)
    for name in kept:
        if name not in before.get("pictures", {}):
            raise OutputError(f"how {folder / name} was made is unknown: choose another folder, or pass --overwrite")
        old, new = ({**of, **of["pictures"][name], "pictures": None} for of in (before, note))
        differing = ", ".join(
            _told(option, old.get(option), new[option]) for option in new if old.get(option) != new[option]
        )
        if differing:
            raise OutputError(
                f"{folder / name} was made differently ({differing}): pass the same settings, choose another folder, "
                "or pass --overwrite"
            )


def _told(option: str, before: Any, now: Any) -> str:
    """Describe a difference: ``steps 20, now 30``, or the name alone for values that are hashes."""
    if isinstance(now, dict) or isinstance(before, dict):
        return f"another {option}"
    old, new = ("default" if value is None else json.dumps(value, ensure_ascii=False) for value in (before, now))
    return f"{option} {old}, now {new}"


def _note(folder: Path, note: dict[str, Any]) -> None:
    """Write ``note``, after deleting images it does not describe, so that an interrupted run leaves no mismatch."""
    known = _known(folder, note)
    with writing(folder):
        for name, row in note["pictures"].items():
            if known.get(name) != row:
                (folder / name).unlink(missing_ok=True)
    write_json(folder / RECIPE, {**note, "pictures": {**known, **note["pictures"]}})


def part_of(folder: Path, k: int, n: int) -> Path:
    """Where part ``k`` of ``n`` of the images of ``folder`` is made: processes never write to the same folder."""
    return folder / "shards" / f"{k}-of-{n}"


def _collect(folder: Path, note: dict[str, Any]) -> set[str]:
    """Move the images that parts (`part_of`) made as ``note`` says to ``folder``. Returns their names.

    What a part does not hold whole, or made by another recipe, stays where it is, with a warning. Raises `BusyError`
    while a part is being made.
    """
    found: set[str] = set()
    for part in sorted(each for each in (folder / "shards").glob("*-of-*") if (each / RECIPE).exists()):
        with locked(part):
            there = {file.name for file in part.iterdir() if file.suffix == ".png"}
            made = {name for name, row in _known(part, note).items() if note["pictures"].get(name) == row} & there
            whole = {name for name in made if _is_whole(part / name)}
            if others := sorted(there - whole):
                told = (len(others), part, others[0])
                log.warning("%d images in %s are damaged or of another recipe, such as %s: they are not used", *told)
            if whole:
                _note(folder, {**note, "pictures": {name: note["pictures"][name] for name in sorted(whole)}})
            with writing(folder):
                for name in whole:
                    _move(part / name, folder / name)
            found |= whole
            if not others:
                (part / RECIPE).unlink()
        with suppress(OSError):  # not empty
            part.rmdir()
            part.parent.rmdir()
    return found


def _is_whole(image: Path) -> bool:
    try:
        read_pixels(image)
    except DataError:
        return False
    return True


def _move(source: Path, target: Path) -> None:
    """To another disk too, where a file is copied."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_path(target) as partial:
            shutil.copyfile(source, partial)
        source.unlink()


def recipe_of(bank: Bank, strengths: Sequence[float] | None = None, gate: Gate | None = None) -> dict[str, Any]:
    """All that determines the images of ``bank.model`` with ``bank`` applied, except the arguments of `write_images`.

    Call it while no edit is on. It takes milliseconds, because the fingerprint samples the weights (see
    `mu.models.parameters.fingerprint`).
    """
    model = bank.model
    assert isinstance(model, DiffusionModel), "only diffusion models make images"
    return {
        "model": {**described(model, list(select(model, "*"))), "scheduler": scheduler_hash(model)},
        **made_in(model),
        "edits": {edit.concept(): content_hash(edit) for edit in bank.on},
        "strength": bank.strengths(strengths),
        "gate": "file" if gate is None else repr(gate),
    }


def made_in(model: DiffusionModel) -> dict[str, Any]:
    """The model's precision, and whether it compiles: images of the two differ by rounding."""
    compiled = {"compiled": True} if model.compiles else {}
    return {"precision": str(model.precision).removeprefix("torch."), **compiled}


def content_hash(edit: Edit) -> str:
    """Hash of an edit's tensors and gate."""
    digest = hashlib.blake2b(repr(sorted(gate_to_json(edit.info.gate).items())).encode(), digest_size=16)
    for name, tensor in sorted(edit.tensors().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def scheduler_hash(model: DiffusionModel) -> str:
    """Hash of the kind and settings of the model's scheduler."""
    scheduler = model.pipeline.scheduler
    settings = sorted((name, str(value)) for name, value in scheduler.config.items() if not name.startswith("_"))
    return hashlib.blake2b(f"{type(scheduler).__name__} {settings}".encode(), digest_size=16).hexdigest()
