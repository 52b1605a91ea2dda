"""Image towers that are timm's, in models of open_clip: ConvNeXt, EVA and others by name, and the ResNets of OpenAI.

A tower is timm's own model with timm's names: ``visual.trunk.stages.0...`` of open_clip is
``vision_model.trunk.stages.0...`` in an edit. open_clip builds its ResNets itself; timm has the same networks under
other names. timm is needed only when such a model is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

from accelerate import init_empty_weights
from torch import Tensor, nn

from mu.core.errors import MissingDependency, ModelError, quoted, titled

SETTINGS = {
    "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
    "timm_drop_path",
}  # fmt: skip
"""Settings of an image tower of timm in open_clip's config."""
_PROJECTIONS = {"linear": "visual.head.proj.", "mlp": "visual.head.mlp."}
"""Projections behind the trunk, and where open_clip holds them. Without one, the trunk itself projects."""
_ALLOWED: dict[str, Callable[[Any], bool]] = {
    "timm_model_name": lambda value: isinstance(value, str),
    "timm_pool": lambda value: value not in ("abs_attn", "rot_attn"),  # open_clip's own, which no published model has
    "timm_proj": lambda value: value in (None, "", *_PROJECTIONS),
    "image_size": lambda value: isinstance(value, int) and value > 0,
}
_OPENAI = (
    (r"^stem\.conv(\d)\.conv\.", r"conv\1."),
    (r"^stem\.conv(\d)\.bn\.", r"bn\1."),
    (r"\.conv(\d)_\w+\.conv\.", r".conv\1."),
    (r"\.conv(\d)_\w+\.bn\.", r".bn\1."),
    (r"\.shortcut\.conv\.conv\.", r".downsample.0."),
    (r"\.shortcut\.conv\.bn\.", r".downsample.1."),
    (r"^head\.([qkv])\.", r"attnpool.\1_proj."),
    (r"^head\.proj\.", r"attnpool.c_proj."),
    (r"^head\.pos_embed$", r"attnpool.positional_embedding"),
)
"""Parts of timm's names in a ResNet of CLIP, and those of OpenAI."""


class Stage(NamedTuple):
    """A part of a tower: how the names of its parameters begin in the tower, and what it computes of the last one."""

    names: tuple[str, ...]
    run: Callable[[Tensor], Tensor]


class TimmTower(nn.Module):
    """``trunk``, an image tower of timm, in the place of a `CLIPModel`'s own; its output goes into the projection."""

    def __init__(self, trunk: Any):
        super().__init__()
        self.trunk = trunk

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=self.trunk(pixel_values))

    def stages(self) -> list[Stage]:
        """The trunk in parts that run one after the other: the first embeds, the last pools.

        A parameter is of the first stage that it fits. A network other than ConvNeXt, EVA and ResNet is one part, and
        the last does nothing.
        """
        trunk, kind = self.trunk, type(self.trunk).__name__
        if kind == "ConvNeXt":
            blocks = {}
            for k, part in enumerate(trunk.stages):
                blocks[f"stages.{k}.downsample"] = part.downsample
                blocks |= {f"stages.{k}.blocks.{n}": block for n, block in enumerate(part.blocks)}
            first, last = Stage(("trunk.stem.",), trunk.stem), lambda x: trunk.forward_head(trunk.norm_pre(x))
        elif kind == "ByobNet":
            blocks = {f"stages.{k}.{n}": block for k, part in enumerate(trunk.stages) for n, block in enumerate(part)}
            first, last = Stage(("trunk.stem.",), trunk.stem), lambda x: trunk.forward_head(trunk.final_conv(x))
        elif self._turns_alike:
            blocks = {f"blocks.{n}": partial(self._turned, block) for n, block in enumerate(trunk.blocks)}
            names = tuple(
                f"trunk.{name}" for name in ("patch_embed.", "cls_token", "reg_token", "pos_embed", "norm_pre.")
            )
            first, last = Stage(names, self._embedded), lambda x: trunk.forward_head(trunk.norm(x))
        else:
            return [Stage(("",), trunk), Stage((), lambda x: x)]
        return [first, *(Stage((f"trunk.{name}.",), block) for name, block in blocks.items()), Stage(("",), last)]

    def read(self, x: Tensor) -> Tensor:
        """What the last stage reads of its input ``x``: of EVA's tokens the first, if it alone is pooled."""
        return x[:, :1] if self._turns_alike and self.trunk.global_pool == "token" else x

    @property
    def _turns_alike(self) -> bool:
        """Whether the trunk is an EVA that turns the positions alike in all blocks, or in none."""
        trunk = self.trunk
        if type(trunk).__name__ != "Eva" or getattr(trunk, "rope_mixed", False):
            return False
        return trunk.rope is None or hasattr(trunk.rope, "feat_shape")

    def _embedded(self, pixels: Tensor) -> Tensor:
        """Tokens (b, n, width) of EVA before its first block."""
        return self.trunk.norm_pre(self.trunk._pos_embed(self.trunk.patch_embed(pixels))[0])

    def _turned(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block of EVA, whose attention is given the turn of each position, if there is one."""
        rope = self.trunk.rope
        return block(x, rope=None if rope is None else rope.get_embed())


class Built(NamedTuple):
    """A tower without weights, its projection, the side of its images in pixels, and open_clip's ``vision_cfg`` for it.

    ``kind`` says what it is. ``names`` are open_clip's for the tensors of ``vision_model`` and ``visual_projection``.
    """

    tower: TimmTower
    projection: nn.Module
    size: int
    kind: str
    config: Mapping[str, Any]
    names: dict[str, str]


def check_settings(vision: Mapping[str, Any], where: str) -> None:
    """Raise `ModelError` for a setting of ``vision``, open_clip's config of a tower of timm, that is not obeyed."""
    for key, obeyed in _ALLOWED.items():
        if key in vision and not obeyed(vision[key]):
            raise ModelError(f"{where} has the setting {key} = {quoted(vision[key])}, which mu does not read")


def timm_tower(vision: Mapping[str, Any], embedding: int, need: str) -> Built:
    """The tower that open_clip's config ``vision`` describes, whose features have the width ``embedding``."""
    timm, name, size = package(need), vision["timm_model_name"], vision.get("image_size", 224)
    pool, proj = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
    if not timm.is_model(name):
        raise ModelError(f"timm {timm.__version__} has no model {titled(name)}: a newer one may, pip install -U timm")
    with _without_weights(f"timm {timm.__version__}"):
        if proj in _PROJECTIONS:
            trunk = timm.create_model(name)
            trunk.reset_classifier(0, **({"global_pool": pool} if pool else {}))
        else:
            trunk = timm.create_model(name, num_classes=embedding, global_pool=pool)
        width, bias = trunk.num_features, bool(vision.get("timm_proj_bias"))
        projection: nn.Module = nn.Identity()
        if proj == "linear":
            projection = nn.Linear(width, embedding, bias=bias)
        elif proj == "mlp":
            projection = timm.layers.Mlp(width, 2 * embedding, embedding, bias=(True, bias))
    fixed = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if fixed is not None and tuple(fixed) != (size, size):
        raise ModelError(f"its image_size is {size}, and {name} of timm reads images of {fixed[0]} pixels")
    return _built(trunk, projection, size, name, vision, _PROJECTIONS.get(proj, ""))


def resnet_tower(tensors: Mapping[str, Tensor], need: str) -> Built:
    """The tower of OpenAI's ResNets, whose sizes follow from its ``tensors``."""
    timm, pool = package(need), "visual.attnpool."
    try:
        width, depths, embedding = (
            len(tensors["visual.bn3.weight"]),
            resnet_depths(tensors),
            len(tensors[f"{pool}c_proj.bias"]),
        )
        size = 32 * math.isqrt(len(tensors[f"{pool}positional_embedding"]) - 1)
    except KeyError as missing:
        raise ModelError(
            f"the tensor {missing.args[0]} is missing: this is not a complete CLIP with a ResNet"
        ) from None
    with _without_weights(f"timm {timm.__version__}"):
        from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

        blocks = tuple(
            ByoBlockCfg(type="bottle", d=depth, c=4 * width * 2**k, s=1 if k == 0 else 2, br=0.25)
            for k, depth in enumerate(depths)
        )
        config = ByoModelCfg(
            blocks=blocks, stem_chs=(width // 2, width // 2, width), stem_type="", stem_pool="avg2", downsample="avg",
            aa_layer="avg", head_type="attn_abs",
        )  # fmt: skip
        described = {"image_size": size, "layers": depths, "width": width, "patch_size": None}
        trunk = ByobNet(config, num_classes=embedding, img_size=size)
    return _built(trunk, nn.Identity(), size, "a ResNet", described, named=_openai_name)


def resnet_depths(names: Iterable[str]) -> list[int]:
    """The number of blocks in each of the four layers of a ResNet with tensors of these ``names``."""
    blocks = {tuple(name.split(".")[1:3]) for name in names if name.startswith("visual.layer")}
    return [len([layer for layer, _ in blocks if layer == f"layer{k}"]) for k in (1, 2, 3, 4)]


def _openai_name(key: str) -> str:
    key = re.sub(r"^stages\.(\d+)\.", lambda found: f"layer{int(found[1]) + 1}.", key)
    for own, other in _OPENAI:
        key = re.sub(own, other, key)
    return f"visual.{key}"


def _built(
    trunk: Any,
    projection: nn.Module,
    size: int,
    kind: str,
    config: Mapping[str, Any],
    projected: str = "",
    named: Callable[[str], str] = "visual.trunk.{}".format,
) -> Built:
    names = {f"vision_model.trunk.{key}": named(key) for key in trunk.state_dict()}
    names |= {f"visual_projection.{key}": f"{projected}{key}" for key in projection.state_dict()}
    return Built(TimmTower(trunk), projection, size, kind, config, names)


def package(need: str) -> Any:
    """timm. Raises `MissingDependency`, or `ModelError` if it cannot be imported; ``need`` names the model."""
    try:
        import timm
    except ImportError as error:  # timm cannot be imported without torchvision either
        raise MissingDependency(error.name or "timm", "eval", need) from None
    except Exception as error:  # e.g. torchvision with a torch of another version
        raise ModelError(
            f"{need} needs the package 'timm', which is installed but cannot be imported ({error})"
        ) from None
    return timm


@contextmanager
def _without_weights(builder: str) -> Iterator[None]:
    """Parameters made inside are on the meta device. What ``builder`` refuses to build is one `ModelError`."""
    try:
        with init_empty_weights(include_buffers=False):
            yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{builder} cannot build its image tower ({reason})") from None
