"""Every error that this package raises on purpose, all below `AESZError`.

A message names the field, what was found, what was expected and what to do; `AESZError.at` writes it.
The classes keep their text in ``args`` alone, so they survive pickling between Dask workers.
"""

from __future__ import annotations

from typing import Self

__all__ = [
    "AESZError",
    "ConversionError",
    "CorruptPackError",
    "CorruptStreamError",
    "ErrorBoundViolation",
    "InvalidBoundError",
    "InvalidConfigError",
    "InvalidModelError",
    "ModelDigestError",
    "ModelInputError",
    "ModelKindError",
    "ModelNotFoundError",
    "PackConflictError",
    "PackDigestError",
    "PackError",
    "PackSizeError",
    "PredictionMismatchError",
    "TruncatedPackError",
    "TruncatedStreamError",
    "UnstableForecastError",
    "UnsupportedDtypeError",
    "UnsupportedFormatError",
    "UnsupportedModelError",
    "UnsupportedPackError",
    "WeightRangeError",
]


class AESZError(Exception):
    """Base of all errors of this package."""

    @classmethod
    def at(cls, field: str, *, found: str, expected: str, remedy: str = "") -> Self:
        """Build the error with the message ``field: found ..., expected ...; remedy``.

        Parameters
        ----------
        field : str
            The argument, config key, variable or stream field at fault.
        found, expected : str
            What was there and what would have been right.
        remedy : str, optional
            What the user can do about it.

        Examples
        --------
        >>> InvalidBoundError.at("error_bound", found="-1.0", expected="a number > 0", remedy="drop the sign")
        InvalidBoundError('error_bound: found -1.0, expected a number > 0; drop the sign')
        """
        message = f"{field}: found {found}, expected {expected}"
        return cls(f"{message}; {remedy}" if remedy else message)


class InvalidConfigError(AESZError, ValueError):
    """An option, a key or a name that does not exist, or options that exclude each other."""


class InvalidBoundError(AESZError, ValueError):
    """An error bound that is not a finite number > 0, or that its mode cannot have."""


class UnsupportedDtypeError(AESZError, TypeError):
    """An array whose dtype the codec, or the mode of its bound, does not handle."""


class CorruptStreamError(AESZError):
    """Bytes that are no valid stream: a checksum, a length or a value in them is wrong."""


class TruncatedStreamError(CorruptStreamError):
    """A stream that ends before its own header says that it does."""


class UnsupportedFormatError(AESZError):
    """A stream of a newer format, or with a section that this version does not know."""


class ModelNotFoundError(AESZError):
    """A model that a config or a stream names is not installed here."""


class ModelKindError(AESZError, ValueError):
    """A pack that is there, but of a kind that this version, or the method of a stream, cannot use as a model."""


class InvalidModelError(AESZError, ValueError):
    """A network whose description or tensors are wrong, that could overflow, or that evaluates to other integers than it says."""


class UnsupportedModelError(AESZError):
    """A network with a layer or an arithmetic that this version does not know."""


class ModelInputError(AESZError, ValueError):
    """What a model cannot take: a dtype, a shape, a value outside of the declared range; a channel, level or time step."""


class ModelDigestError(AESZError):
    """A foundation model that is not the one that was asked for: another checkpoint, configuration or version of its code."""


class UnstableForecastError(AESZError):
    """A foundation model whose forecasts differ too much between two ways of computing them to be reproduced by a decoder."""


class PredictionMismatchError(AESZError):
    """A forecast that this machine could not reproduce; the blocks are named, and nothing was returned."""


class PackError(AESZError):
    """A model pack that cannot be read, written, added or embedded."""


class CorruptPackError(PackError, CorruptStreamError):
    """Bytes that are no valid pack: a checksum, a length, the manifest or a value in them is wrong."""


class TruncatedPackError(CorruptPackError, TruncatedStreamError):
    """A pack that ends before its own header says that it does."""


class UnsupportedPackError(PackError, UnsupportedFormatError):
    """A pack of a newer format, of a kind or in an arithmetic that this version does not know."""


class WeightRangeError(CorruptPackError):
    """A weight outside the range that its tensor declares, or its dtype has."""


class PackDigestError(PackError):
    """A pack whose content is not the one that was asked for."""


class PackSizeError(PackError):
    """A pack, or a tensor of one, above a limit."""


class PackConflictError(PackError):
    """Another pack with the same id but other content is there already."""


class ErrorBoundViolation(AESZError):
    """The encoder's own check failed twice: a bug in this package. Nothing was returned."""


class ConversionError(AESZError):
    """A conversion, verification or inspection of whole files that cannot go on."""
