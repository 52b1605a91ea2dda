"""The two sets of captioned images that methods on CLIP unlearn with: those of the concept, and those of everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from PIL.Image import Image
from pydantic import Field

from mu.core.concept import Concept, folded
from mu.core.config import BaseConfig
from mu.core.errors import ConfigError, DataError
from mu.data.pairs import Captioned, open_pairs

FORGET_SEED, RETAIN_SEED = 1, 2
PLACEHOLDER = "{concept}"


class ForgetSet(BaseConfig):
    forget: str = "data/tar_files/{concept}.tar"
    """Images with captions of the concept: web shards, a folder (see `mu.data.pairs.open_pairs`), or ``canvas``. ``{concept}``
    stands for the concept as `mu data forget-set` names its file, ``Elon_Musk``. Where captions name the concept only those pairs are taken."""
    n_forget: int = Field(500, ge=1)
    """At most so many forget pairs of each concept."""
    caption: Literal["own", "concept"] = "own"
    """``concept`` puts the concept's name in place of every forget caption, as the released Hugging Face programs do."""


class RetainSet(BaseConfig):
    retain: str = "data/laion/laion400m/00000.tar"
    """Pairs of everything else, whose loss should stay: web shards, a folder, or ``canvas``."""
    n_retain: int = Field(8000, ge=2)
    """At most so many retain pairs."""


class BothSets(RetainSet, ForgetSet):
    """Pairs to forget and pairs to retain."""


@dataclass(frozen=True)
class Recaptioned:
    """A pair with another caption."""

    of: Captioned
    caption: str

    def image(self) -> Image:
        return self.of.image()


def forget_pairs(data: ForgetSet, concept: str, seed: int) -> Sequence[Captioned]:
    """Pairs of ``concept``. `DataError` where no caption names it or there are fewer than two, and `ConfigError` for what the canvas world has not."""
    pairs = SOURCES.get(data.forget, FILES).forget(data, concept, seed)
    if len(pairs) < 2:
        raise DataError(
            f"the forget set of {concept!r} has {len(pairs)} pair: its gradient would be that of one picture, give more"
        )
    return [Recaptioned(pair, concept) for pair in pairs] if data.caption == "concept" else pairs


def forget_source(data: ForgetSet, concept: str) -> str:
    """``data.forget`` with the placeholder filled in."""
    return data.forget.replace(PLACEHOLDER, Concept(concept).file_stem) if PLACEHOLDER in data.forget else data.forget


def retain_pairs(data: RetainSet, seed: int) -> Sequence[Captioned]:
    """The same for every concept."""
    return SOURCES.get(data.retain, FILES).retain(data, seed)


def class_of(concept: str, classes: Sequence[str]) -> int | None:
    """The class that ``concept`` names, case and underscores aside; "neon style" names the class "neon"."""
    names = [folded(name) for name in classes]
    wanted = folded(concept)
    return next((names.index(each) for each in (wanted, wanted.removesuffix(" style")) if each in names), None)


class Source(NamedTuple):
    """How pairs of a concept are opened, and how those of everything else."""

    forget: Callable[[ForgetSet, str, int], Sequence[Captioned]]
    retain: Callable[[RetainSet, int], Sequence[Captioned]]


def _read_of(data: ForgetSet, concept: str, _: int) -> Sequence[Captioned]:
    source = forget_source(data, concept)
    pairs = open_pairs(source, naming=concept, limit=data.n_forget)
    if not pairs and data.caption == "own":
        raise DataError(f"no caption of {source} names {concept!r}: set data.caption=concept to give all of them that name")
    return pairs or open_pairs(source, limit=data.n_forget)


def _read(data: RetainSet, _: int) -> Sequence[Captioned]:
    return open_pairs(data.retain, limit=data.n_retain)


def _rendered_of(data: ForgetSet, concept: str, seed: int) -> Sequence[Captioned]:
    from mu.data.canvas import rendered_pairs

    return rendered_pairs(data.n_forget, seed * 10 + FORGET_SEED, _canvas_class(concept))


def _rendered(data: RetainSet, seed: int) -> Sequence[Captioned]:
    from mu.data.canvas import rendered_pairs

    return rendered_pairs(data.n_retain, seed * 10 + RETAIN_SEED)


FILES = Source(_read_of, _read)
SOURCES = {"canvas": Source(_rendered_of, _rendered)}
"""By the name that settings give; any other name is a place of files."""


def _canvas_class(concept: str) -> str:
    """The style, object or person that ``concept`` names, as it is spelt in captions."""
    from mu.data import canvas as world

    for classes in (world.STYLES, world.OBJECTS, world.IDENTITIES):
        label = class_of(concept, classes)
        if label is not None:
            return classes[label]
    raise ConfigError(f"{concept!r} is no style, object or person of the canvas world: name one, or set data.forget")
