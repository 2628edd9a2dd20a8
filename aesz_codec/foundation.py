"""Foundation models: what the codec asks of a float forecaster, and where a decoder finds it.  ``docs/foundation-models.md``.

::

    register(model) ------------------+
                                      +--> get(digest) --> FoundationModel.step(states, coordinates) --> next state
    AESZ_FOUNDATION: TOML files ------+

A foundation model (GraphCast, Aurora, CRA5) forecasts the next state of the atmosphere from the last ones, in floating point,
with gigabytes of weights.  It cannot be embedded in an archive, and gives other last bits on other machines:
`aesz_codec.predictors.verified` makes integers of its forecasts and checks each block of them.  Here is only how it is named
and found: by the SHA-256 of all that decides its numbers.  An archive that uses one is unreadable without it, until
``aesz-codec materialise`` has rewritten it.

Models come, in this order, from

1. `register`: objects that this process made, for example by `aesz_codec.adapters`;
2. the TOML files in the environment variable ``AESZ_FOUNDATION``, or, if that is not set,
   ``~/.config/aesz-codec/foundation.toml``.  Each table of such a file is a model::

       [aurora]
       adapter = "aurora"                    # or "stepping", or "module:function" of your own
       digest = "3f..."                      # optional: refused if it is another model
       checkpoint = "/data/aurora-0.25-pretrained.ckpt"
       model = "AuroraPretrained"            # this and the rest: arguments of the adapter

A stream can only name a digest; which code that runs is the user's choice alone.  Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from .coordinates import Coordinates, split_channel
from .errors import AESZError, InvalidConfigError, ModelDigestError, ModelInputError, ModelNotFoundError
from .packs import is_digest

__all__ = [
    "ENVIRONMENT",
    "Forecasting",
    "FoundationModel",
    "Reference",
    "digest_of",
    "file_digest",
    "find",
    "get",
    "register",
    "registered",
    "unregister",
]

ENVIRONMENT = "AESZ_FOUNDATION"
_ADAPTERS = {
    "aurora": "aesz_codec.adapters.aurora:load",
    "stepping": "aesz_codec.adapters.stepping:load",
}
_MATERIALISE = (
    "register it (aesz_codec.foundation.register), or describe it in a TOML file (docs/foundation-models.md); where the model "
    "still runs, 'aesz-codec materialise STORE OUT' writes a copy that needs none"
)


@runtime_checkable
class FoundationModel(Protocol):
    """A float forecaster of whole states; may be asked by many threads, and sees to its own locks.

    Attributes
    ----------
    name : str
        For messages.
    digest : str
        64 hexadecimal digits: the SHA-256 of the checkpoint and of whatever else decides the numbers (`digest_of`).
    channels : tuple of str
        Names that a channel may have, without ``@level``; empty if the model takes any.
    levels : tuple of float
        Levels (hPa) that a channel may have; empty if it takes any.
    history : int
        How many states a forecast needs; 0 for a codec of single states, which has `latents` instead.
    latents : int
        How many integers describe a state, for models that decode instead of forecasting; else 0.
    """

    name: str
    digest: str
    channels: tuple[str, ...]
    levels: tuple[float, ...]
    history: int
    latents: int

    def check(self, coordinates: Coordinates, grid: tuple[int, int]) -> None:
        """Refuse states that the model is not for.

        Parameters
        ----------
        coordinates : Coordinates
        grid : (int, int)
            Numbers of latitudes and longitudes.

        Raises
        ------
        ModelInputError
            If there is a channel or level that the model does not know, one is missing, or the grid or the time step is none of
            its own.
        """

    def step(
        self, states: npt.NDArray[Any], coordinates: Coordinates, *, other: bool = False
    ) -> npt.NDArray[np.float32]:
        """Return the next state.

        Parameters
        ----------
        states : float32, shape (history, channel, latitude, longitude)
            The last states, finite; for a model with latents these, int32, shape (latents,).
        coordinates : Coordinates
            Of the states; ``start`` is the time of the state that is asked for.
        other : bool
            Compute the same in other numerics (other kernels, threads or precision, inputs off by a rounding): an encoder takes
            the difference for what another machine may differ by.

        Returns
        -------
        float32, shape (channel, latitude, longitude)
        """

    def describe(self, state: npt.NDArray[np.float32], coordinates: Coordinates) -> npt.NDArray[np.int32]:
        """Return the latents of a state, shape (latents,); only for models that have some."""


@dataclass(frozen=True)
class Forecasting:
    """What an encoder needs to let a model forecast the states of an array.

    Attributes
    ----------
    model : FoundationModel
    coordinates : Coordinates
        Of the first state.
    """

    model: FoundationModel
    coordinates: Coordinates


@dataclass(frozen=True)
class Reference:
    """A foundation model as the configuration of a codec has it; looked for at first use.

    Attributes
    ----------
    name, digest : str

    Raises
    ------
    InvalidConfigError
        If they are none.
    """

    name: str
    digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.digest, str) or not is_digest(self.digest):
            raise InvalidConfigError.at(
                "forecaster",
                found=repr((self.name, self.digest))[:120],
                expected="a name, and a digest of 64 hexadecimal digits",
            )

    @classmethod
    def of(cls, choice: Any) -> Self:
        """Refer to a model, its digest or name (which must be found), or what `to_json` returned (which need not).

        Raises
        ------
        ModelNotFoundError, ModelDigestError, InvalidConfigError
        """
        if isinstance(choice, Reference):
            return cls(choice.name, choice.digest)
        if isinstance(choice, Mapping):
            if choice.keys() != {"name", "digest"}:
                raise InvalidConfigError.at(
                    "forecaster",
                    found=f"keys {', '.join(map(str, choice))}"[:100],
                    expected="name and digest",
                )
            return cls(**choice)
        model = find(choice)
        return cls(model.name, model.digest)

    def model(self) -> FoundationModel:
        """Return the model; see `get`."""
        return get(self.digest)

    def to_json(self) -> dict[str, str]:
        """Return JSON values."""
        return {"name": self.name, "digest": self.digest}


_lock = threading.RLock()
_registered: dict[str, FoundationModel] = {}
_loaded: dict[tuple[str, str, str], FoundationModel] = {}  # by file, its content and the table
_file_digests: dict[tuple[str, int, int, int], str] = {}


def register(model: FoundationModel) -> str:
    """Make a model known to this process; return its digest, by which streams name it.

    Raises
    ------
    InvalidConfigError
        If the object is none, or its digest is no digest.
    """
    if not isinstance(model, FoundationModel):
        missing = [name for name in _PROTOCOL if not hasattr(model, name)]
        raise InvalidConfigError.at(
            "model",
            found=f"{type(model).__name__} without {', '.join(missing)}",
            expected="a FoundationModel",
            remedy="wrap a function 'state -> next state' in aesz_codec.adapters.stepping.Stepping",
        )
    if not isinstance(model.digest, str) or not is_digest(model.digest):
        raise InvalidConfigError.at(
            "model.digest", found=repr(model.digest)[:100], expected="64 hexadecimal digits: see digest_of"
        )
    with _lock:
        _registered[model.digest] = model
    return model.digest


_PROTOCOL = ("name", "digest", "channels", "levels", "history", "latents", "check", "step", "describe")


def unregister(digest: str) -> None:
    """Forget a registered model, and its memory; unknown ones are ignored."""
    with _lock:
        _registered.pop(digest, None)


def registered() -> tuple[FoundationModel, ...]:
    """Return the models that `register` knows."""
    with _lock:
        return tuple(_registered.values())


def get(digest: str) -> FoundationModel:
    """Return the model with a digest.

    Raises
    ------
    ModelNotFoundError
        If there is none; the message says where it was looked for, what could not be loaded, and what to do.
    ModelDigestError
        If a file gives this digest to another model.
    """
    with _lock:
        if digest in _registered:
            return _registered[digest]
    problems: list[str] = []
    others: list[str] = []
    last = None
    for table in sorted(_tables(), key=lambda table: table.digest != digest):
        found = table.digest
        if found in (digest, None):
            try:
                model = table.model()
            except ModelDigestError:
                raise
            except AESZError as error:
                problems.append(f"{table.name} of {table.path}: {error}")
                last = error
                continue
            if model.digest == digest:
                return model
            found = model.digest
        others.append(f"{table.name} of {table.path} ({found})")
    raise _not_found(f"with the digest {digest}", problems, others) from last


def find(choice: str | FoundationModel) -> FoundationModel:
    """Return the model that a user means: itself, a digest, or the name of one registered or of a table.

    Raises
    ------
    ModelNotFoundError, ModelDigestError, InvalidConfigError
    """
    if not isinstance(choice, str):
        register(choice)
        return choice
    if is_digest(choice):
        return get(choice)
    for model in registered():
        if model.name == choice:
            return model
    for table in _tables():
        if table.name == choice:
            return table.model()
    raise _not_found(f"with the name {choice!r}", [])


def _not_found(what: str, problems: Sequence[str], others: Sequence[str] = ()) -> ModelNotFoundError:
    places = ", ".join(map(str, _files()))
    broken = f"; could not be loaded: {'; '.join(problems)}" if problems else ""
    if others:
        broken += f"; of another digest, so another checkpoint, configuration or version: {', '.join(others)}"
    return ModelNotFoundError.at(
        "foundation model",
        found=f"none {what}",
        expected=f"one registered in this process, or in {places} ({ENVIRONMENT}){broken}",
        remedy=_MATERIALISE,
    )


# Identity


def digest_of(kind: str, *, files: Sequence[str | os.PathLike[str]] = (), **decisive: Any) -> str:
    """Return the SHA-256 of what decides the numbers of a model.

    Parameters
    ----------
    kind : str
        Name of the adapter.
    files : sequence of path
        Checkpoints and other files; their content counts, not their names.
    **decisive
        JSON values, or arrays: version of the code, configuration, fields.

    Raises
    ------
    ModelNotFoundError
        If a file is not there.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            content = value.astype(value.dtype.newbyteorder("<")).tobytes()
            return [value.dtype.str[1:], list(value.shape), hashlib.sha256(content).hexdigest()]
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    content = {"kind": kind, "files": [file_digest(path) for path in files], **plain(decisive)}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | os.PathLike[str], what: str = "checkpoint", expected: str | None = None) -> str:
    """Return the SHA-256 of a file, read once for each state of it.

    Parameters
    ----------
    what : str
        What it is, for messages.
    expected : str, optional
        What it must be.

    Raises
    ------
    ModelNotFoundError
        If it is not there; the message says which, with which digest, and where it was looked for.
    ModelDigestError
        If it is another one.
    """
    path = Path(path).expanduser().absolute()
    try:
        state = path.stat()
        key = (str(path), state.st_mtime_ns, state.st_size, state.st_ino)
        with _lock:
            found = _file_digests.get(key)
        if found is None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            with _lock:
                _file_digests[key] = found
    except OSError as error:
        there = (
            ", ".join(sorted(p.name for p in path.parent.glob("*"))[:8])
            if path.parent.is_dir()
            else "no such folder"
        )
        raise ModelNotFoundError.at(
            what,
            found=f"no readable file {path.name} in {path.parent} ({error.strerror or error}; there: {there or 'nothing'})",
            expected="the file" + (f" with the SHA-256 {expected}" if expected else ""),
            remedy="copy it there, or give the path where it lies; it is never downloaded",
        ) from None
    if expected is not None and found != expected:
        raise ModelDigestError.at(
            f"{what} {path}",
            found=f"SHA-256 {found}",
            expected=expected,
            remedy="give the file that the archive was written with",
        )
    return found


# The user's files


@dataclass(frozen=True)
class _Table:
    """One model of a TOML file."""

    name: str
    path: Path
    fields: Mapping[str, Any]

    @property
    def digest(self) -> str | None:
        """What the file says."""
        return self.fields.get("digest")

    def model(self) -> FoundationModel:
        """Load the model, once per process; see `get` for errors."""
        arguments = {key: value for key, value in self.fields.items() if key not in ("adapter", "digest")}
        key = (str(self.path), self.name, json.dumps(dict(self.fields), sort_keys=True, default=str))
        with _lock:
            if key in _loaded:
                return _loaded[key]
            adapter = self.fields.get("adapter")
            place = _ADAPTERS.get(str(adapter), adapter)
            module, separator, function = str(place).partition(":")
            field = f"{self.path}: {self.name}"
            if not isinstance(adapter, str) or not separator:
                raise InvalidConfigError.at(
                    f"{field}.adapter",
                    found=repr(adapter),
                    expected=f"{', '.join(_ADAPTERS)}, or 'module:function'",
                )
            try:
                load = getattr(importlib.import_module(module), function)
            except (ImportError, AttributeError) as error:
                raise InvalidConfigError.at(
                    f"{field}.adapter",
                    found=f"{adapter!r} ({error})",
                    expected="a function that can be imported",
                ) from error
            try:
                model = load(name=self.name, **arguments)
            except TypeError as error:
                raise InvalidConfigError.at(
                    field, found=str(error), expected=f"the arguments of {place}", remedy="mend the table"
                ) from error
            if not isinstance(model, FoundationModel):
                raise InvalidConfigError.at(field, found=type(model).__name__, expected="a FoundationModel")
            if self.digest not in (None, model.digest):
                raise ModelDigestError.at(
                    f"foundation model {self.name!r} of {self.path}",
                    found=f"digest {model.digest}",
                    expected=f"{self.digest}",
                    remedy="the checkpoint, the configuration or the version of the package is another: give those that the "
                    "archive was written with",
                )
            _loaded[key] = model
            return model


def _files() -> list[Path]:
    text = os.environ.get(ENVIRONMENT)
    if text is None:
        return [Path.home() / ".config" / "aesz-codec" / "foundation.toml"]
    return [Path(part).expanduser() for part in text.split(os.pathsep) if part]


def _tables() -> Iterator[_Table]:
    for path in _files():
        try:
            content = tomllib.loads(path.read_text())
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidConfigError.at(
                str(path), found=str(error), expected="a TOML file with a table for each model"
            ) from None
        for name, fields in content.items():
            if not isinstance(fields, dict):
                raise InvalidConfigError.at(f"{path}: {name}", found=repr(fields)[:80], expected="a table")
            digest = fields.get("digest")
            if digest is not None and not (isinstance(digest, str) and is_digest(digest)):
                raise InvalidConfigError.at(
                    f"{path}: {name}.digest", found=repr(digest)[:80], expected="64 hexadecimal digits"
                )
            yield _Table(name, path, fields)


def check_channels(model: FoundationModel, coordinates: Coordinates) -> None:
    """Refuse channels that a model does not know; for the ``check`` of adapters.

    Raises
    ------
    ModelInputError
    """
    for channel in coordinates.channels:
        name, level = split_channel(channel)
        known_level = level is None or not model.levels or level in model.levels
        if (model.channels and name not in model.channels) or not known_level:
            levels = f", levels {', '.join(f'{x:g}' for x in model.levels)}" if model.levels else ""
            raise ModelInputError.at(
                f"channels of {model.name}",
                found=repr(channel),
                expected=f"{', '.join(model.channels) or 'any name'}{levels}",
                remedy="rename the channels as the model calls them, as in 't@850', or leave this one out",
            )
