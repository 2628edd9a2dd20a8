"""`AESZ`, the codec of NumPy, numcodecs and Zarr format 2, and the configuration that both codecs share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt
from numcodecs.abc import Codec

from . import pipeline, zoo
from .bounds import ErrorBound
from .coordinates import Coordinates
from .errors import InvalidConfigError, ModelNotFoundError, UnsupportedDtypeError
from .foundation import Forecasting, FoundationModel, Reference
from .models import ModelChoice, ModelReference, references
from .packs import Pack
from .predictors import external
from .predictors.forecasts import Forecaster

__all__ = ["AESZ", "CodecConfig"]


@dataclass(frozen=True, repr=False)
class CodecConfig:
    """What a user chooses, valid by construction.  Frozen, hashable, and plain JSON in `to_json`.

    Parameters
    ----------
    error_bound : float or None
        The value that goes with `mode`; None for ``lossless`` only.
    mode : {"abs", "range_rel", "pw_rel", "lossless"}
        See `aesz_codec.bounds`.  ``range_rel`` means the range of the array or chunk that is encoded:
        `encoding_for` turns the range of a whole variable into ``abs``.
    effort : {"fast", "default", "max"}
        Bytes against time; every decoder reads the result of each. ``fast``: static tables, about half of SZ3's speed.
        ``default``: adaptive models, and local least squares where they save much. ``max``: the smallest of all
        predictors with mixed contexts, many times slower in both directions.
    model : str, path, Pack, a sequence of these, or None
        Models that the encoder may use, each chunk at most one and only where it saves bytes: an id, a digest, the file of a
        pack, ``"auto"`` (all installed ones that are for any variable), or None for none.  Becomes a tuple of
        `ModelReference`.  ``fast`` uses those of the kind ``interpolation`` only.
    embed_models : bool
        A pack that does not come with this package is put into the configuration (up to 512 kB), so that who reads the data
        needs nothing else.  False refuses that: only id and digest are written, and the pack must be installed.
    forecaster : str, Forecaster class, FoundationModel or None
        What the frames of a chunk may refer to, where that saves bytes (``fast`` has none). None: what the effort tries.
        ``"none"``: nothing; ``"nearest"``, ``"least-squares"``, ``"motion"``: this alone (``docs/time.md``).
        ``"package:forecaster"``, or its class: one of another package; every chunk that uses it is unreadable without that
        package. A foundation model, its digest or name: it may forecast the states of an array, and every chunk that uses it
        is unreadable without it (``docs/foundation-models.md``); needs `coordinates`.
    coordinates : Coordinates, mapping of its JSON values, or None
        Of the first state of an array (of a chunk, if the codec is used directly).

    Raises
    ------
    InvalidBoundError
        If the bound is not a finite number > 0, or not one that the mode can have.
    InvalidConfigError
        If the mode or the effort does not exist, or with ``embed_models=False`` a model is not installed.
    ModelNotFoundError
        If a model is given by an id or digest that is not installed, or a forecaster by a name that is not known.  One that a
        configuration names is looked for at first use: an array that needs a missing model opens, and raises when it is read.
    ModelKindError, PackError
        If a model is of a kind that no predictor takes, no pack, or too large to be embedded.
    """

    error_bound: float | None = None
    mode: str = "abs"
    effort: str = "default"
    model: ModelChoice = None
    embed_models: InitVar[bool] = True
    forecaster: FoundationModel | Reference | type[Forecaster] | external.Choice | str | None = None
    coordinates: Coordinates | None = None

    def __post_init__(self, embed_models: bool) -> None:
        bound = ErrorBound(self.mode, self.error_bound)
        object.__setattr__(self, "mode", bound.mode)
        object.__setattr__(self, "error_bound", bound.value)
        if self.effort not in pipeline.EFFORTS:
            raise InvalidConfigError.at(
                "effort",
                found=repr(self.effort),
                expected=f"one of {', '.join(pipeline.EFFORTS)}",
                remedy="leave it out for 'default'",
            )
        object.__setattr__(self, "effort", str(self.effort))
        object.__setattr__(self, "model", references(self.model, embed=embed_models))
        if self.forecaster is not None:
            object.__setattr__(self, "forecaster", forecaster_of(self.forecaster))
        if isinstance(self.forecaster, Reference) != (self.coordinates is not None):
            raise InvalidConfigError.at(
                "forecaster, coordinates",
                found="one without the other",
                expected="a foundation model and the coordinates of its states, or neither",
                remedy="aesz_codec.coordinates.Coordinates.of reads them off an array",
            )
        if self.coordinates is not None:
            object.__setattr__(self, "coordinates", Coordinates.from_json(self.coordinates))

    @property
    def bound(self) -> ErrorBound:
        """Mode and value as one object."""
        return ErrorBound(self.mode, self.error_bound)

    @property
    def models(self) -> tuple[ModelReference, ...]:
        """The models, as the configuration has them."""
        return cast("tuple[ModelReference, ...]", self.model)

    def forecasting(self) -> Forecasting | None:
        """Return the foundation model and the coordinates, for `pipeline.encode`.

        Raises
        ------
        ModelNotFoundError, ModelDigestError
            If the model is nowhere.
        """
        if not isinstance(self.forecaster, Reference) or self.coordinates is None:
            return None
        return Forecasting(self.forecaster.model(), self.coordinates)

    def forecasters(self) -> tuple[type[Forecaster], ...] | None:
        """Return what frames may refer to, for `pipeline.encode`; None if the effort decides.

        Raises
        ------
        ModelNotFoundError
            If the forecaster is one of a package that is not installed.
        """
        return self.forecaster.forecasters() if isinstance(self.forecaster, external.Choice) else None

    def packs(self) -> tuple[Pack, ...]:
        """Return the packs of the models.

        Raises
        ------
        ModelNotFoundError, PackError
            If one is nowhere, or what is in the configuration is not it.
        """
        return tuple(reference.pack() for reference in self.models)

    def find_model(self, digest: str) -> Pack:
        """Return the pack of this digest: one of `models`, else one of the zoo; for `pipeline.decode`.

        Raises
        ------
        ModelNotFoundError, PackError
        """
        for reference in self.models:
            if reference.digest == digest:
                return reference.pack()
        return zoo.get(digest)

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values, without the codec's name."""
        config: dict[str, Any] = {
            "error_bound": self.error_bound,
            "mode": self.mode,
            "effort": self.effort,
        }
        if models := [reference.to_json() for reference in self.models]:
            config["models"] = models
        if self.forecaster is not None:
            config["forecaster"] = cast("Reference | external.Choice", self.forecaster).to_json()
        if self.coordinates is not None:
            config["coordinates"] = self.coordinates.to_json()
        return config

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Build from what `to_json` returned; unknown keys are refused, missing ones take their defaults.

        Instead of ``models``, the arguments ``model`` and ``embed_models`` may be there.
        """
        known = (
            "error_bound",
            "mode",
            "effort",
            "models",
            "model",
            "embed_models",
            "forecaster",
            "coordinates",
        )
        unknown = [key for key in config if key not in known]
        if unknown:
            raise InvalidConfigError.at(
                "config",
                found=f"unknown {'keys' if len(unknown) > 1 else 'key'} {', '.join(map(repr, unknown))}",
                expected=f"only {', '.join(known)}",
                remedy="remove it, or install the version of aesz-codec that wrote it",
            )
        if "models" not in config:
            return cls(**config)
        models = config["models"]
        if not isinstance(models, list | tuple) or "model" in config:
            raise InvalidConfigError.at(
                "models",
                found="'model' beside it" if "model" in config else type(models).__name__,
                expected="a list of objects with id, digest and perhaps data, and no 'model'",
            )
        rest = {key: value for key, value in config.items() if key != "models"}
        return cls(**rest, model=[ModelReference.from_json(entry) for entry in models])

    def __repr__(self) -> str:
        parts = [] if self.error_bound is None else [f"error_bound={self.error_bound!r}"]
        parts.append(f"mode={self.mode!r}")
        if self.effort != "default":
            parts.append(f"effort={self.effort!r}")
        ids = [reference.id for reference in self.models]
        if ids:
            parts.append(f"model={(ids[0] if len(ids) == 1 else ids)!r}")
        if self.forecaster is not None:
            parts.append(f"forecaster={cast('Reference | external.Choice', self.forecaster).name!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), (
            *(self.error_bound, self.mode, self.effort, self.model, True),
            *(self.forecaster, self.coordinates),
        )


@dataclass(frozen=True, repr=False)
class AESZ(CodecConfig, Codec):  # type: ignore[misc]  # numcodecs has no types
    """Error-bounded codec for arrays of floats and integers, as numcodecs and Zarr format 2 take it.

    Parameters and errors are those of `CodecConfig`.  Instances are immutable and safe to share between
    threads.

    Examples
    --------
    >>> import numpy as np
    >>> codec = AESZ(error_bound=0.05)
    >>> codec
    AESZ(error_bound=0.05, mode='abs')
    >>> x = np.linspace(250, 300, 1000, dtype="float32").reshape(10, 100)
    >>> stream = codec.encode(x)
    >>> bool(abs(codec.decode(stream) - x).max() <= 0.05)
    True
    """

    codec_id: ClassVar[str] = "aesz"

    def encode(self, buf: npt.ArrayLike) -> bytes:
        """Compress an array into a stream that carries its shape, dtype, memory order and byte order.

        Parameters
        ----------
        buf : array_like
            Any shape, strides and byte order; never written to.  Raw bytes are refused: they have no dtype.

        Returns
        -------
        bytes
            Already decoded and compared with the input: each value is within the bound.

        Raises
        ------
        UnsupportedDtypeError
            If the dtype cannot be coded, or not in this mode.
        ErrorBoundViolation
            If the check failed, which is a bug; nothing is returned.
        """
        if isinstance(buf, bytes | bytearray):
            raise UnsupportedDtypeError.at(
                "buf",
                found=type(buf).__name__,
                expected="an array with a dtype and a shape",
                remedy="put this codec first: no filter that returns bytes may come before it",
            )
        models = self.packs()
        return pipeline.encode(
            np.asarray(buf),
            self.bound,
            effort=self.effort,
            keep_layout=True,
            models=models,
            forecast=self.forecasting(),
            forecasters=self.forecasters(),
        )

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Restore an array from a stream of any configuration.

        Parameters
        ----------
        buf : bytes-like
            One stream; an array of bytes or a Zarr buffer will do.
        out : ndarray or writable buffer, optional
            Where to put the values.  An array of the same shape and type gets them by index, whatever its
            strides; other contiguous memory of the same number of bytes gets the bytes of the array.

        Returns
        -------
        ndarray
            Shape, dtype, byte order and memory order (C or Fortran) of the array that was encoded; `out` if
            given.

        Raises
        ------
        CorruptStreamError, TruncatedStreamError, UnsupportedFormatError
            If `buf` is not a whole stream of a format that this version knows.
        ModelNotFoundError
            If it names a model that is neither in the configuration nor installed.
        InvalidConfigError
            If `out` cannot take the values.
        """
        array = pipeline.decode(as_stream(buf), restore_layout=True, find_model=self.find_model)
        if out is None:
            return array
        _copy_into(array, out)
        return out

    def get_config(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values, with the codec's id."""
        return {"id": self.codec_id, **self.to_json()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from `get_config`'s result, with or without its id.

        Raises
        ------
        InvalidConfigError
            If there is a key that this version does not know.
        """
        return cls.from_json({k: v for k, v in config.items() if (k, v) != ("id", cls.codec_id)})


def forecaster_of(given: Any) -> Reference | external.Choice:
    """Return what a user, or a configuration, means by a forecaster; those that a configuration names need not be there.

    Raises
    ------
    ModelNotFoundError, ModelDigestError, InvalidConfigError
    """
    if isinstance(given, external.Choice):
        return given
    if isinstance(given, Mapping) and given.keys() == {"name"}:
        return external.Choice(given["name"])
    if isinstance(given, type):
        return external.Choice(external.name_of(given))
    if isinstance(given, str) and given in external.Choice.known():
        return external.Choice(given)
    try:
        return Reference.of(given)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"forecaster: found {str(given)[:100]!r}, expected one of {', '.join(external.Choice.known())}, or a {error}"
        ) from None


def as_stream(buf: Any) -> memoryview:
    """View `buf` (bytes-like, byte array or Zarr buffer) as one run of bytes, copying only if it has gaps."""
    if hasattr(buf, "as_numpy_array"):  # a Zarr buffer, which has no buffer protocol
        buf = buf.as_numpy_array()
    view = memoryview(buf)
    if not view.c_contiguous or not view.nbytes:
        view = memoryview(view.tobytes())
    return view.cast("B")


def _copy_into(array: npt.NDArray[Any], out: Any) -> None:
    target = out if isinstance(out, np.ndarray) else np.frombuffer(out, dtype=np.uint8)
    found = f"{'read-only ' if not target.flags.writeable else ''}{target.dtype} of shape {target.shape}"
    if target.flags.writeable:
        if target.shape == array.shape and target.dtype.newbyteorder("=") == array.dtype.newbyteorder("="):
            target[...] = array
            return
        if target.nbytes == array.nbytes and (target.flags.c_contiguous or target.flags.f_contiguous):
            memory = array.reshape(-1, order="F" if not array.flags.c_contiguous else "C")
            target.reshape(-1, order="A").view(np.uint8)[...] = memory.view(np.uint8)
            return
    raise InvalidConfigError.at(
        "out",
        found=found,
        expected=f"writable {array.dtype} of shape {array.shape}, or {array.nbytes} contiguous bytes",
        remedy="leave it out to get a new array",
    )
