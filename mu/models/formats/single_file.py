"""Convert a Stable Diffusion pipeline from and to one weight file: SD 1.x, 2.x and SDXL in the layout of CompVis.

The file holds weights only. The architecture follows from the tensor names; the tokenizer is searched for offline.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from huggingface_hub import try_to_load_from_cache
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from mu.core.documents import parse_json
from mu.core.errors import ConfigError, DataError, ModelError, as_edit, nearest, quoted
from mu.core.records import read_json
from mu.models.formats import architectures, compvis
from mu.models.formats.checkpoint import read_metadata, read_state_dict
from mu.models.formats.packing import pack, unpack
from mu.models.formats.statements import Statements, check_family, check_schedule, in_file, restated, statements
from mu.models.places import PREDICTIONS
from mu.models.quiet import quiet_libraries

START, END = "<|startoftext|>", "<|endoftext|>"
T = TypeVar("T")
Configs = Mapping[str, Mapping[str, Any]]

# Tensors under the prefix of each component that published files hold and pipelines do not read.
_UNREAD = {
    compvis.UNET: r"",
    compvis.VAE: r"(loss|model_ema)\..*",
    **dict.fromkeys((compvis.CLIP, compvis.CLIP_XL), r"embeddings\.position_ids|text_projection\.weight"),
    **dict.fromkeys((compvis.OPEN_CLIP, compvis.OPEN_CLIP_XL), r"text_projection|logit_scale|attn_mask|visual\..*"),
}
# open_clip's towers were trained with zeros after the text. Token 0 is "!", as in the published diffusers folders.
_PAD = {("sd1", "tokenizer"): END, ("sd2", "tokenizer"): "!", ("sdxl", "tokenizer"): END, ("sdxl", "tokenizer_2"): "!"}
_CLIP = "openai/clip-vit-large-patch14"
_VAE_ATTENTION = {
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "query": "q", "key": "k", "value": "v",
    "proj_attn": "proj_out", "group_norm": "norm",
}  # fmt: skip
_SCALE = 0.18215  # of latents, if an autoencoder's config states none
_MERGES = 49152 - 256 - 2  # the merges that CLIP was trained with; open_clip ships more


def load_single_file(
    path: Path | str,
    *,
    prediction_type: str | None = None,
    configs: Configs | Path | str | None = None,
    dtype: torch.dtype | None = torch.float32,
    tensors: dict[str, Tensor] | None = None,
) -> DiffusionPipeline:
    """Load the file at ``path`` as a stock diffusers pipeline without safety checker.

    ``prediction_type`` is what the UNet predicts: ``epsilon``, ``v_prediction`` or ``sample``. The weights do not state
    it. By default it is what the file says of itself (see `mu.models.formats.statements`); else SD 2.x is the 768 x 768
    model (``v_prediction``), and all others are ``epsilon``. ``configs`` replaces the published config of the
    components it lists (``unet``, ``vae``, ``text_encoder``, ``text_encoder_2``, ``scheduler``), or names a diffusers
    folder with configs and a tokenizer. By default a file of `described` describes itself. ``dtype=None`` keeps the
    precision of the file. Tensors from training (EMA copies) are ignored. ``tensors`` is the content of the file, if it
    was read before; the mapping is emptied.

    Raises `ModelError` if the file cannot be read, is not a Stable Diffusion checkpoint, lacks a tensor of its config,
    or has a surplus tensor or one of another shape in UNet, autoencoder or text encoders; or if no tokenizer is found.
    """
    if prediction_type not in (None, *PREDICTIONS):
        raise ConfigError(
            f"prediction_type cannot be {quoted(prediction_type)}.{nearest(prediction_type, PREDICTIONS)}"
        )
    path = Path(path)
    tensors = with_usual_names(read_state_dict(path) if tensors is None else tensors)
    family = _family(tensors, path)
    own = _own_description(tensors, path)
    configs = configs or own.get("configs")
    said = statements(tensors, read_metadata(path), path)
    check_family(said, family, path)
    if prediction_type is None:
        prediction_type = said.prediction(path)
    places = [path.parent]
    if isinstance(configs, (str, Path)):
        places.insert(0, Path(configs))
        configs = _folder_configs(Path(configs))
    described = _published(family, prediction_type) | dict(configs or {})
    described["scheduler"] = _scheduler({**described["scheduler"], **said.scheduler}, prediction_type, said, path)
    described["vae"] = {**described["vae"], **said.vae}
    if not configs:
        described["unet"] = {**described["unet"], **said.unet}
    with quiet_libraries():
        parts: dict[str, Any] = {"scheduler": architectures.new_component(described["scheduler"])}
        check_schedule(tensors, parts["scheduler"], path)
        for component in _text_encoders(family):
            tokenizer = component.replace("text_encoder", "tokenizer")
            kept = own.get("tokenizers", {}).get(tokenizer)
            parts[tokenizer] = (
                _from_texts(kept, path)
                if kept
                else find_tokenizer(places, tokenizer, described[component], pad=_PAD[family, tokenizer])
            )
        for component in ("unet", "vae", *_text_encoders(family)):
            try:
                parts[component] = _take(tensors, family, component, described[component], dtype)
            except ModelError as error:
                raise ModelError(f"{component} in {path}: {error}; if this is a variant, pass its `configs`") from None
        if surplus := _surplus(tensors, described["text_encoder"]):
            what = f"{len(surplus)} tensors that {family} does not have, for example {surplus[0]}"
            raise ModelError(f"{path} holds {what}; if this is a variant, pass its `configs`")
        return _assembled(family, parts)


def read_single_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a single file, in the usual names of CompVis, and its metadata."""
    return with_usual_names(read_state_dict(path)), read_metadata(path)


def described(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], pipeline: Any, prediction_type: str, path: Path
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """What is written to ``path`` so that `load_single_file` uses the weights as ``pipeline`` does.

    ``tensors`` and ``metadata`` are those of the file so far; what they say of prediction type and noise schedule is
    replaced. Only safetensors files have metadata. The third result holds the settings that tensors and metadata do not
    state, for a ``.yaml`` beside the file; it is empty if they state all.
    Raises `ModelError` for a noise schedule or a scaling factor that can be stated in neither way.
    """
    family, scheduler = _family_of(pipeline), pipeline.scheduler.config
    zero_snr = bool(scheduler.get("rescale_betas_zero_snr"))
    if zero_snr and prediction_type == "epsilon":
        raise _unstated("a noise schedule that ends in pure noise while the UNet predicts eps")
    published = _published(family, prediction_type)
    marks = {"v_pred": prediction_type == "v_prediction", "ztsnr": zero_snr}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in marks}
    tensors |= {name: torch.empty(0) for name, holds in marks.items() if holds}
    metadata = restated(metadata, prediction_type, zero_snr) if path.suffix == ".safetensors" else {}
    size = pipeline.unet.config.sample_size * 8
    if metadata and size % 64 == 0 and size // 8 != published["unet"].get("sample_size"):
        metadata.setdefault("modelspec.resolution", f"{size}x{size}")

    stated = {"beta_start": scheduler.get("beta_start"), "beta_end": scheduler.get("beta_end")}
    told = _scheduler({**published["scheduler"], **stated}, prediction_type, Statements(zero_snr=zero_snr), path)
    if not _same_schedule(architectures.new_component(told), pipeline.scheduler):
        raise _unstated("another noise schedule than that of Stable Diffusion")
    settings: dict[str, Any] = {}
    if any(stated[key] != published["scheduler"].get(key) for key in stated):
        settings |= {"linear_start": stated["beta_start"], "linear_end": stated["beta_end"]}
    if (factor := pipeline.vae.config.scaling_factor) != published["vae"].get("scaling_factor", _SCALE):
        settings["scale_factor"] = factor
    for key, value in settings.items():
        if not 0 < value < 100:
            raise _unstated(f"{key} {value}")
    usual = _published(family, None)["scheduler"].get("prediction_type", "epsilon")
    if settings or (in_file(tensors, metadata, path).prediction(path) or usual) != prediction_type:
        settings["parameterization"] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[prediction_type]
    return tensors, metadata, settings


def _unstated(what: str) -> ModelError:
    return ModelError(f"a single file cannot state {what}, and would be used wrongly: write the format diffusers")


def _same_schedule(some: Any, other: Any) -> bool:
    one, two = (DDPMScheduler.from_config(each.config).alphas_cumprod for each in (some, other))
    return one.shape == two.shape and torch.allclose(one, two, atol=1e-6)


def _family_of(pipeline: Any) -> str:
    """Two text encoders are SDXL; one with GELU is SD 2.x (open_clip), with QuickGELU SD 1.x."""
    if getattr(pipeline, "text_encoder_2", None) is not None:
        return "sdxl"
    return "sd2" if pipeline.text_encoder.config.hidden_act == "gelu" else "sd1"


def names_in_file(pipeline: Any) -> dict[str, dict[str, str]]:
    """Component -> name in it -> name in a single file, of each parameter and buffer of ``pipeline``."""
    family, found = _family_of(pipeline), {}
    for component in ("unet", "vae", *_text_encoders(family)):
        config = getattr(pipeline, component).config
        found[component] = compvis.component_names(
            family, component, config if component in ("unet", "vae") else config.to_dict()
        )
    return found


def to_compvis(pipeline: Any) -> dict[str, Tensor]:
    """All weights of ``pipeline`` in the single-file layout of CompVis; the numbers are the same bit for bit.

    The noise schedule, EMA copies and the last layer of SD 2.x's text encoder, which is never evaluated, are left out,
    because a pipeline does not hold them. Raises `ModelError` while adapters (LoRA) are in the model.
    """
    checkpoint: dict[str, Tensor] = {}
    for component, names in names_in_file(pipeline).items():
        checkpoint |= pack(getattr(pipeline, component).state_dict(), names)
    return checkpoint


DESCRIPTION = "mu_description"
"""Name of the tensor that holds the bytes of a JSON text: ``configs`` by component, and ``tokenizers``, each as the
texts of its files by name. Files of a published architecture have none."""


def description_of(pipeline: Any) -> dict[str, Tensor]:
    """What ``to_compvis`` must add so that the file opens again; empty for a published architecture."""
    family, published = _family_of(pipeline), _published(_family_of(pipeline), None)
    modules = {part: getattr(pipeline, part) for part in ("unet", "vae", *_text_encoders(family))}
    if all(_shapes(module) == _shapes(architectures.blueprint(published[part])) for part, module in modules.items()):
        return {}
    configs = {part: json.loads(_config_text(module)) for part, module in modules.items()}
    configs["scheduler"] = json.loads(pipeline.scheduler.to_json_string())
    named = [part.replace("text_encoder", "tokenizer") for part in _text_encoders(family)]
    content = {"configs": configs, "tokenizers": {name: _as_texts(getattr(pipeline, name)) for name in named}}
    return {DESCRIPTION: torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)}


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _config_text(module: Any) -> str:
    """The config of a component as in its folder; what it is built by is always named."""
    if not hasattr(module.config, "to_json_string"):
        return str(module.to_json_string())
    return json.dumps(module.config.to_dict() | {"architectures": [type(module).__name__]})


def _as_texts(tokenizer: CLIPTokenizer) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir()}


def _from_texts(files: Mapping[str, str], path: Path) -> CLIPTokenizer:
    """The tokenizer whose files are in ``files``, from the description in the file at ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            if Path(name).name != name:
                raise ModelError(f"{path} describes itself wrongly ({quoted(name)}): use another copy")
            (Path(folder) / name).write_text(text, encoding="utf-8")
        if not _holds_tokenizer(Path(folder)):
            raise ModelError(f"{path} describes itself wrongly (no tokenizer): use another copy")
        return open_tokenizer(Path(folder))


def _own_description(tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Take the file's description of itself out of ``tensors``; empty if it has none."""
    if (content := tensors.pop(DESCRIPTION, None)) is None:
        return {}
    try:
        found = parse_json(content.numpy().tobytes().decode(), str(path))
        if all(isinstance(each, dict) for part in ("configs", "tokenizers") for each in found[part].values()):
            return dict(found)
    except (DataError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ModelError(f"{path} describes itself wrongly ({DESCRIPTION}): use another copy")


def find_tokenizer(places: Sequence[Path], folder: str, text_config: Mapping[str, Any], pad: str) -> CLIPTokenizer:
    """Find a CLIP tokenizer without network: ``folder`` (or ``tokenizer``) in one of ``places``, else CLIP's own.

    CLIP's own comes from the local Hugging Face cache or the vocabulary that open_clip ships, and pads with ``pad``.
    Raises `ModelError` if none is found, or if it has more tokens than the text encoder.
    """
    limit = text_config.get("max_position_embeddings", 77)
    tokenizer = _beside(places, folder, pad) or _cached(pad, limit) or _from_open_clip(pad, limit)
    if tokenizer is None:
        where = "its tokenizer.json" if folder == "." else f"the folder {folder}/ of a diffusers model"
        ways = f"pip install open_clip_torch, or put {where} into the folder of the file"
        raise ModelError(f"a single file has no tokenizer, and none was found on this machine: {ways}")
    known = text_config.get("vocab_size", 49408)
    if len(tokenizer) > known:
        what = f"the tokenizer has {len(tokenizer)} tokens, the text encoder {known}"
        raise ModelError(f"{what}: put the model's own folder {folder}/ into the folder of the file")
    return tokenizer


# -- architecture ------------------------------------------------------------------------------------------------------


def _family(tensors: Mapping[str, Tensor], path: Path) -> str:
    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in tensors)

    if not has(compvis.UNET):
        hint = f"name a full checkpoint or a diffusers folder; if these are edited weights, {as_edit(path)}"
        raise ModelError(
            f"{path} is not a Stable Diffusion checkpoint (it holds e.g. {quoted(next(iter(tensors)))}): {hint}"
        )
    for family, prefix in (("sdxl", compvis.OPEN_CLIP_XL), ("sd2", compvis.OPEN_CLIP), ("sd1", compvis.CLIP)):
        if has(prefix):
            return family
    if has("conditioner.embedders.0.model."):
        raise ModelError(f"{path} is the SDXL refiner, which needs more than text: name the SDXL base model")
    raise ModelError(f"{path} holds a UNet but no known text encoder: name a full SD 1.x, SD 2.x or SDXL checkpoint")


def _text_encoders(family: str) -> tuple[str, ...]:
    return ("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",)


def _published(family: str, prediction_type: str | None) -> dict[str, Mapping[str, Any]]:
    if family == "sd2":
        return dict(architectures.stable_diffusion_2(prediction_type or "v_prediction"))
    return dict(architectures.stable_diffusion_1() if family == "sd1" else architectures.stable_diffusion_xl())


def _scheduler(config: Mapping[str, Any], prediction_type: str | None, said: Statements, path: Path) -> dict[str, Any]:
    """``config`` with what the file says and what was asked for."""
    found = {**config, "prediction_type": prediction_type or config.get("prediction_type", "epsilon")}
    if not said.zero_snr:
        return found
    if found["prediction_type"] == "epsilon":
        raise ModelError(
            f"{path} says that its noise schedule ends in pure noise (ztsnr), where eps has no information: pass "
            "prediction_type v_prediction if the model was trained with it"
        )
    if found["_class_name"] == "PNDMScheduler":  # it cannot end in pure noise
        found = {**found, "_class_name": "DDIMScheduler"}
    return found | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def _folder_configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The configs that a diffusers folder has."""
    files = {part: folder / part / "config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2")}
    files["scheduler"] = folder / "scheduler" / "scheduler_config.json"
    found = {part: read_json(file, error=ModelError) for part, file in files.items() if file.exists()}
    for part, content in found.items():
        if not isinstance(content, dict):
            raise ModelError(f"{files[part]} is not a config: copy the folder again")
    if not found:
        raise ModelError(f"{folder} holds no configs: name a folder in the diffusers layout (unet/config.json, ...)")
    return found


def with_usual_names(tensors: dict[str, T]) -> dict[str, T]:
    """Rename what merging and converting tools left in other names; the values are whatever belongs to a name.

    They leave out the level ``text_model`` of SD 1.x's text encoder, or keep diffusers' names, old or new, for the
    attention of the autoencoder.
    """
    outer = compvis.CLIP.removesuffix("text_model.")
    for name in [name for name in tensors if name.startswith(compvis.VAE) and ".mid.attn_1." in name]:
        head, _, layer = name.partition(".mid.attn_1.")
        layer, _, kind = layer.rpartition(".")
        if layer in _VAE_ATTENTION:
            tensors[f"{head}.mid.attn_1.{_VAE_ATTENTION[layer]}.{kind}"] = tensors.pop(name)
    for name in [name for name in tensors if name.startswith(outer) and not name.startswith(compvis.CLIP)]:
        tensors[compvis.CLIP + name.removeprefix(outer)] = tensors.pop(name)
    return tensors


def _take(
    tensors: dict[str, Tensor], family: str, component: str, config: Mapping[str, Any], dtype: torch.dtype | None
) -> nn.Module:
    """Build the component and move its weights out of ``tensors`` one by one, so that few are in memory twice.

    The weights are copied, because in the file they have unaligned addresses, where kernels round differently. The same
    weights from a diffusers folder and from a file must give the same image.
    """
    module = architectures.blueprint(config)
    mapped = compvis.component_names(family, component, config)
    weights = unpack(tensors, mapped, {name: parameter.shape for name, parameter in module.state_dict().items()})
    for key in set(mapped.values()):
        if tensors[key].dtype in (torch.int8, torch.uint8):
            raise ModelError(f"{key} is in 8-bit whole numbers, without the scale: use a copy of the file in float16")
        del tensors[key]
    module.load_state_dict({name: weights.pop(name).to(dtype, copy=True) for name in list(weights)}, assign=True)
    return module.eval()


def _surplus(tensors: Mapping[str, Tensor], text_config: Mapping[str, Any]) -> list[str]:
    """Unused tensors under the prefix of a component, except those that pipelines are known not to read."""
    return [name for name in tensors if name.startswith(tuple(_UNREAD)) and not is_unread(name, text_config)]


def is_unread(name: str, text_config: Mapping[str, Any]) -> bool:
    """Whether ``name``, under the prefix of a component, is a tensor that pipelines are known not to read.

    ``text_config`` is that of the first text encoder: SD 2.x's file has one layer more, which is never evaluated.
    """
    last = f"{compvis.OPEN_CLIP}transformer.resblocks.{text_config.get('num_hidden_layers')}."
    return name.startswith(last) or any(
        name.startswith(place) and bool(re.fullmatch(unread, name.removeprefix(place)))
        for place, unread in _UNREAD.items()
    )


def _assembled(family: str, parts: dict[str, Any]) -> DiffusionPipeline:
    if family == "sdxl":
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


# -- tokenizers --------------------------------------------------------------------------------------------------------


def _beside(places: Sequence[Path], folder: str, pad: str) -> CLIPTokenizer | None:
    for place in places:
        if _holds_tokenizer(place / folder):
            return open_tokenizer(place / folder)
        if _holds_tokenizer(place / "tokenizer"):
            return open_tokenizer(place / "tokenizer", pad_token=pad)
    return None


def _cached(pad: str, model_max_length: int) -> CLIPTokenizer | None:
    for name in ("tokenizer.json", "vocab.json"):
        file = try_to_load_from_cache(_CLIP, name)
        if isinstance(file, str) and _holds_tokenizer(Path(file).parent):
            return open_tokenizer(Path(file).parent, pad_token=pad, model_max_length=model_max_length)
    return None


def _holds_tokenizer(folder: Path) -> bool:
    """True if ``folder`` has a vocabulary. Without one, transformers silently makes an empty tokenizer."""
    return (folder / "tokenizer.json").exists() or (
        (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    )


def open_tokenizer(folder: Path, **options: Any) -> CLIPTokenizer:
    """The tokenizer in ``folder``. Raises `ModelError` if it cannot be read."""
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ModelError(f"the tokenizer in {folder} cannot be read ({reason}): copy it again") from None


def _from_open_clip(pad: str, model_max_length: int) -> CLIPTokenizer | None:
    """Make CLIP's tokenizer from open_clip's list of merges. The package is located but not imported."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        return None
    file = Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    if not file.exists():
        return None
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        next(lines)
        merges = [tuple(line.split()) for line, _ in zip(lines, range(_MERGES), strict=False)]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: k for k, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=model_max_length)
