"""Error-bounded compression of gridded data for NumPy, numcodecs, Zarr and xarray.

`AESZ` is the codec for NumPy, numcodecs and Zarr format 2, `AESZCodec` the one for Zarr format 3, and
`encoding_for` writes the ``encoding`` that ``xarray.Dataset.to_zarr`` takes.  `convert`, `append`, `verify` and
`inspect_store` do what the commands of the same names do.  Errors are in `aesz_codec.errors`.

Importing the package loads nothing else: each name brings in its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors as errors
    from .codec import AESZ as AESZ
    from .conversion import append as append
    from .conversion import convert as convert
    from .encoding import encoding_for as encoding_for
    from .inspection import inspect_store as inspect_store
    from .verification import verify as verify
    from .zarr_codec import AESZCodec as AESZCodec

    __version__: str

__all__ = [
    "AESZ",
    "AESZCodec",
    "__version__",
    "append",
    "convert",
    "encoding_for",
    "errors",
    "inspect_store",
    "verify",
]

_HOME = {
    "AESZ": "codec",
    "AESZCodec": "zarr_codec",
    "append": "conversion",
    "convert": "conversion",
    "encoding_for": "encoding",
    "inspect_store": "inspection",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    value: Any
    if name == "errors":
        return importlib.import_module(".errors", __name__)
    if name == "__version__":
        from importlib.metadata import version

        value = version("aesz-codec")
    elif name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
