"""Packs: round trips, one sequence of bytes, damage, and a second reader written from docs/packs.md alone."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import struct
import subprocess
import sys
import zlib
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aesz_codec import _core, errors, packs
from aesz_codec.packs import Coding, Pack, plain
from aesz_codec.train.packing import QuantizedTensor, choose_steps, coded_tensor, write_pack

MANIFEST: dict[str, Any] = {
    "id": "test-1",
    "kind": "interpolation",
    "licence": "BSD-3-Clause",
    "description": "températures \U0001f321 \x7f\n",
    "variables": [{"standard_name": "air_temperature", "level": 500, "units": "K"}],
    "network": [{"layer": "linear", "weights": "w"}],
    "training": {"data": "synthetic", "seed": 7, "split": None},
    "rates": [{"field": "a", "bound": 0.001, "ratio": 12.5, "tiny": 1e-05, "huge": 1e16}],
}
DTYPES = ("int8", "int16", "int32", "uint8")


def tensors() -> dict[str, np.ndarray]:
    """Return tensors that take every coding."""
    rng = np.random.default_rng(3)
    row, column = np.linspace(0, 3, 24), np.linspace(0, 2, 20)[:, None]
    return {
        "bias": np.array([-(2**31), 2**31 - 1, 0], np.int32),
        "weights.0": np.clip(rng.laplace(0, 9, (16, 12)).round(), -127, 127).astype(np.int8),
        "pattern": np.tile(rng.integers(-128, 128, 16), 60).astype(np.int8),
        "rows": (np.cumsum(rng.integers(-3, 4, (20, 24)), axis=1) * 5).astype(np.int16),
        "field": (3000 * np.sin(row) * np.cos(column)).astype(np.int32)[None],
        "zeros": np.zeros((2, 3, 40, 5, 4), np.uint8),
    }


@pytest.fixture(scope="module")
def data() -> bytes:
    return write_pack(MANIFEST, tensors(), ranges={"weights.0": (-127, 127)})


def rebuilt(data: bytes, edit: Any) -> bytes:
    """Take a pack apart, let `edit` change manifest, codings and payloads, and put it together again, sealed."""
    pack = Pack.from_bytes(data)
    at, payloads = 0, []
    body = data[header_size(data) :]
    for _, coding, stored in packs.pack_sections(pack):
        payloads.append([coding, body[at : at + stored]])
        at += stored
    manifest = plain(pack.manifest)
    text = edit(manifest, payloads) or packs.canonical_json(manifest)
    return packs.write_file((0, text), [tuple(p) for p in payloads[1:]])


def header_size(data: bytes) -> int:
    pack = Pack.from_bytes(data)
    return pack.nbytes - sum(stored for _, _, stored in packs.pack_sections(pack))


# A second reader, from docs/packs.md alone; the range coder and its models are those of tests/reference.py.


class SecondReader:
    def __init__(self, reference: ModuleType) -> None:
        self.reference = reference

    def read(self, data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
        file = self.reference.Bytes(data)
        assert file.take(6) == b"AEPK\x01\x00"
        (count,) = struct.unpack("<H", file.take(2))
        table = [(file.u8(), file.varint(), file.u32()) for _ in range(count)]
        assert zlib.crc32(data[: file.at]) == file.u32()
        sections = []
        for coding, stored, checksum in table:
            payload = file.take(stored)
            assert zlib.crc32(payload) == checksum
            if coding == 1:
                payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=1 << 22)
            sections.append((coding, payload))
        file.end()
        text = sections[0][1]
        manifest = json.loads(text)
        assert json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode() == text
        digest = hashlib.sha256(b"AESZPACK" + struct.pack("<Q", len(text)) + text)
        found = {}
        for entry, (coding, payload) in zip(manifest["tensors"], sections[1:], strict=True):
            dtype = np.dtype(entry["dtype"]).newbyteorder("<")
            if coding < 2:
                tensor = np.frombuffer(payload, dtype).reshape(entry["shape"])
            else:
                tensor = self.weights(payload, entry["shape"], coding).astype(dtype)
            digest.update(tensor.tobytes())
            found[entry["name"]] = tensor
        return manifest, found, digest.hexdigest()

    def weights(self, payload: bytes, shape: list[int], coding: int = 2) -> np.ndarray:
        width = shape[-1]
        rows = int(np.prod(shape)) // width
        self.coder = self.reference.RangeDecoder(payload)
        self.bits: dict[Any, Any] = defaultdict(self.reference.Bit)
        self.mixers: dict[int, Any] = defaultdict(lambda: self.reference.Mixer(5))
        self.sum = self.count = self.recent = 0
        x = [[0] * width for _ in range(rows)]
        for r in range(rows):
            for c in range(width):
                places = {"w": (r, c - 1), "ww": (r, c - 2), "n": (r - 1, c)}
                places |= {"nw": (r - 1, c - 1), "ne": (r - 1, c + 1)}
                near = {k: x[i][j] for k, (i, j) in places.items() if i >= 0 and 0 <= j < width}
                x[r][c] = self.weight(near)
        if coding == 4:
            for r in range(1, rows):
                x[r] = [a + b for a, b in zip(x[r], x[r - 1], strict=True)]
        if coding >= 3:
            for line in x:
                for c in range(1, width):
                    line[c] += line[c - 1]
        wrapped = [[(v + 2**31) % 2**32 - 2**31 for v in line] for line in x]
        return np.array(wrapped, np.int64).reshape(shape)

    def weight(self, near: dict[str, int]) -> int:
        clamp = self.reference.clamp
        mean = 16 * self.sum // max(self.count, 1)

        def size(name: str) -> int:
            return 16 * min(abs(near[name]), 2**20) if name in near else mean

        def class_of(v: int) -> int:
            v += 4
            e = v.bit_length() - 1
            return min(2 * (e - 2) + (v >> (e - 1) & 1), 45)

        def rel(v: int) -> int:
            return clamp(class_of(v) - b + 7, 0, 11) // 2

        def sign(name: str) -> int:
            v = near.get(name, 0)
            return 1 + (v > 0) - (v < 0)

        expected = 2 * size("w") + size("ww") + 2 * size("n") + size("nw") + size("ne") + mean
        s, b = class_of(expected // 8), class_of(mean)
        contexts = (
            s,
            0,
            4 * (3 * sign("w") + sign("n")) + clamp(s - b + 4, 0, 7) // 2,
            6 * rel(size("w")) + rel(size("n")),
            class_of(self.recent),
        )

        def decision(node: int) -> int:
            bits = [self.bits[i, c, node] for i, c in enumerate(contexts)]
            return self.mixers[node].read(self.coder, bits)

        value = self.magnitude(decision) if decision(0) else 0
        self.sum += min(abs(value), 2**20)
        self.count += 1
        if self.count == 256:
            self.sum, self.count = self.sum // 2, 128
        self.recent = self.recent + 2 * min(abs(value), 2**20) - self.recent // 8
        return value

    def magnitude(self, decision: Any) -> int:
        sign = 1 if decision(1) else -1
        for k in (1, 2):
            if not decision(k + 1):
                return sign * k
        k = 0
        while k < 30 and decision(4 + k):
            k += 1
        value, node = 1, 34 + 3 * (k - 1)
        for _ in range(min(k, 2)):
            bit = decision(node)
            value = 2 * value + bit
            node += 1 if bit == 0 else 2
        if k > 2:
            value = value << (k - 2) | self.coder.raw_groups(k - 2)
        return sign * (2 + value)


@pytest.fixture(scope="module")
def second(reference: ModuleType) -> SecondReader:
    return SecondReader(reference)


class TestRoundTrip:
    def test_everything_comes_back(self, data: bytes) -> None:
        pack = Pack.from_bytes(data)
        for name, tensor in tensors().items():
            read = pack.tensors[name]
            assert read.dtype == tensor.dtype and np.array_equal(read, tensor)
            assert not read.flags.writeable and read.flags.c_contiguous
        assert (pack.id, pack.kind, pack.nbytes) == ("test-1", "interpolation", len(data))
        for key, value in MANIFEST.items():
            assert plain(pack.manifest[key]) == value
        assert set(pack.codings.values()) == set(Coding)

    def test_it_cannot_be_changed(self, data: bytes) -> None:
        pack = Pack.from_bytes(data)
        with pytest.raises(TypeError):
            pack.manifest["id"] = "x"
        with pytest.raises(TypeError):
            pack.manifest["training"]["seed"] = 1
        with pytest.raises(TypeError):
            pack.tensors["bias"] = 1
        with pytest.raises(ValueError, match="read-only"):
            pack.tensors["bias"][0] = 1
        with pytest.raises(AttributeError):
            pack.id = "x"

    def test_equal_hashed_pickled(self, data: bytes) -> None:
        pack = Pack.from_bytes(data)
        again = pickle.loads(pickle.dumps(pack))
        assert again == pack and hash(again) == hash(pack) and again.data == data
        assert copy.copy(pack) == pack and pack != Pack.from_bytes(write_pack(MANIFEST, {}))

    def test_file(self, data: bytes, tmp_path: Path) -> None:
        path = tmp_path / "a.aeszpack"
        path.write_bytes(data)
        assert Pack.from_file(path) == Pack.from_bytes(data)
        path.write_bytes(data[:-1])
        with pytest.raises(errors.TruncatedPackError, match=r"a\.aeszpack: "):
            Pack.from_file(path)
        with pytest.raises(errors.PackError, match=r"none\.aeszpack"):
            Pack.from_file(tmp_path / "none.aeszpack")

    @given(
        hnp.arrays(
            st.sampled_from(DTYPES),
            hnp.array_shapes(min_dims=1, max_dims=5, max_side=9),
            elements=None,
        )
    )
    @settings(max_examples=150)
    def test_any_tensor(self, tensor: np.ndarray) -> None:
        pack = Pack.from_bytes(write_pack(MANIFEST, {"t": tensor}))
        assert np.array_equal(pack.tensors["t"], tensor) and pack.tensors["t"].dtype == tensor.dtype

    @pytest.mark.parametrize("coding", [Coding.WEIGHTS, Coding.DIFFERENCES, Coding.DIFFERENCES_2])
    @pytest.mark.parametrize("scale", [0.3, 4, 300, 1e6, 1e9])
    def test_weight_coder_at_every_scale(self, coding: Coding, scale: float, second: SecondReader) -> None:
        rng = np.random.default_rng(int(scale))
        values = np.clip(rng.laplace(0, scale, (9, 13)).round(), -(2**31), 2**31 - 1).astype(np.int32)
        values[3, 4:8] = [2**31 - 1, -(2**31), -(2**31), 0]
        coded = _core.encode_weights(packs.take_differences(values, coding - 2))
        out = np.empty_like(values)
        _core.decode_weights(coded, out, -(2**31), 2**31 - 1)
        assert np.array_equal(packs.undo_differences(out, coding - 2), values)
        assert np.array_equal(second.weights(coded, [9, 13], coding), values)

    @given(hnp.arrays(np.int32, st.tuples(st.integers(1, 6), st.integers(1, 9))), st.integers(0, 24))
    @settings(max_examples=60)
    def test_second_decoder(self, second: SecondReader, values: np.ndarray, shift: int) -> None:
        values = values >> shift
        assert np.array_equal(second.weights(_core.encode_weights(values), list(values.shape)), values)

    def test_second_reader(self, data: bytes, second: SecondReader) -> None:
        pack = Pack.from_bytes(data)
        manifest, found, digest = second.read(data)
        assert manifest == plain(pack.manifest) and digest == pack.digest
        for name, tensor in tensors().items():
            assert np.array_equal(found[name], tensor)


def test_golden(second: SecondReader) -> None:
    """A pack of format 1.0 with every coding is read forever; `write_pack` wrote it of `MANIFEST` and `tensors`."""
    path = Path(__file__).with_name("golden") / "packs" / "1.0-all-codings.aeszpack"
    pack = Pack.from_file(path, digest="8f840e5d1701040c33fe0c119e81b911c1f0ad8195dc25d636aee8581317ddc6")
    assert set(pack.codings.values()) == set(Coding)
    assert second.read(path.read_bytes())[2] == pack.digest


class TestOneSequenceOfBytes:
    def test_deterministic(self, data: bytes) -> None:
        backwards = dict(reversed(tensors().items()))
        manifest = dict(reversed(MANIFEST.items()))
        assert write_pack(manifest, backwards, ranges={"weights.0": (-127, 127)}) == data

    def test_layout_in_memory_does_not_matter(self) -> None:
        tensor = np.arange(60, dtype=np.int16).reshape(6, 10)
        expected = write_pack(MANIFEST, {"t": tensor})
        assert write_pack(MANIFEST, {"t": np.asfortranarray(tensor)}) == expected
        assert write_pack(MANIFEST, {"t": tensor.astype(">i2")}) == expected

    def test_digest_does_not_depend_on_codings(self, data: bytes) -> None:
        pack = Pack.from_bytes(data)

        def store(manifest: Any, payloads: Any) -> None:
            payloads[1:] = [[0, packs.little_endian(t)] for t in pack.tensors.values()]

        plainly = Pack.from_bytes(rebuilt(data, store))
        assert plainly.data != data and plainly == pack
        assert set(plainly.codings.values()) == {Coding.STORED}

    def test_digest_depends_on_all_content(self, data: bytes) -> None:
        digests = {Pack.from_bytes(data).digest}
        for change in ({"id": "test-2"}, {"licence": "x"}, {"network": 1}, {"network": 1.0}):
            digests.add(Pack.from_bytes(write_pack({**MANIFEST, **change}, tensors())).digest)
        for name in tensors():
            changed = tensors()
            changed[name].flat[-1] ^= 1
            digests.add(Pack.from_bytes(write_pack(MANIFEST, changed)).digest)
        assert len(digests) == 5 + len(tensors())

    def test_recoding_gives_the_same_bytes(self, data: bytes) -> None:
        pack = Pack.from_bytes(data)
        again = [coded_tensor(t) for t in pack.tensors.values()]
        assert [c for c, _ in again] == list(pack.codings.values())
        assert data.endswith(b"".join(p for _, p in again))

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text.replace(b":", b": ", 1),
            lambda text: text + b"\n",
            lambda text: text.replace(b"12.5", b"12.50"),
            lambda text: text.replace(b"1e-05", b"0.00001"),
            lambda text: text.replace(b"12.5", b"1.25e1"),
            lambda text: text.replace(b"\\u007f", b"\x7f"),
            lambda text: text.replace(b"\\u00e9", b"\\u00E9"),
            lambda text: text.replace(b"BSD", b"\\u0042SD"),
            lambda text: text.replace(b'"seed":7', b'"seed":7,"seed":7'),
            lambda text: text.replace(b'"grid":null,', b"").replace(b"{", b'{"grid":null,', 1),
            lambda text: text.replace(b'"seed":7', b'"seed":-0'),
        ],
    )
    def test_other_json_of_the_same_meaning(self, data: bytes, change: Any) -> None:
        def edit(manifest: Any, payloads: Any) -> bytes:
            text = packs.canonical_json(manifest)
            assert change(text) != text
            return change(text)

        with pytest.raises(errors.CorruptPackError, match="manifest"):
            Pack.from_bytes(rebuilt(data, edit))

    def test_other_codes_of_the_same_weights(self, data: bytes) -> None:
        def edit(manifest: Any, payloads: Any) -> None:
            payloads[names.index("weights.0") + 1][1] += b"\0"

        names = sorted(tensors())
        with pytest.raises(errors.CorruptPackError, match="not those of their weights"):
            Pack.from_bytes(rebuilt(data, edit))

    @pytest.mark.parametrize("options", [{"write_content_size": True}, {"write_checksum": True}, None])
    def test_other_zstd_frames(self, data: bytes, options: Any) -> None:
        names = sorted(tensors())
        raw = tensors()["pattern"].tobytes()

        def edit(manifest: Any, payloads: Any) -> None:
            section = payloads[names.index("pattern") + 1]
            assert section[0] == 1
            if options is None:
                section[1] += b"\0"
            else:
                options.setdefault("write_content_size", False)
                section[1] = zstandard.ZstdCompressor(level=19, **options).compress(raw)

        with pytest.raises(errors.CorruptPackError, match="zstd|data"):
            Pack.from_bytes(rebuilt(data, edit))


class TestDamage:
    def test_every_prefix(self, data: bytes) -> None:
        for n in range(len(data)):
            with pytest.raises(errors.TruncatedPackError):
                Pack.from_bytes(data[:n])

    def test_every_byte(self, data: bytes) -> None:
        for i in range(len(data)):
            for flip in (1, 128, 255):
                damaged = bytearray(data)
                damaged[i] ^= flip
                with pytest.raises(errors.PackError):
                    Pack.from_bytes(damaged)

    def test_more_bytes(self, data: bytes) -> None:
        with pytest.raises(errors.CorruptPackError, match="more bytes"):
            Pack.from_bytes(data + b"\0")

    def test_every_byte_of_sealed_sections(self, data: bytes) -> None:
        """Checksums made anew: an error, or another content than that of the digest."""
        pack = Pack.from_bytes(data)
        for k in range(len(pack.tensors) + 1):
            size = [stored for _, _, stored in packs.pack_sections(pack)][k]
            for i in range(0, size, max(1, size // 60)):

                def edit(manifest: Any, payloads: Any, k: int = k, i: int = i) -> bytes:
                    text = packs.canonical_json(manifest)
                    target = bytearray(payloads[k][1] if k else text)
                    target[i] ^= 4
                    if k:
                        payloads[k][1] = bytes(target)
                        return text
                    return bytes(target)

                damaged = rebuilt(data, edit)
                try:
                    read = Pack.from_bytes(damaged)
                except errors.PackError:
                    continue
                if k and read == pack:  # zstd knows several frames of the same bytes
                    assert [*pack.codings.values()][k - 1] is Coding.ZSTD
                    continue
                with pytest.raises(errors.PackDigestError, match=pack.digest):
                    Pack.from_bytes(damaged, digest=pack.digest)

    def test_digest(self, data: bytes) -> None:
        digest = Pack.from_bytes(data).digest
        assert Pack.from_bytes(data, digest=digest).digest == digest
        with pytest.raises(errors.PackDigestError, match="another model"):
            Pack.from_bytes(data, digest="0" * 64)

    def test_versions(self, data: bytes) -> None:
        def sealed(edit: Any) -> bytes:
            head = bytearray(data[: header_size(data) - 4])
            edit(head)
            return bytes(head) + struct.pack("<I", zlib.crc32(head)) + data[len(head) + 4 :]

        with pytest.raises(errors.UnsupportedPackError, match="version"):
            Pack.from_bytes(sealed(lambda head: head.__setitem__(4, 2)))
        newer = sealed(lambda head: head.__setitem__(5, 1))
        assert Pack.from_bytes(newer) == Pack.from_bytes(data)
        with pytest.raises(errors.CorruptPackError, match="coding"):
            Pack.from_bytes(sealed(lambda head: head.__setitem__(8, 2)))

        def newer_coding(head: bytearray) -> None:
            head[5], head[8] = 1, 9

        with pytest.raises(errors.UnsupportedPackError, match="coding"):
            Pack.from_bytes(sealed(newer_coding))

    @pytest.mark.parametrize(
        ("key", "value", "error"),
        [
            ("arithmetic", "INT-2", errors.UnsupportedPackError),
            ("kind", "oracle", errors.UnsupportedPackError),
            ("kind", ["basis"], errors.UnsupportedPackError),
            ("id", "../up", errors.CorruptPackError),
            ("id", "A", errors.CorruptPackError),
            ("id", "", errors.CorruptPackError),
            ("id", "0" * 64, errors.CorruptPackError),
            ("id", 3, errors.CorruptPackError),
            ("grid", "xyz", errors.CorruptPackError),
            ("licence", None, errors.CorruptPackError),
            ("variables", {}, errors.CorruptPackError),
            ("variables", [{}], errors.CorruptPackError),
            ("variables", [{"short_name": "t", "colour": "red"}], errors.CorruptPackError),
            ("variables", [{"short_name": 3}], errors.CorruptPackError),
            ("rates", [1], errors.CorruptPackError),
            ("training", [], errors.CorruptPackError),
            ("network", 1 << 63, errors.CorruptPackError),
            ("network", "\ud800", errors.CorruptPackError),
            ("network", json.loads("[" * 40 + "]" * 40), errors.CorruptPackError),
            ("network", "x" * (1 << 18), errors.PackSizeError),
            ("surprise", 1, errors.CorruptPackError),
        ],
    )
    def test_manifest(self, data: bytes, key: str, value: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="manifest"):
            Pack.from_bytes(rebuilt(data, lambda manifest, _: manifest.__setitem__(key, value)))
        with pytest.raises(error, match="manifest"):
            write_pack({**MANIFEST, key: value}, {})

    @pytest.mark.parametrize(
        "text",
        [b"", b"{", b"[]", b"3", b"\xff", b"NaN", b"1e999", b"[" * 100_000, b"1" * 5000, b'"\\ud800"'],
    )
    def test_no_manifest(self, text: bytes) -> None:
        with pytest.raises(errors.CorruptPackError, match="manifest"):
            Pack.from_bytes(packs.write_file((Coding.STORED, text), []))

    @pytest.mark.parametrize(
        ("entry", "error"),
        [
            ({"name": ""}, errors.CorruptPackError),
            ({"name": "a/b"}, errors.CorruptPackError),
            ({"dtype": "int64"}, errors.CorruptPackError),
            ({"dtype": ["int8"]}, errors.CorruptPackError),
            ({"shape": []}, errors.CorruptPackError),
            ({"shape": [0]}, errors.CorruptPackError),
            ({"shape": [True]}, errors.CorruptPackError),
            ({"shape": [1] * 6}, errors.CorruptPackError),
            ({"shape": [1 << 62, 1 << 62]}, errors.PackSizeError),
            ({"shape": [1 << 24]}, errors.PackSizeError),
            ({"shape": [1 << 20]}, errors.CorruptPackError),
            ({"range": [0]}, errors.CorruptPackError),
            ({"range": [5, 4]}, errors.CorruptPackError),
            ({"range": [-129, 0]}, errors.CorruptPackError),
            ({"more": 1}, errors.CorruptPackError),
        ],
    )
    @pytest.mark.parametrize("name", ["weights.0", "pattern", "rows", "bias"])
    def test_entries(self, data: bytes, entry: dict[str, Any], error: type[Exception], name: str) -> None:
        def edit(manifest: Any, payloads: Any) -> None:
            manifest["tensors"][sorted(tensors()).index(name)].update({"dtype": "int8"} | entry)

        with pytest.raises(error, match="tensor"):
            Pack.from_bytes(rebuilt(data, edit))

    @pytest.mark.parametrize("name", sorted(tensors()))
    def test_weights_out_of_range(self, data: bytes, name: str) -> None:
        values = tensors()[name]

        def edit(manifest: Any, payloads: Any) -> None:
            low, high = int(values.min()), int(values.max())
            manifest["tensors"][sorted(tensors()).index(name)]["range"] = (
                [low, high - 1] if low < high else [1, 1]
            )

        with pytest.raises(errors.WeightRangeError, match=name):
            Pack.from_bytes(rebuilt(data, edit))

    def test_narrower_dtype(self) -> None:
        data = write_pack(MANIFEST, {"t": np.arange(0, 4000, 7, dtype=np.int32)})
        for dtype in ("int8", "uint8"):

            def edit(manifest: Any, payloads: Any, dtype: str = dtype) -> None:
                manifest["tensors"][0]["dtype"] = dtype

            with pytest.raises(errors.WeightRangeError):
                Pack.from_bytes(rebuilt(data, edit))

    def test_few_bytes_hold_few_values(self) -> None:
        for coding in (2, 3, 4):
            entry = {"name": "t", "dtype": "int8", "shape": [(1 << 15) * 3 + 1]}
            manifest = plain(Pack.from_bytes(write_pack(MANIFEST, {})).manifest) | {"tensors": [entry]}
            text = packs.canonical_json(manifest)
            with pytest.raises(errors.CorruptPackError, match="values in 2 bytes"):
                Pack.from_bytes(packs.write_file((Coding.STORED, text), [(Coding(coding), b"ab")]))

    def test_codes_that_end_early(self) -> None:
        values = np.random.default_rng(0).integers(-100, 100, (64, 8), dtype=np.int32)
        coded = _core.encode_weights(values)
        with pytest.raises(_core.CorruptDataError):
            _core.decode_weights(coded[:100], np.empty_like(values), -128, 127)

    def test_random_bytes(self) -> None:
        rng = np.random.default_rng(0)
        out = np.empty((16, 16), np.int32)
        for n in range(200):
            with pytest.raises(_core.CorruptDataError):
                _core.decode_weights(rng.bytes(3 * n % 500), out, -128, 127)

    def test_too_many_bytes(self, data: bytes) -> None:
        with pytest.raises(errors.PackSizeError, match="4194304"):
            Pack.from_bytes(data + bytes(1 << 22))


class TestWriter:
    @pytest.mark.parametrize("dtype", ["int64", "uint16", "float32", "bool"])
    def test_dtypes(self, dtype: str) -> None:
        with pytest.raises(errors.PackError, match=dtype):
            write_pack(MANIFEST, {"t": np.zeros(3, dtype)})

    def test_shapes(self) -> None:
        for shape in ((), (0, 3), (1,) * 6):
            with pytest.raises(errors.PackError, match="shape"):
                write_pack(MANIFEST, {"t": np.zeros(shape, np.int8)})

    def test_ranges(self) -> None:
        with pytest.raises(errors.WeightRangeError, match="weights in"):
            write_pack(MANIFEST, {"t": np.arange(9, dtype=np.int8)}, ranges={"t": (0, 7)})
        with pytest.raises(errors.PackError, match="ranges"):
            write_pack(MANIFEST, {}, ranges={"t": (0, 7)})

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32(1), {1, 2}, {1: 2, "1": 3}])
    def test_values_that_json_lacks(self, value: Any) -> None:
        with pytest.raises(errors.PackError, match="manifest"):
            write_pack({**MANIFEST, "network": value}, {})

    def test_missing_fields(self) -> None:
        with pytest.raises(errors.PackError, match="licence"):
            write_pack({"id": "a", "kind": "basis"}, {})
        with pytest.raises(errors.PackError, match=r"manifest\.tensors"):
            write_pack({**MANIFEST, "tensors": []}, {})

    def test_too_large(self) -> None:
        noise = np.random.default_rng(0).integers(-(2**31), 2**31, 1 << 20, dtype=np.int32)
        with pytest.raises(errors.PackSizeError, match="at most 4194304"):
            write_pack(MANIFEST, {"t": noise})

    def test_no_torch(self) -> None:
        code = "import sys, aesz_codec.zoo, aesz_codec.train.packing; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class TestSteps:
    """A least-squares problem: coarser weights cost residual bytes, and the second tensor hardly matters."""

    weights = {  # noqa: RUF012
        "a": np.random.default_rng(1).standard_normal((16, 16)),
        "b": 1e-3 * np.random.default_rng(2).standard_normal((16, 16)),
        "zero": np.zeros((4, 4)),
    }

    def cost(self, quantized: Any) -> int:
        inputs = np.random.default_rng(3).standard_normal((200, 16))
        error = sum(
            inputs @ (quantized[name].values - values)
            for name, values in self.weights.items()
            if name != "zero"
        )
        return int(np.log2(1 + 100 * np.abs(error)).sum() / 8)

    def total(self, found: dict[str, QuantizedTensor], uses: float) -> float:
        size = sum(len(coded_tensor(t.codes.astype(np.int8))[1]) for t in found.values())
        return size + uses * self.cost(found)

    def test_total_bytes_fall(self) -> None:
        steps = {}
        for uses in (0.1, 1, 100):
            choice = choose_steps(self.weights, self.cost, uses=uses)
            finest = {
                n: QuantizedTensor(np.rint(v / s).astype(np.int32), s)
                for n, v in self.weights.items()
                for s in [2 ** (np.ceil(2 * np.log2(np.abs(v).max() / 127)) / 2) if v.any() else 1.0]
            }
            assert choice.sample_bytes == self.cost(choice.tensors)
            total = choice.weight_bytes + uses * choice.sample_bytes
            assert total == pytest.approx(self.total(dict(choice.tensors), uses))
            assert total <= self.total(finest, uses)
            assert all(np.abs(t.codes).max() <= 127 for t in choice.tensors.values())
            assert choice.evaluations < 200
            steps[uses] = choice.tensors["a"].step
        assert steps[100] <= steps[1] <= steps[0.1] and steps[100] < steps[0.1]

    def test_powers_of_two(self) -> None:
        choice = choose_steps(self.weights, self.cost, per_octave=1, bits=6)
        assert all(np.log2(t.step).is_integer() for t in choice.tensors.values())
        assert all(np.abs(t.codes).max() <= 31 for t in choice.tensors.values())

    def test_tensors_without_use_become_zero(self) -> None:
        choice = choose_steps({"a": self.weights["a"]}, lambda tensors: 100)
        assert not choice.tensors["a"].codes.any()

    def test_bad_arguments(self) -> None:
        with pytest.raises(errors.PackError, match="NaN"):
            choose_steps({"a": np.array([1.0, np.nan])}, lambda tensors: 0)
        for bad in ({"bits": 1}, {"bits": 17}, {"uses": -1.0}, {"per_octave": 0}):
            with pytest.raises(errors.PackError, match="choose_steps"):
                choose_steps(self.weights, self.cost, **bad)


def test_benchmark(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import weights

    path = tmp_path / "a.aeszpack"
    path.write_bytes(data)
    assert weights.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + len(tensors()) and lines[-1].startswith("| test-1 | all tensors")
    assert weights.main([str(tmp_path / "none.aeszpack")]) == 2
