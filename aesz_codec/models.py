"""How a user names models, and how the configuration of a codec carries them.

::

    id, digest, file, Pack, "auto" --references--> ModelReference --to_json--> {"id", "digest", "data"?}
                                                        |
                                                        +--pack()--> Pack, from the data or from the zoo

A pack that does not come with this package travels in the configuration, which lies in the metadata of a Zarr array: who opens
the array needs nothing else.  ``docs/packs.md``, section 7.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

from . import zoo
from .errors import InvalidConfigError, ModelNotFoundError, PackDigestError, PackSizeError
from .packs import Pack, is_digest
from .predictors import LEARNED, SIDES, prepare

__all__ = ["ModelChoice", "ModelReference", "references"]

_MOST_DIGITS = 4 * -(-zoo.MAX_EMBEDDED // 3)  # of base64


@dataclass(frozen=True)
class ModelReference:
    """A model as a configuration has it; the pack is looked for at first use.

    Attributes
    ----------
    id : str
    digest : str
        64 hexadecimal digits.
    data : str or None
        The pack as base64, if it travels in the configuration.
    """

    id: str
    digest: str
    data: str | None = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise InvalidConfigError.at("models.id", found=repr(self.id), expected="the id of a model")
        if not isinstance(self.digest, str) or not is_digest(self.digest):
            raise InvalidConfigError.at(
                "models.digest", found=repr(self.digest)[:100], expected="64 hexadecimal digits"
            )
        if self.data is not None and not isinstance(self.data, str):
            raise InvalidConfigError.at("models.data", found=type(self.data).__name__, expected="base64")
        if self.data is not None and len(self.data) > _MOST_DIGITS:
            raise PackSizeError.at(
                "models.data",
                found=f"{len(self.data)} digits of base64",
                expected=f"at most {_MOST_DIGITS}",
                remedy="install the pack where the data are read, and do not embed it",
            )

    def pack(self) -> Pack:
        """Return the pack: that in `data`, else the one in the zoo.

        Raises
        ------
        ModelNotFoundError
            If it is in none of the places searched; the message says how to add it.
        PackError
            If `data` is no pack, or another one.
        """
        if self.data is not None:
            return _embedded(self.data, self.digest)
        try:
            return zoo.get(self.digest)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"model {self.id!r}: {error}") from None

    def to_json(self) -> dict[str, str]:
        """Return what a configuration holds."""
        entry = {"id": self.id, "digest": self.digest}
        return entry if self.data is None else {**entry, "data": self.data}

    @classmethod
    def from_json(cls, entry: Any) -> Self:
        """Build from what `to_json` returned.

        Raises
        ------
        InvalidConfigError, PackSizeError
            If a key is missing or unknown, or a value is none that it can have.
        """
        if not isinstance(entry, Mapping) or not {"id", "digest"} <= entry.keys() <= {"id", "digest", "data"}:
            found = f"keys {', '.join(map(str, entry))}" if isinstance(entry, Mapping) else repr(entry)
            raise InvalidConfigError.at(
                "models", found=found[:100], expected="objects with id, digest and perhaps data"
            )
        return cls(**entry)

    @classmethod
    def of(cls, pack: Pack, *, embed: bool = True) -> Self:
        """Refer to a pack; one that is not built in brings its bytes along.

        Raises
        ------
        ModelKindError, InvalidModelError, UnsupportedModelError
            If no predictor takes this kind of pack, or its networks are not sound.
        PackSizeError
            If it would have to bring more than 512 kB along.
        InvalidConfigError
            If it would have to and `embed` is false, and it is not installed either.
        """
        prepare(pack)
        home = zoo.home(pack)
        if home == "built-in":
            return cls(pack.id, pack.digest)
        if embed:
            return cls(pack.id, pack.digest, zoo.embedded(pack))
        if home is None:
            raise InvalidConfigError.at(
                "embed_models",
                found=f"False, and the model {pack.id!r}, which is not installed",
                expected="an installed model: nobody could decode what is written",
                remedy="run 'aesz-codec models add FILE', or let it be embedded",
            )
        return cls(pack.id, pack.digest)


ModelChoice: TypeAlias = (
    "str | Path | Pack | ModelReference | Sequence[str | Path | Pack | ModelReference] | None"
)


def references(model: Any, *, embed: bool = True) -> tuple[ModelReference, ...]:
    """Turn what a user gave into references.

    Parameters
    ----------
    model : str, path, Pack, ModelReference, a sequence of these, or None
        A string is an id, a digest, or a file (it ends with ``.aeszpack``); ``"auto"`` are all installed models that are for
        any variable.
    embed : bool
        See `ModelReference.of`.

    Raises
    ------
    ModelNotFoundError
        If there is no model with this id or digest.
    InvalidConfigError, ModelKindError, PackError
        If it is nothing of the above, no pack, or none that can be used or embedded.
    """
    if model is None:
        return ()
    found: dict[str, ModelReference] = {}
    for item in model if isinstance(model, list | tuple) else (model,):
        if isinstance(item, str) and item == "auto":
            packs = [entry.pack for entry in usable({})]
        elif isinstance(item, ModelReference):
            found.setdefault(item.digest, item)
            continue
        elif isinstance(item, Pack):
            packs = [item]
        elif isinstance(item, Path) or (isinstance(item, str) and item.endswith(".aeszpack")):
            packs = [Pack.from_file(item)]
        elif isinstance(item, str):
            packs = [zoo.get(item)]
        else:
            raise InvalidConfigError.at(
                "model", found=repr(item)[:100], expected="an id, a digest, a file, a Pack, 'auto' or None"
            )
        for pack in packs:
            found.setdefault(pack.digest, ModelReference.of(pack, embed=embed))
    return tuple(found.values())


def usable(attributes: Mapping[str, Any], grid: str | None = None) -> list[zoo.Entry]:
    """Return the installed packs that `zoo.find` has for a variable and that some predictor takes, best first."""
    found = zoo.find(attributes, grid)
    return [entry for entry in found if entry.kind in (*LEARNED, *SIDES) and zoo.home(entry.pack) is not None]


@functools.lru_cache(64)
def _embedded(data: str, digest: str) -> Pack:
    pack = zoo.embed(data)
    if pack.digest != digest:
        raise PackDigestError.at(
            f"model {pack.id!r} in the configuration",
            found=f"digest {pack.digest}",
            expected=digest,
            remedy="the configuration is damaged",
        )
    return pack
