"""Options for loading a diffusion model that its files do not state. Settings hold them, so torch is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from mu.core.config import BaseConfig
from mu.core.errors import ConfigError, quoted, titled

if TYPE_CHECKING:
    from mu.models.parameters import EditableModel


class LoadingConfig(BaseConfig):
    """Options of `mu.models.load` that change the numbers of a diffusion model."""

    clip_skip: int = Field(1, ge=1)
    """Use the text encoder's hidden state this many layers from the end; 1 is the last layer."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """What the UNet predicts. Default: as the model states; single SD 2.x files do not and load as v_prediction."""

    def check(self, model: EditableModel) -> None:
        """Raise `ConfigError` if ``model`` was loaded with other options, or is not a diffusion model."""
        for option in sorted(self.model_fields_set):
            wanted, found = getattr(self, option), getattr(model, "loading", {}).get(option)
            if wanted is not None and found is None:
                raise ConfigError(
                    f"loading.{option} is for diffusion models, and {titled(model.name)} is not one: leave it out"
                )
            if wanted not in (None, found):
                raise ConfigError(
                    f"loading.{option} is {wanted}, but {titled(model.name)} was loaded with {found}: leave one out"
                )


class FoundOn(Protocol):
    """A result found on a base model, with the options that loaded the base: `EditInfo` or `BankState`."""

    @property
    def base(self) -> str: ...
    @property
    def loading(self) -> Mapping[str, Any]: ...


def base_of(model: str | None, found: Iterable[FoundOn]) -> str:
    """The base model to load: ``model``, else the one that the results in ``found`` state, else ``canvas``.

    A result that states no base (made by another tool) is checked by its shapes when it is put on. Raises
    `ConfigError` if several bases are stated.
    """
    if model is not None:
        return model
    bases = list(dict.fromkeys(each.base for each in found if each.base))
    if len(bases) > 1:
        raise ConfigError(f"the edits were found on {' and '.join(map(quoted, bases))}: choose one with --model")
    return bases[0] if bases else "canvas"


def loading(name: str, found: Iterable[FoundOn], **given: Any) -> dict[str, Any]:
    """Options for `mu.models.load` of ``name``: those ``given``, and for None the value recorded with the same base.

    Raises `ConfigError` if the recorded values differ.
    """
    options = {option: value for option, value in given.items() if value is not None}
    notes = [each.loading for each in found if each.base == name]
    for option in given.keys() - options.keys():
        noted = {getattr(LoadingConfig.parse({option: note[option]}), option) for note in notes if option in note}
        if len(noted) > 1:
            flag, values = f"--{option.replace('_', '-')}", " and ".join(sorted(map(str, noted)))
            raise ConfigError(f"the edits were found with {option} {values}: choose one with {flag}")
        if noted:
            options[option] = noted.pop()
    return options
