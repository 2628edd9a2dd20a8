"""Forecasters by name, those of other packages among them.

::

    entry points "aesz_codec.forecasters" --+
    register(class) ------------------------+--> find("acme-weather:drift") --> Forecaster
    nearest, least-squares, motion ---------+

Those of this package have a number in the format, all others the number `EXTERNAL` and their name, which begins with the package
that a reader has to install.  They are used only where a user names them (`Choice`): a stream that one is used in cannot be
decoded without it.  Format: ``docs/format.md``, section 21.  How to write one: ``docs/time.md``.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from ..errors import InvalidConfigError, ModelInputError, ModelNotFoundError
from ..stream import Reader, Writer, corrupt
from .forecasts import FORECASTERS, Forecaster, Source, Step

if TYPE_CHECKING:
    from . import Floats

__all__ = [
    "EXTERNAL",
    "GROUP",
    "Choice",
    "find",
    "name_of",
    "names",
    "pack_tag",
    "predicted",
    "register",
    "unpack_tag",
    "unregister",
]

EXTERNAL = 254
"""The number in the format of all forecasters of other packages; a name follows it."""

GROUP = "aesz_codec.forecasters"
"""Entry points of this group are forecasters of other packages: ``"acme-weather:drift" = "acme_weather.drift:Drift"``."""

_NONE = "none"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*:[a-z0-9][a-z0-9._-]*")
_MOST_NAME = 100
_registered: dict[str, type[Forecaster]] = {}
_lock = threading.Lock()


def _own() -> dict[str, type[Forecaster]]:
    return {forecaster.name.replace(" ", "-"): forecaster for forecaster in FORECASTERS.values()}


def _is_external(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= _MOST_NAME and _NAME.fullmatch(name) is not None


def register(forecaster: type[Forecaster]) -> str:
    """Make a forecaster of another package known to this process; return its name.

    An installed package declares an entry point of the group `GROUP` instead: then every process has it that reads its archives.

    Raises
    ------
    InvalidConfigError
        If the class is none, its tag is not `EXTERNAL`, or its name is not ``package:forecaster`` (lowercase letters, digits,
        ``._-``).
    """
    wanted = ("tag", "name", "every", "fit", "predict", "pack", "unpack")
    missing = [attribute for attribute in wanted if not hasattr(forecaster, attribute)]
    if not isinstance(forecaster, type) or missing:
        raise InvalidConfigError.at(
            "forecaster",
            found=f"{forecaster!r}, without {', '.join(missing)}" if missing else repr(forecaster),
            expected="a class with all that aesz_codec.predictors.forecasts.Forecaster says",
        )
    if forecaster.tag != EXTERNAL or not _is_external(forecaster.name):
        raise InvalidConfigError.at(
            f"forecaster {forecaster.__name__}",
            found=f"tag {forecaster.tag!r}, name {forecaster.name!r}",
            expected=f"tag {EXTERNAL} and a name such as 'acme-weather:drift' of up to {_MOST_NAME} characters",
            remedy="before the colon stands the package that a reader has to install",
        )
    with _lock:
        _registered[forecaster.name] = forecaster
    return forecaster.name


def name_of(forecaster: type[Forecaster]) -> str:
    """Return the name of a forecaster of this package, or `register` another."""
    own = (name for name, known in _own().items() if known is forecaster)
    return next(own, "") or register(forecaster)


def unregister(name: str) -> None:
    """Forget a registered forecaster; unknown ones are ignored."""
    with _lock:
        _registered.pop(name, None)


def names() -> tuple[str, ...]:
    """Return the names of all forecasters that this process can find."""
    others = {*_registered, *(entry.name for entry in metadata.entry_points(group=GROUP))}
    return (*_own(), *sorted(others))


def find(name: str) -> type[Forecaster]:
    """Return the forecaster with a name: one of this package, registered, or of an entry point.

    Raises
    ------
    ModelNotFoundError
        If there is none; the message says which package to install, and which forecasters are there.
    InvalidConfigError
        If an entry point has this name and is no forecaster.
    """
    known = {**_own(), **_registered}
    if name in known:
        return known[name]
    for entry in metadata.entry_points(group=GROUP, name=name):
        try:
            loaded = entry.load()
        except Exception as error:  # whatever the package raises when it is imported
            raise InvalidConfigError.at(
                f"forecaster {name!r}",
                found=f"{entry.value!r}, which cannot be imported ({type(error).__name__}: {error})",
                expected="an entry point that can",
                remedy=f"mend the package {name.partition(':')[0]!r}",
            ) from error
        if register(loaded) == name:
            return _registered[name]
    raise ModelNotFoundError.at(
        f"forecaster {name!r}",
        found="none of this name",
        expected=f"one of {', '.join(names())}",
        remedy=f"install the package {name.partition(':')[0]!r}, which has it, or call "
        "aesz_codec.predictors.external.register; a stream that uses it cannot be decoded without"
        if _is_external(name)
        else "check the spelling",
    )


@dataclass(frozen=True)
class Choice:
    """Which forecaster the encoder may let frames refer to, as the configuration of a codec has it.

    Attributes
    ----------
    name : str
        ``"none"``, one of this package, or ``package:forecaster``, which is looked for at first use.

    Raises
    ------
    InvalidConfigError
        If it can be no name of a forecaster.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in (_NONE, *_own()) and not _is_external(self.name):
            raise InvalidConfigError.at(
                "forecaster",
                found=repr(self.name)[:100],
                expected=f"one of {', '.join(self.known())}, or 'package:forecaster'",
                remedy="check the spelling",
            )

    @staticmethod
    def known() -> tuple[str, ...]:
        """Return the names that a user can choose from."""
        return _NONE, *names()

    def forecasters(self) -> tuple[type[Forecaster], ...]:
        """Return what may be tried: nothing, or one; see `find`."""
        return () if self.name == _NONE else (find(self.name),)

    def to_json(self) -> dict[str, str]:
        """Return JSON values."""
        return {"name": self.name}


def predicted(forecaster: Forecaster, step: Step, plane: int, source: Source) -> Floats:
    """Return what a forecaster says, which one of another package may get wrong.

    Raises
    ------
    ModelInputError
        If it is no frame.
    """
    reference = forecaster.predict(step, plane, source)
    if forecaster.tag == EXTERNAL:
        frame = source(0)  # the first that is decoded, always
        alike = isinstance(reference, np.ndarray) and (reference.shape, reference.dtype) == (
            frame.shape,
            frame.dtype,
        )
        if not alike:
            found = f"{getattr(reference, 'dtype', type(reference).__name__)}, shape {np.shape(reference)}"
            raise ModelInputError.at(
                f"forecaster {forecaster.name!r}: prediction",
                found=found,
                expected=f"{frame.dtype}, shape {frame.shape}, as the frames have",
                remedy="mend the package that it is from",
            )
        return cast("Floats", np.ascontiguousarray(reference))
    return reference


def pack_tag(forecaster: Forecaster) -> bytes:
    """Return what follows a forecaster's number in the plan: the name of one of another package."""
    if forecaster.tag != EXTERNAL:
        return b""
    name = forecaster.name.encode()
    return Writer().varint(len(name)).raw(name).done()


def unpack_tag(tag: int, plan: Reader) -> Forecaster | None:
    """Return the forecaster of a number, not yet fitted, and read what follows it; None if there is no such number.

    One of a package that is not installed can be described, and raises `ModelNotFoundError` when it is to decode.

    Raises
    ------
    CorruptStreamError
        If what follows is no name.
    """
    if tag != EXTERNAL:
        return FORECASTERS[tag]() if tag in FORECASTERS else None
    length = plan.varint()
    if length > _MOST_NAME:
        raise corrupt("plan", f"a forecaster's name of {length} bytes", f"at most {_MOST_NAME}")
    name = bytes(plan.take(length)).decode("latin-1")
    if not _is_external(name):
        raise corrupt("plan", f"a forecaster called {name!r}", "'package:forecaster'")
    try:
        return find(name)()
    except (ModelNotFoundError, InvalidConfigError):
        return cast("Forecaster", type("Absent", (_Absent,), {"name": name})())


class _Absent:
    """Stands for a forecaster that this process cannot find: all that is asked of one before it has been fitted."""

    tag: ClassVar[int] = EXTERNAL
    name: ClassVar[str]
    every: ClassVar[bool] = False

    @classmethod
    def unpack(cls, reader: Reader) -> Forecaster:
        """Raise what `find` raises, unless the forecaster has come since."""
        return find(cls.name).unpack(reader)
