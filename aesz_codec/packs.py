"""Model packs: a manifest and named integer tensors in one file.  ``docs/packs.md``.

A pack is identified by the SHA-256 of its content (`Pack.digest`), which does not depend on how its weights are
coded.  `Pack` reads; `aesz_codec.train.packing` writes; `aesz_codec.zoo` finds.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import zstandard

from . import _core
from .errors import (
    CorruptPackError,
    CorruptStreamError,
    PackDigestError,
    PackError,
    PackSizeError,
    TruncatedPackError,
    TruncatedStreamError,
    UnsupportedPackError,
    WeightRangeError,
)
from .stream import Reader, Writer

__all__ = ["ARITHMETICS", "KINDS", "Coding", "Pack", "content_digest", "plain"]

MAGIC = b"AEPK"
FORMAT_VERSION = (1, 0)
KINDS = ("interpolation", "autoencoder", "basis", "forecaster", "cycle", "contexts")
ARITHMETICS = ("INT-1",)
DTYPES = {name: np.dtype(name) for name in ("int8", "int16", "int32", "uint8")}
MAX_BYTES = 1 << 22  # of a file
MAX_VALUES = 1 << 24  # in all tensors together
MAX_TENSORS = 4095
MAX_AXES = 5
MAX_MANIFEST = 1 << 18  # bytes, expanded
MAX_DEPTH = 32
ZSTD_LEVEL = 19
_MAX_WINDOW = 1 << 23
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,99}")
_HEX = re.compile(r"[0-9a-f]+")
_VARIABLE_KEYS = ("level", "short_name", "standard_name", "units")
_DAMAGED = "the pack is damaged: fetch it again"

Tensor = npt.NDArray[np.integer[Any]]


class Coding(IntEnum):
    """How a section is stored."""

    STORED = 0
    ZSTD = 1
    WEIGHTS = 2  # by the weight coder: tensors only, like those below
    DIFFERENCES = 3  # its differences along the last axis
    DIFFERENCES_2 = 4  # along rows and from row to row


@dataclass(frozen=True, eq=False, repr=False)
class Pack:
    """A model: manifest and integer tensors, checked.  Immutable; equal to packs of the same digest.

    Attributes
    ----------
    id : str
        The name that people use.  A published id never changes its content.
    kind : str
        One of `KINDS`.
    digest : str
        SHA-256 of the content as 64 hexadecimal digits: the name that streams use.
    manifest : Mapping
        Read-only: mappings and tuples all the way down.  `plain` makes dicts and lists of any part of it.
    tensors : Mapping of str to ndarray
        Read-only arrays of int8, int16, int32 or uint8, in C order, by name.
    codings : Mapping of str to Coding
        How each tensor is stored in `data`.
    data : bytes
        The file.
    """

    id: str
    kind: str
    digest: str
    manifest: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    codings: Mapping[str, Coding]
    data: bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self.data)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, *, digest: str | None = None) -> Pack:
        """Parse and check a pack; with `digest`, only the pack that has it is accepted.

        Raises
        ------
        TruncatedPackError, CorruptPackError, WeightRangeError
            If the bytes are damaged or not written in the one canonical way.
        PackSizeError
            If the file is above 4 MiB, or holds more than 2^24 weights.
        UnsupportedPackError
            If the format, the kind or the arithmetic is unknown.
        PackDigestError
            If the content is another one than `digest` names.
        """
        view = memoryview(data).cast("B")
        if len(view) > MAX_BYTES:
            raise _too_large("pack", f"{len(view)} bytes", f"{MAX_BYTES} bytes")
        file = hashlib.sha256(view).digest()
        try:
            pack = _alive.get(file) or _alive.setdefault(file, _read(cls, bytes(view)))
        except TruncatedPackError:
            raise
        except TruncatedStreamError as error:
            raise TruncatedPackError(*error.args) from None
        except PackError:
            raise
        except CorruptStreamError as error:
            raise CorruptPackError(*error.args) from None
        if digest is not None and digest != pack.digest:
            raise PackDigestError.at(
                f"pack {pack.id!r}",
                found=f"digest {pack.digest}",
                expected=digest,
                remedy="this is another model, or one that was changed: use the pack that the digest names",
            )
        return pack

    @classmethod
    def from_file(cls, path: str | Path, *, digest: str | None = None) -> Pack:
        """Read a pack from a file; as `from_bytes`, with the path in the message of an error.

        Raises
        ------
        PackError
            Also if the file cannot be read.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise PackError.at(str(path), found=error.strerror or str(error), expected="a file") from None
        return named_pack(data, str(path), digest)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Pack) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Pack({self.id!r}, kind={self.kind!r}, digest={self.digest[:12]!r}, nbytes={self.nbytes})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack.from_bytes, (self.data,)


# What somebody still has need not be parsed again: that takes as long as coding ten thousand values.  By the SHA-256 of the file.
_alive: WeakValueDictionary[bytes, Pack] = WeakValueDictionary()


def plain(value: Any) -> Any:
    """Copy a part of a manifest into dicts and lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def content_digest(manifest: bytes, tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of a content: the canonical manifest, then the tensors in its order.

    ``docs/packs.md``, section 4.
    """
    digest = hashlib.sha256(b"AESZPACK" + len(manifest).to_bytes(8, "little"))
    digest.update(manifest)
    for tensor in tensors:
        digest.update(little_endian(tensor))
    return digest.hexdigest()


def little_endian(tensor: Tensor) -> bytes:
    """Return the values as bytes: little-endian, C order."""
    return tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()


# The manifest


def canonical_json(value: Any) -> bytes:
    """Write JSON in the one way that a pack may have it; ``docs/packs.md``, section 3.

    Raises
    ------
    PackError
        If there is a value that JSON does not have, such as NaN or an array.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        same = json.loads(text)
        again = json.dumps(same, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PackError.at("manifest", found=str(error), expected="plain JSON values") from None
    if again != text:
        raise PackError.at("manifest", found="keys that are not strings", expected="plain JSON values")
    return text.encode("ascii")


def parse_manifest(data: bytes) -> dict[str, Any]:
    """Read and check a manifest.

    Raises
    ------
    CorruptPackError
        If it is no canonical JSON, or a field is missing, unknown or wrong.
    PackSizeError, UnsupportedPackError
    """
    if len(data) > MAX_MANIFEST:
        raise _too_large("manifest", f"{len(data)} bytes", f"{MAX_MANIFEST} bytes")
    try:
        manifest = json.loads(data.decode("ascii"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _corrupt("manifest", f"no JSON ({error})", "canonical JSON") from None
    _check_json(manifest)
    if canonical_json(manifest) != data:
        raise _corrupt("manifest", "JSON in another form", "sorted keys, no spaces, ASCII, shortest numbers")
    if not isinstance(manifest, dict):
        raise _corrupt("manifest", type(manifest).__name__, "an object")
    for name in manifest.keys() ^ _CHECKS.keys():
        if name in manifest:
            raise _corrupt(f"manifest.{name}", "an unknown field", f"only {', '.join(_CHECKS)}")
        raise _corrupt(f"manifest.{name}", "nothing", "this field")
    for name, check in _CHECKS.items():
        check(manifest[name], f"manifest.{name}")
    return manifest


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_json(value: Any) -> None:
    """Refuse what is too deep, and text and numbers that other readers could take otherwise."""
    layer, depth = [value], 0
    while layer:
        below: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                if any("\ud800" <= c <= "\udfff" for c in item):
                    raise _corrupt("manifest", "half a surrogate pair", "text")
            elif isinstance(item, float):
                if not math.isfinite(item):
                    raise _corrupt("manifest", "a number beyond binary64", "finite numbers")
            elif isinstance(item, int) and not -(1 << 63) <= item < 1 << 63:
                raise _corrupt("manifest", "an integer beyond 64 bits", "integers of at most 64 bits")
        layer, depth = below, depth + 1
        if depth > MAX_DEPTH:
            raise _corrupt("manifest", f"more than {MAX_DEPTH} levels", "fewer")


def _check_id(value: Any, name: str) -> None:
    if not isinstance(value, str) or not _ID.fullmatch(value) or is_digest(value):
        raise _corrupt(
            name, repr(value), "1 to 64 of a-z, 0-9, '.', '_', '-', the first a letter or digit; no digest"
        )


def _check_kind(value: Any, name: str) -> None:
    _check_known(value, name, KINDS)


def _check_arithmetic(value: Any, name: str) -> None:
    _check_known(value, name, ARITHMETICS)


def _check_known(value: Any, name: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UnsupportedPackError.at(
            name,
            found=repr(value)[:100],
            expected=" or ".join(map(repr, known)),
            remedy="install a newer aesz-codec",
        )


def _check_text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise _corrupt(name, type(value).__name__, "text")


def _check_anything(value: Any, name: str) -> None:
    pass


def _check_object(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise _corrupt(name, type(value).__name__, "an object")


def _check_grid(value: Any, name: str) -> None:
    if value is not None and not (isinstance(value, str) and len(value) == 32 and _HEX.fullmatch(value)):
        raise _corrupt(name, repr(value)[:100], "null or what zoo.grid_hash returns")


def _check_variables(value: Any, name: str) -> None:
    _check_objects(value, name)
    for i, variable in enumerate(value):
        for key, item in variable.items():
            number = key == "level" and isinstance(item, int | float) and not isinstance(item, bool)
            if key not in _VARIABLE_KEYS or not (isinstance(item, str) or number):
                raise _corrupt(
                    f"{name}[{i}]", f"{key!r}: {item!r}"[:100], f"texts under {', '.join(_VARIABLE_KEYS)}"
                )
        if not variable.keys() & {"standard_name", "short_name"}:
            raise _corrupt(f"{name}[{i}]", "no name", "a standard_name or a short_name")


def _check_objects(value: Any, name: str) -> None:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _corrupt(name, type(value).__name__, "a list of objects")


def _check_tensors(value: Any, name: str) -> None:
    _check_objects(value, name)
    if len(value) > MAX_TENSORS:
        raise _too_large(name, f"{len(value)} tensors", f"{MAX_TENSORS}")
    previous, total = "", 0
    for i, entry in enumerate(value):
        where = f"{name}[{i}]"
        if not {"dtype", "name", "shape"} <= entry.keys() <= {"dtype", "name", "range", "shape"}:
            raise _corrupt(where, f"keys {', '.join(entry)}"[:100], "name, dtype, shape and perhaps range")
        title, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
        if not isinstance(title, str) or not _TENSOR_NAME.fullmatch(title):
            raise _corrupt(f"{where}.name", repr(title)[:100], "1 to 100 of letters, digits, '_' and '.'")
        if title <= previous:
            raise _corrupt(f"{where}.name", repr(title), f"a name after {previous!r}")
        previous = title
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise _corrupt(f"{where}.dtype", repr(dtype)[:100], f"one of {', '.join(DTYPES)}")
        if (
            not isinstance(shape, list)
            or not 1 <= len(shape) <= MAX_AXES
            or not all(type(n) is int and n >= 1 for n in shape)
        ):
            raise _corrupt(f"{where}.shape", repr(shape)[:100], f"1 to {MAX_AXES} lengths above 0")
        total += math.prod(shape)
        if total > MAX_VALUES:
            raise _too_large(name, f"more than {MAX_VALUES} values", f"{MAX_VALUES}")
        if "range" in entry:
            bounds, limits = entry["range"], np.iinfo(dtype)
            if (
                not isinstance(bounds, list)
                or len(bounds) != 2
                or not all(type(n) is int for n in bounds)
                or not limits.min <= bounds[0] <= bounds[1] <= limits.max
            ):
                raise _corrupt(f"{where}.range", repr(bounds)[:100], f"[lowest, highest] within {dtype}")


_CHECKS = {
    "arithmetic": _check_arithmetic,
    "description": _check_text,
    "grid": _check_grid,
    "id": _check_id,
    "kind": _check_kind,
    "licence": _check_text,
    "network": _check_anything,
    "normalisation": _check_anything,
    "rates": _check_objects,
    "tensors": _check_tensors,
    "training": _check_object,
    "variables": _check_variables,
}


def is_digest(text: str) -> bool:
    """Tell whether this is a digest, and so no id."""
    return len(text) == 64 and _HEX.fullmatch(text) is not None


# The file


@dataclass(frozen=True)
class _Section:
    coding: int
    stored: int
    checksum: int


def may_hold(coded: int, values: int) -> bool:
    """Tell whether so many bytes of the weight coder can hold so many values; ``docs/packs.md``, section 5."""
    return values <= (coded + 1) << 15


def take_differences(matrix: npt.NDArray[np.int32], axes: int) -> npt.NDArray[np.int32]:
    """Take differences along the last `axes` axes of a matrix, modulo 2^32."""
    for axis in range(axes):
        matrix = np.diff(matrix, axis=1 - axis, prepend=np.int32(0))
    return np.ascontiguousarray(matrix, np.int32)


def undo_differences(matrix: npt.NDArray[np.int32], axes: int) -> npt.NDArray[np.int32]:
    """Undo `take_differences`."""
    for axis in reversed(range(axes)):
        matrix = np.cumsum(matrix, axis=1 - axis, dtype=np.int32)
    return matrix


def write_file(manifest: tuple[Coding, bytes], tensors: Iterable[tuple[Coding, bytes]]) -> bytes:
    """Put the coded sections into one file; ``docs/packs.md``, section 2."""
    sections = [manifest, *tensors]
    header = Writer().raw(MAGIC).pack("BBH", *FORMAT_VERSION, len(sections))
    for coding, payload in sections:
        header.pack("B", coding).varint(len(payload)).pack("I", zlib.crc32(payload))
    head = header.done()
    return Writer().raw(head).pack("I", zlib.crc32(head)).raw(b"".join(p for _, p in sections)).done()


def _read(cls: type[Pack], data: bytes) -> Pack:
    reader = Reader(data, "pack", truncated=True)
    magic = bytes(reader.take(4))
    if magic != MAGIC:
        raise _corrupt("magic", repr(magic), repr(MAGIC))
    major, minor = reader.byte(), reader.byte()
    if major != FORMAT_VERSION[0]:
        raise _unsupported("format version", f"{major}.{minor}", f"{FORMAT_VERSION[0]}.x")
    (count,) = reader.unpack("H")
    table = []
    for _ in range(int(count)):
        coding, stored = reader.byte(), reader.varint()
        (checksum,) = reader.unpack("I")
        table.append(_Section(coding, stored, int(checksum)))
    header = zlib.crc32(data[: reader.position])
    (checksum,) = reader.unpack("I")
    if checksum != header:
        raise _corrupt("header checksum", f"{int(checksum):08x}", f"{header:08x}")
    if not table:
        raise _corrupt("sections", "none", "the manifest")
    for i, section in enumerate(table):
        if section.coding > (max(Coding) if i else Coding.ZSTD):
            if minor > FORMAT_VERSION[1]:
                raise _unsupported("section coding", str(section.coding), "a known one")
            raise _corrupt("section coding", str(section.coding), "a known one")

    payloads = []
    for i, section in enumerate(table):
        payload = reader.take(section.stored)
        found = zlib.crc32(payload)
        if found != section.checksum:
            raise _corrupt(f"checksum of section {i}", f"{section.checksum:08x}", f"{found:08x}")
        payloads.append(payload)
    reader.end()

    text = bytes(payloads[0])
    if table[0].coding == Coding.ZSTD:
        text = _expand(payloads[0], MAX_MANIFEST, "manifest")
        _check_gain(len(payloads[0]), len(text), "manifest")
    manifest = parse_manifest(text)
    entries = manifest["tensors"]
    if len(entries) != len(table) - 1:
        raise _corrupt("sections", str(len(table)), f"{len(entries) + 1}: the manifest and its tensors")
    for entry, section in zip(entries, table[1:], strict=True):
        _check_count(entry, section)
    tensors, codings = {}, {}
    for entry, section, payload in zip(entries, table[1:], payloads[1:], strict=True):
        tensors[entry["name"]] = _tensor(entry, Coding(section.coding), payload)
        codings[entry["name"]] = Coding(section.coding)
    return cls(
        id=manifest["id"],
        kind=manifest["kind"],
        digest=content_digest(text, tensors.values()),
        manifest=_freeze(manifest),
        tensors=MappingProxyType(tensors),
        codings=MappingProxyType(codings),
        data=data,
    )


def _check_count(entry: dict[str, Any], section: _Section) -> None:
    """Refuse, before anything is allocated, more values than the bytes of the section can hold."""
    name, values = f"tensor {entry['name']!r}", math.prod(entry["shape"])
    size = values * DTYPES[entry["dtype"]].itemsize
    if section.coding == Coding.STORED:
        if section.stored != size:
            raise _corrupt(name, f"{section.stored} bytes", f"{size}")
        return
    _check_gain(section.stored, size, name)
    if section.coding == Coding.ZSTD and size > section.stored << 16:
        raise _corrupt(name, f"{size} bytes in {section.stored}", "at most 2^16 times the stored ones")
    if section.coding >= Coding.WEIGHTS and not may_hold(section.stored, values):
        raise _corrupt(name, f"{values} values in {section.stored} bytes", "at most 2^15 * (bytes + 1)")


def _check_gain(stored: int, expanded: int, name: str) -> None:
    if stored >= expanded:
        raise _corrupt(name, f"{expanded} bytes coded in {stored}", "fewer, or bytes as they are")


def _tensor(entry: dict[str, Any], coding: Coding, payload: memoryview) -> Tensor:
    name, shape, dtype = f"tensor {entry['name']!r}", tuple(entry["shape"]), DTYPES[entry["dtype"]]
    limits = np.iinfo(dtype)
    lowest, highest = entry.get("range", (int(limits.min), int(limits.max)))
    if coding >= Coding.WEIGHTS:
        matrix = np.empty((math.prod(shape[:-1]), shape[-1]), np.int32)
        allowed = (lowest, highest) if coding is Coding.WEIGHTS else (-(1 << 31), (1 << 31) - 1)
        try:
            _core.decode_weights(bytes(payload), matrix, *allowed)
        except _core.CorruptDataError as error:
            kind = WeightRangeError if "range" in str(error) else CorruptPackError
            raise kind.at(
                name, found=str(error), expected=f"weights in [{lowest}, {highest}]", remedy=_DAMAGED
            ) from None
        wide = undo_differences(matrix, coding - Coding.WEIGHTS).reshape(shape)
    else:
        size = math.prod(shape) * dtype.itemsize
        raw = bytes(payload) if coding is Coding.STORED else _expand(payload, size, name)
        if len(raw) != size:
            raise _corrupt(name, f"{len(raw)} bytes", str(size))
        wide = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape)
    if not lowest <= int(wide.min()) <= int(wide.max()) <= highest:
        raise WeightRangeError.at(
            name,
            found=f"weights in [{wide.min()}, {wide.max()}]",
            expected=f"[{lowest}, {highest}]",
            remedy=_DAMAGED,
        )
    tensor = wide.astype(dtype, copy=False)
    tensor.flags.writeable = False
    return tensor


def _expand(payload: memoryview, most: int, name: str) -> bytes:
    try:
        frame = zstandard.get_frame_parameters(payload)
        if frame.content_size != zstandard.CONTENTSIZE_UNKNOWN or frame.has_checksum or frame.dict_id:
            raise _corrupt(name, "a zstd frame of another kind", "one without size, checksum and dictionary")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        return decompressor.decompress(payload, max_output_size=most, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _corrupt(name, str(error), f"a zstd frame of at most {most} bytes") from None


def _freeze(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: _freeze(item) for key, item in value.items()})
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def named_pack(data: bytes, name: str, digest: str | None = None) -> Pack:
    """Parse, with the name of the file before the message of an error."""
    try:
        return Pack.from_bytes(data, digest=digest)
    except PackError as error:
        raise type(error)(f"{name}: {error}") from None


def pack_sections(pack: Pack) -> Iterator[tuple[str, Coding, int]]:
    """Yield name, coding and stored bytes of each section; that of the manifest is named ``manifest``."""
    reader = Reader(pack.data, "pack")
    reader.take(6)
    (count,) = reader.unpack("H")
    for name in ("manifest", *pack.tensors)[: int(count)]:
        coding, stored = Coding(reader.byte()), reader.varint()
        reader.take(4)
        yield name, coding, stored


def _corrupt(field: str, found: str, expected: str) -> CorruptPackError:
    return CorruptPackError.at(field, found=found, expected=expected, remedy=_DAMAGED)


def _unsupported(field: str, found: str, expected: str) -> UnsupportedPackError:
    return UnsupportedPackError.at(field, found=found, expected=expected, remedy="install a newer aesz-codec")


def _too_large(field: str, found: str, most: str) -> PackSizeError:
    return PackSizeError.at(field, found=found, expected=f"at most {most}", remedy="make the model smaller")
