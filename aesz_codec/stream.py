"""The container of a stream: header, table of sections, payloads, checksums.  ``docs/format.md``, sections 2 and 3."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import zstandard

from .errors import CorruptStreamError, TruncatedStreamError, UnsupportedFormatError

__all__ = ["FORMAT_VERSION", "Coder", "Method", "Reader", "Section", "Stream", "Transform", "Writer"]

MAGIC = b"AESZ"
FORMAT_VERSION = (1, 5)  # the newest that is read; a stream is marked with the least that has what it uses
MODES = ("lossless", "abs", "range_rel", "pw_rel")  # by their number in the format
DTYPES = tuple(
    np.dtype(name)
    for name in (
        "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    )
)  # fmt: skip
F_ORDERED, BIG_ENDIAN = 1, 2  # flags
MAX_DIMS = 32
_MAX_WINDOW = 1 << 23  # bytes that zstd may take for its window, whatever a damaged frame says


class Method(IntEnum):
    """How the values of the region are coded."""

    CONSTANT = 0
    INTERPOLATION = 1
    CAUSAL = 2
    LOSSLESS = 3
    BYTES = 4
    LOCAL = 5
    FRAMES = 6


class Transform(IntEnum):
    """What was done to the values before prediction."""

    NONE = 0
    LOGARITHM = 1
    INTEGER = 2
    LATTICE = 3
    SIDE = 4


class Coder(IntEnum):
    """How the codes of a closed loop are written; a field of the section ``plan``."""

    ADAPTIVE = 0
    ADAPTIVE_ZEROS = 1  # with a decision of its own for zeros where they prevail; written no more
    STATIC = 2
    MIXED = 3


class Section(IntEnum):
    """Tags of the sections."""

    CROP = 1
    LABELS = 2
    SIGNS = 3
    PLAN = 4
    CODES = 5
    OUTLIERS = 6
    CORRECTIONS = 7
    LATTICE = 8
    MODEL = 9
    SIDE = 10
    FORECAST = 11


_COUNTS = {
    0: (5, 3, 7),
    1: (6, 4, 8),
    2: (6, 4, 9),
    3: (6, 5, 10),
    4: (6, 5, 10),
    5: (7, 5, 11),
}  # methods, transforms and section tags by minor version


class Writer:
    """Collects little-endian fields."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, data: bytes) -> Writer:
        """Append bytes as they are."""
        self._parts.append(data)
        return self

    def pack(self, layout: str, *values: float) -> Writer:
        """Append fields as `struct` lays them out."""
        return self.raw(struct.pack("<" + layout, *values))

    def varint(self, value: int) -> Writer:
        """Append an unsigned integer, seven bits a byte."""
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
        return self.raw(bytes(out))

    def done(self) -> bytes:
        """Return all that was appended."""
        return b"".join(self._parts)


class Reader:
    """Reads little-endian fields; never beyond the end."""

    def __init__(self, data: memoryview | bytes, name: str, truncated: bool = False) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._name = name
        self._error = TruncatedStreamError if truncated else CorruptStreamError

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._at

    def take(self, n: int) -> memoryview:
        """Read `n` bytes."""
        if n > len(self._data) - self._at:
            raise self._error.at(
                self._name,
                found=f"{len(self._data)} bytes",
                expected=f"at least {self._at + n}",
                remedy="the bytes are not whole: fetch or write them again",
            )
        self._at += n
        return self._data[self._at - n : self._at]

    def unpack(self, layout: str) -> tuple[float, ...]:
        """Read fields as `struct` lays them out."""
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def byte(self) -> int:
        """Read a u8."""
        return self.take(1)[0]

    def varint(self) -> int:
        """Read an unsigned integer, seven bits a byte."""
        value = 0
        for i in range(9):
            byte = self.byte()
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                if byte == 0 and i:
                    break
                return value
        raise corrupt(self._name, "a malformed integer", "at most nine bytes, the last of several not 0")

    def rest(self) -> memoryview:
        """Read all that is left."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise corrupt(self._name, f"{len(self._data) - self._at} more bytes", "its end")


def corrupt(field_: str, found: str, expected: str) -> CorruptStreamError:
    """Build the error for a value that no encoder writes."""
    return CorruptStreamError.at(
        field_, found=found, expected=expected, remedy="the stream is damaged: restore it from its source"
    )


@dataclass
class Stream:
    """A parsed stream, or one that is being put together.

    Attributes
    ----------
    dtype : numpy.dtype
        In native byte order.
    shape : tuple of int
    mode : str
        The bound as it was asked for, with `bound` its value (0 for lossless).
    tolerance : float
        What was kept: units of the data, or the factor of ``pw_rel``; 0 if every bit is kept.
    method, transform : Method, Transform
    flags : int
        Memory order and byte order of the input.
    sections : dict of Section to bytes
    stored : dict of Section to int
        Bytes of each section in the stream.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    mode: str
    bound: float
    tolerance: float
    method: Method
    transform: Transform = Transform.NONE
    flags: int = 0
    sections: dict[Section, bytes] = field(default_factory=dict)
    stored: dict[Section, int] = field(default_factory=dict)
    version: tuple[int, int] = FORMAT_VERSION
    overhead: int = 0

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def coder(self) -> int:
        """How the codes are written, by the plan; see `Coder`."""
        at, shift = {Method.INTERPOLATION: (17, 2), Method.CAUSAL: (16, 0), Method.FRAMES: (17, 2)}.get(
            self.method, (0, 8)
        )
        plan = self.sections.get(Section.PLAN, b"")
        return plan[at] >> shift & 3 if len(plan) > at else 0

    @property
    def uses_model(self) -> bool:
        """Whether the values are predicted by a model, by the plan; the section ``model`` names its pack."""
        at = {Method.INTERPOLATION: 17, Method.CAUSAL: 16, Method.FRAMES: 17}.get(self.method, 0)
        plan = self.sections.get(Section.PLAN, b"")
        return at > 0 and len(plan) > at and bool(plan[at] & 16)

    @property
    def minor(self) -> int:
        """The least minor version that has what the stream uses."""
        static_model = self.uses_model and self.method is Method.INTERPOLATION and self.coder == Coder.STATIC
        clocked = self.transform is Transform.SIDE and self.sections.get(Section.SIDE, b"")[32:40] == bytes(8)
        if self.method is Method.FRAMES or static_model or clocked:
            return 5
        if self.uses_model and self.method is Method.CAUSAL:
            return 4
        if self.transform is Transform.SIDE:
            return 3
        if self.uses_model:
            return 2
        newer = (
            self.transform is Transform.LATTICE
            or self.method is Method.LOCAL
            or self.coder > Coder.ADAPTIVE_ZEROS
        )
        return int(newer)

    def to_bytes(self) -> bytes:
        """Serialize; a section is zstd-coded where that is smaller."""
        header = Writer().raw(MAGIC).pack("BB", 1, self.minor)
        header.pack("BBB", self.flags, DTYPES.index(self.dtype), MODES.index(self.mode))
        header.pack("BBB", self.method, self.transform, len(self.shape))
        for n in self.shape:
            header.varint(n)
        header.pack("ddB", self.bound, self.tolerance, len(self.sections))
        payloads = []
        for tag, data in sorted(self.sections.items()):
            packed = data
            if tag is not Section.CODES or self.method is Method.BYTES:  # range-coded bytes do not shrink
                packed = zstandard.ZstdCompressor(level=9, write_content_size=False).compress(data)
            if len(packed) + 1 < len(data):
                header.pack("BB", tag, 1).varint(len(packed)).varint(len(data))
            else:
                packed = data
                header.pack("BB", tag, 0).varint(len(data))
            payloads.append(packed)
            self.stored[tag] = len(packed)
        head, body = header.done(), b"".join(payloads)
        return b"".join(
            (head, struct.pack("<I", zlib.crc32(head)), body, struct.pack("<I", zlib.crc32(body)))
        )

    @classmethod
    def from_bytes(cls, data: memoryview | bytes, *, payloads: bool = True) -> Stream:
        """Parse and check; with ``payloads=False`` the sections are measured and not expanded.

        Raises
        ------
        TruncatedStreamError, CorruptStreamError, UnsupportedFormatError
        """
        view = memoryview(data)
        reader = Reader(view, "stream", truncated=True)
        magic = bytes(reader.take(4))
        if magic != MAGIC:
            raise corrupt("magic", repr(magic), repr(MAGIC))
        major, minor = reader.byte(), reader.byte()
        if major != FORMAT_VERSION[0]:
            raise UnsupportedFormatError.at(
                "format version",
                found=f"{major}.{minor}",
                expected=f"{FORMAT_VERSION[0]}.x",
                remedy="install a newer aesz-codec" if major > FORMAT_VERSION[0] else "the stream is damaged",
            )
        flags, dtype, mode, method, transform, ndim = reader.take(6)
        if ndim > MAX_DIMS:
            raise corrupt("ndim", str(ndim), f"at most {MAX_DIMS}")
        shape = tuple(reader.varint() for _ in range(ndim))
        bound, tolerance = reader.unpack("dd")
        table = []
        for _ in range(reader.byte()):
            tag, coding, stored = reader.byte(), reader.byte(), reader.varint()
            table.append((tag, coding, stored, reader.varint() if coding == 1 else stored))
        _check(reader, "header checksum", zlib.crc32(view[: reader.position]))
        start = reader.position

        def known(name: str, value: int, count: int) -> None:
            if value >= count:
                newer = minor > FORMAT_VERSION[1]
                error = UnsupportedFormatError if newer else CorruptStreamError
                remedy = "install a newer aesz-codec" if newer else "the stream is damaged"
                raise error.at(name, found=str(value), expected=f"below {count}", remedy=remedy)

        known("flags", flags, 4)
        known("dtype", dtype, len(DTYPES))
        known("mode", mode, len(MODES))
        methods, transforms, tags = _COUNTS[min(minor, FORMAT_VERSION[1])]
        known("method", method, methods)
        known("transform", transform, transforms)
        stream = cls(
            dtype=DTYPES[dtype],
            shape=shape,
            mode=MODES[mode],
            bound=float(bound),
            tolerance=float(tolerance),
            method=Method(method),
            transform=Transform(transform),
            flags=flags,
            version=(major, minor),
        )
        if math.prod(n for n in shape if n) * stream.dtype.itemsize >= 1 << 63:
            raise corrupt("shape", str(shape), "a size below 2^63 bytes")
        limit = stream.size * stream.dtype.itemsize + (1 << 16)
        previous = 0
        for tag, coding, stored, expanded in table:
            known("section tag", tag - 1, tags)
            known("section coding", coding, 2)
            if tag <= previous:
                raise corrupt("section tag", str(tag), f"above {previous}")
            previous = tag
            most = min(limit, stored << 16)  # zstd expands by less than 2^15
            if coding == 1 and expanded > most:
                raise corrupt("section length", str(expanded), f"at most {most}")
            if coding == 1 and not stream.size:
                raise corrupt("sections", "some", "none for an array without values")
        body = reader.take(sum(stored for _, _, stored, _ in table))
        _check(reader, "payload checksum", zlib.crc32(body))
        reader.end()
        stream.overhead = start + 4
        at = 0
        for tag, coding, stored, expanded in table:
            stream.stored[Section(tag)] = stored
            if payloads:
                stream.sections[Section(tag)] = expand(body[at : at + stored], coding, expanded)
            at += stored
        return stream


def _check(reader: Reader, name: str, checksum: int) -> None:
    (stored,) = reader.unpack("I")
    if stored != checksum:
        raise corrupt(name, f"{int(stored):08x}", f"{checksum:08x}")


def expand(data: memoryview, coding: int, expanded: int, name: str = "zstd section") -> bytes:
    """Return bytes as they were before they were stored (coding 0) or zstd-coded (1).

    Raises
    ------
    CorruptStreamError
        If there are not just so many.
    """
    if coding == 0:
        return bytes(data)
    if expanded > len(data) << 16:  # zstd expands by less than 2^15
        raise corrupt(name, f"{len(data)} bytes", f"more for {expanded} expanded ones")
    try:
        with zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(data) as reader:
            out = reader.read(expanded)
            surplus = reader.read(1)
    except zstandard.ZstdError as error:
        raise corrupt(name, str(error), "a zstd frame") from None
    if len(out) != expanded or surplus:
        raise corrupt(name, f"{'more than ' if surplus else ''}{len(out)} bytes", str(expanded))
    return out
