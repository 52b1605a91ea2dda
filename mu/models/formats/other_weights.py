"""Weights that others published, by the parameter names of a model: a whole checkpoint, or a part of one.

A folder of diffusers or of one component, a single file in CompVis' layout, or a state dict of any of the parameters,
in the spellings of several versions and tools. Every key of a file is a parameter, is known not to be one, or is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from mu.core.errors import ConfigError, ModelError, MuError, nearest, quoted, titled
from mu.models.diffusion import DiffusionModel
from mu.models.formats import compvis
from mu.models.formats.checkpoint import SUFFIXES, WeightFile, open_weights
from mu.models.formats.folder import loaded_weights
from mu.models.formats.packing import TRANSPOSED, fitted, parts_of
from mu.models.formats.parameter_names import spellings, unwrapped
from mu.models.hub import hub_folder
from mu.models.places import EMBEDDED, TRANSFORMERS_CONFIG, config_in
from mu.models.quiet import quiet_libraries

_SINGLE = (compvis.UNET, compvis.VAE, "cond_stage_model.", "conditioner.embedders.")
_BARE_UNET = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
"""How the names of CompVis begin: in a whole file, and in one that holds the UNet alone."""
_NO_PARAMETERS = re.compile(
    r"(.*\.)?position_ids"  # a buffer in older versions of transformers
    r"|betas|logvar|lvlb_weights|scale_factor|global_step|denoiser\.sigmas|v_pred|ztsnr"
    r"|(sqrt_|log_one_minus_|posterior_)\w+|(sqrt_)?alphas_cumprod\w*"
    r"|model_ema\..*|(ema\.)?(decay|num_updates|optimization_step)"
)
"""Names of the noise schedule, of EMA copies and the like, which no pipeline reads from a file of weights."""
_TOKENS, _EMBED = "modifier_token.", "embed"
"""Embeddings of new tokens, in files of Custom Diffusion and Concept Ablation: by diffusers, and in CompVis' layout."""
_KINDS = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae", "CLIPTextModel": "text_encoder"}
_SETTINGS = ("attention_head_dim", "num_attention_heads", "hidden_act", "scaling_factor")
"""Settings of a component that change its outputs and the shape of no weight."""
_OTHER = "name the model that it was made from as the base"


class _Place(NamedTuple):
    """A parameter in a file: the tensor ``key``, or one of the equal ``parts`` that it is split into."""

    file: WeightFile
    key: str
    part: int
    parts: int


class Weights:
    """The parameters that the files of OTHER hold, by their full names in ``model``; see `weights_of`.

    ``paths`` are the files, ``tokens`` the names of embeddings of new tokens, which belong to no parameter.
    """

    def __init__(self, model: DiffusionModel):
        self.model = model
        self.paths: list[Path] = []
        self.tokens: list[str] = []
        self._shapes = {
            part: {name: parameter.shape for name, parameter in module.named_parameters()}
            for part, module in model.components.items()
        }
        self._places: dict[str, _Place] = {}
        self._text_config = model.text[0].module.config.to_dict()

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def read(self, name: str) -> Tensor:
        """The tensor of the parameter ``name``, in the model's shape and the file's number type."""
        return self._read(self._places[name], name)

    def _read(self, place: _Place, name: str) -> Tensor:
        tensor = place.file.read(place.key)
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"{place.file.path}: {place.key} is {kind}: save it as float16 or float32")
        return fitted(parts_of(tensor, place.parts, place.key)[place.part], place.key, self._shape(name))

    def take(self, file: WeightFile, component: str | None, only: Sequence[str]) -> None:
        """Find the place of every key of ``file``, of which ``component`` is known if it lies in a folder of its own.

        Raises `ModelError` for the first key that is no parameter, and for another shape.
        """
        self.paths.append(file.path)
        if component is None and any(_as_whole(key).startswith(_SINGLE) for key in file.shapes):
            places = self._in_single_file(file)
        else:
            component = component or self._component_of(file, only)
            places = {key: [name] for key in file.shapes if (name := self._full(key, component))}
        for key in file.shapes:
            if _is_token(key):
                self.tokens.append(key.removeprefix(_TOKENS))
            elif key in places:
                self._put(file, key, places[key])
            elif not self._is_no_parameter(key):
                raise self._unknown(file, key, only)

    def _unknown(self, file: WeightFile, key: str, only: Sequence[str]) -> MuError:
        """What is said of a ``key`` that is no parameter of the model, or of none of the components ``only``."""
        if only and (owner := next((part for part in self._shapes if self._full(key, part)), "")):
            return ConfigError(
                f"{file.path} holds the {owner}, and not the {' or the '.join(only)}: name that component"
            )
        return ModelError(f"{file.path} holds {quoted(key)}, which {titled(self.model.name)} does not have: {_OTHER}")

    def check_whole(self, folder: Path, component: str) -> None:
        """Raise `ModelError` if ``folder``, a component's own, lacks one of its parameters."""
        missing = [name for name in self._shapes[component] if f"{component}.{name}" not in self._places]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(f"the model in {folder} lacks the tensor {missing[0]}{more}: copy it again, or {_OTHER}")

    def _put(self, file: WeightFile, key: str, names: Sequence[str]) -> None:
        for part, name in enumerate(names):
            if not self._fits(file, key, name, len(names)):
                here, there = (_sides(shape) for shape in (file.shapes[key], self._shape(name)))
                what = f"{quoted(key)} is {here}, and {name} of {titled(self.model.name)} {there}"
                raise ModelError(f"{file.path} is of another architecture ({what}): {_OTHER}")
            place = _Place(file, key, part, len(names))
            if name not in self._places:
                self._places[name] = place
            elif not torch.equal(self.read(name), self._read(place, name)):
                raise ModelError(
                    f"{file.path} holds {name} twice, the second time with other numbers, as {quoted(key)}: keep one "
                    "of them"
                )

    def _fits(self, file: WeightFile, key: str, name: str, parts: int = 1) -> bool:
        """Whether the tensor ``key`` can be the parameter ``name``, up to 1x1 kernels and a split."""
        shape, wanted = file.shapes[key], self._shape(name)
        if parts > 1:
            return len(shape) == len(wanted) and list(shape) == [parts * wanted[0], *wanted[1:]]
        here, there = ([size for size in each if size != 1] for each in (shape, wanted))
        return here == (there[::-1] if key.endswith(TRANSPOSED) else there)

    def _shape(self, name: str) -> Size:
        component, _, path = name.partition(".")
        return self._shapes[component][path]

    def _full(self, key: str, component: str | None) -> str | None:
        """The full name of the parameter ``key``, which may name its component; None if there is none."""
        for name in (key, unwrapped(key)):
            head, _, rest = name.partition(".")
            for part, path in ((head, rest), (component or "", name)):
                for each in spellings(path) if part in self._shapes else ():
                    if each in self._shapes[part]:
                        return f"{part}.{each}"
        return None

    def _component_of(self, file: WeightFile, only: Sequence[str]) -> str | None:
        """The component that the keys without one belong to; None if there are no such keys.

        Raises `ConfigError` if several have them all, in their shapes.
        """
        bare = [key for key in file.shapes if not (self._full(key, None) or self._is_no_parameter(key))]
        found = {part: [key for key in bare if self._full(key, part)] for part in only or self._shapes}
        most = max(map(len, found.values()))
        if not most:
            return None
        best = [part for part, keys in found.items() if len(keys) == most]
        if len(best) > 1:
            fit = [part for part in best if all(self._fits(file, k, str(self._full(k, part))) for k in found[part])]
            if len(fit) > 1:
                raise ConfigError(f"{file.path} may be the {' or the '.join(fit)}: say which with --component")
            best = fit or best
        return best[0]

    def _in_single_file(self, file: WeightFile) -> dict[str, list[str]]:
        """Key of a file in CompVis' layout -> full names of the parameters that it holds, in the order of the parts."""
        from mu.models.formats.single_file import names_in_file, with_usual_names

        table: dict[str, list[str]] = {}
        for component, names in names_in_file(self.model.pipeline).items():
            for name, place in names.items():
                table.setdefault(place, []).append(f"{component}.{name}")
        usual = with_usual_names({_as_whole(key): key for key in file.shapes})
        return {key: table[place] for place, key in usual.items() if place in table}

    def _is_no_parameter(self, key: str) -> bool:
        from mu.models.formats.single_file import DESCRIPTION, is_unread, with_usual_names

        name = unwrapped(key)
        usual = next(iter(with_usual_names({_as_whole(key): key})))
        known = name == DESCRIPTION or _is_token(name) or _NO_PARAMETERS.fullmatch(name)
        return bool(known) or is_unread(usual, self._text_config)


def _sides(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _is_token(key: str) -> bool:
    return key == _EMBED or key.startswith(_TOKENS)


def _as_whole(key: str) -> str:
    """``key`` as a whole file of CompVis spells it."""
    name = unwrapped(key) if key.startswith(("module.", "_orig_mod.")) else key
    bare = name.removeprefix("diffusion_model.")
    return compvis.UNET + bare if bare.startswith(_BARE_UNET) else name


def place_of(other: Path | str) -> Path:
    """The file or folder of ``other``: an embedded model's name, a path or a hub id. Raises `ModelError`."""
    name = str(other)
    if not name.strip():
        raise ModelError("the name of the edited weights is empty: name a folder, a file or a hub id")
    place = EMBEDDED.get(name, Path(name))
    return place if place.exists() else hub_folder(name)


def check_weights(other: Path | str) -> None:
    """Raise `ModelError` if the weights ``other`` are not there, or a file of them cannot be opened.

    Needs no model. Whether the weights are parameters of one, `weights_of` says.
    """
    place = place_of(other)
    if place.is_file():
        files = [place]
    elif any(path.suffix.lower() in SUFFIXES for path in place.rglob("*")):
        parts = [part for name in ("unet", "vae", "text_encoder*") for part in place.glob(name) if part.is_dir()]
        files = []
        for part in parts:
            if not (of_part := loaded_weights(part)):
                raise _without_weights(part)
            files += of_part
    else:
        raise _without_weights(place)
    for file in files:
        with open_weights(file):
            pass


def _without_weights(folder: Path) -> ModelError:
    return ModelError(f"{folder} holds no weights: copy them, or name their file")


@contextmanager
def weights_of(place: Path, model: DiffusionModel, only: Iterable[str] = ()) -> Iterator[Weights]:
    """Open the weights in ``place`` as parameters of ``model``; inside the block, each is read when it is asked for.

    ``only`` names the components that keys without one may belong to. Raises `ModelError` for a file that cannot be
    read, a key that ``model`` does not have, and weights of another architecture; `ConfigError` for an unknown
    component, and for keys that several components have.
    """
    only = list(only)
    for part in only:
        if part not in model.components:
            raise ConfigError(f"{titled(model.name)} has no component {quoted(part)}.{nearest(part, model.components)}")
    with ExitStack() as stack, quiet_libraries():
        found = Weights(model)
        for folder, component in _parts(place, model):
            files = [folder] if folder.is_file() else loaded_weights(folder)
            if not files:
                raise _without_weights(folder)
            for path in files:
                found.take(stack.enter_context(open_weights(path)), component, only)
            if component is not None:
                found.check_whole(folder, component)
        if not found.names:
            raise ModelError(f"{place} holds no weights of {titled(model.name)}: name a file or a folder that does")
        yield found


def _parts(place: Path, model: DiffusionModel) -> Iterator[tuple[Path, str | None]]:
    """The files or folders of weights in ``place``, each with its component, None if the keys must tell."""
    if place.is_file():
        yield place, None
        return
    if parts := [part for part in model.components if (place / part).is_dir()]:
        yield from ((place / part, part) for part in parts)
        return
    config = config_in(place / TRANSFORMERS_CONFIG)
    if config is not None:
        kinds = [config.get("_class_name"), *_listed(config.get("architectures"))]
        kind = next((kind for kind in kinds if isinstance(kind, str)), "model of an unknown type")
        if kind in _KINDS or kind == "CLIPTextModelWithProjection":
            yield place, _KINDS.get(kind) or max(part for part in model.components if part.startswith("text_encoder"))
            return
        raise ModelError(f"{place} holds a {quoted(kind)}, which is no part of {titled(model.name)}: {_OTHER}")
    files = [file for file in sorted(place.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()]
    if len(files) != 1:
        names = f" ({', '.join(file.name for file in files[:4])}, ...)" if files else ""
        raise ModelError(f"{place} holds {len(files)} files of weights{names}: name one of them, or a model's folder")
    yield files[0], None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def differing_settings(place: Path, model: DiffusionModel) -> list[str]:
    """What else a folder states differently than ``model``, by name. The difference of weights cannot hold it."""
    from mu.models.formats.single_file import open_tokenizer

    found = []
    for part, module in model.components.items():
        config = config_in(place / part / TRANSFORMERS_CONFIG) or {}
        found += [f"{part} ({key})" for key in _differing(config, module.config, _SETTINGS.__contains__)]
    scheduler = config_in(place / "scheduler" / "scheduler_config.json") or {}
    own = {**model.pipeline.scheduler.config, "_class_name": type(model.pipeline.scheduler).__name__}
    keys = _differing(scheduler, own, lambda key: key == "_class_name" or not key.startswith("_"))
    found += [f"scheduler ({key})" for key in keys]
    for text in model.text:
        name = text.component.replace("text_encoder", "tokenizer")
        if (place / name).is_dir() and open_tokenizer(place / name).get_vocab() != text.tokenizer.get_vocab():
            found.append(f"{name} (vocabulary)")
    return found


def _differing(config: Mapping[str, Any], own: Any, matters: Callable[[str], bool]) -> list[str]:
    own = own if isinstance(own, Mapping) else own.to_dict()
    return [key for key, value in config.items() if matters(key) and key in own and own[key] != value]
