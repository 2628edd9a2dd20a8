"""Bytes of the weight coder of model packs against int8 + zstd-19, and DeepCABAC where ``nncodec`` is installed.

Run as ``python -m benchmarks.weights PACK...``; prints a Markdown table, one row a tensor, and one a pack.  All columns
code the same integers without loss:

- raw: bytes of the integers;
- zstd-19: of the same bytes, in the narrowest dtype that holds the tensor;
- DeepCABAC: ``encodeLayer`` of nncodec (ISO/IEC 15938-17) with 11 greater-than flags and adapted parameters, rows along
  the first axis as in that standard, a stream for each tensor, without its high-level syntax;
  ``pip install --no-deps nncodec`` is enough for it;
- coder: the weight coder of docs/packs.md, section 5, on plain weights; ours: what the pack holds (the smallest coding).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import zstandard

from aesz_codec import _core
from aesz_codec.errors import PackError
from aesz_codec.packs import Pack, Tensor, pack_sections

COLUMNS = ("raw", "zstd-19", "DeepCABAC", "coder", "ours")


def zstd_bytes(tensor: Tensor) -> int:
    narrow = next(
        dtype
        for dtype in (np.int8, np.uint8, np.int16, np.int32)
        if np.iinfo(dtype).min <= tensor.min() and tensor.max() <= np.iinfo(dtype).max
    )
    compressor = zstandard.ZstdCompressor(level=19, write_content_size=False)
    return len(compressor.compress(tensor.astype(narrow).tobytes()))


def coder_bytes(tensor: Tensor) -> int:
    return len(_core.encode_weights(np.ascontiguousarray(tensor, np.int32).reshape(-1, tensor.shape[-1])))


def deepcabac() -> Callable[[Tensor], int] | None:
    """Return what counts the bytes of DeepCABAC, or None without nncodec."""
    try:
        native = importlib.import_module("nncodec.extensions.deepCABAC")
    except ImportError:
        return None

    def count(tensor: Tensor) -> int:
        encoder = native.Encoder()
        encoder.initCtxModels(10, 1)  # unary length - 1, adapted parameters
        channels = np.zeros(tensor.shape[0], np.int32)
        off = (native.HdspMode.AlwaysOff, np.zeros(2, np.int8))
        encoder.encodeLayer(np.ascontiguousarray(tensor, np.int32), 0, 0, 0, 0, 0, channels, *off, 0, 0)
        return len(encoder.finish().tobytes())

    return count


def measure(pack: Pack, peer: Callable[[Tensor], int] | None) -> list[tuple[str, str, list[int | None]]]:
    """Return name, dtype and shape, and bytes by column: of each tensor, then of all."""
    stored = {name: (coding, size) for name, coding, size in pack_sections(pack)}
    rows: list[tuple[str, str, list[int | None]]] = []
    for name, tensor in pack.tensors.items():
        coding, ours = stored[name]
        sizes = [tensor.nbytes, zstd_bytes(tensor), peer(tensor) if peer else None, coder_bytes(tensor), ours]
        rows.append(
            (name, f"{tensor.dtype.name} {'x'.join(map(str, tensor.shape))} {coding.name.lower()}", sizes)
        )
    columns = zip(*(sizes for _, _, sizes in rows), strict=True)
    total = [None if None in column else sum(column) for column in columns] or [0] * len(COLUMNS)
    return [*rows, ("all tensors", "", total)]


def table(packs: Sequence[Pack], peer: Callable[[Tensor], int] | None, totals: bool = False) -> str:
    lines = [
        f"| pack | tensor | | {' | '.join(COLUMNS)} | ours / zstd-19 |",
        "|---|---|---|" + "---:|" * 6,
    ]
    for pack in packs:
        for name, kind, sizes in measure(pack, peer)[-1 if totals else 0 :]:
            shown = " | ".join("-" if size is None else str(size) for size in sizes)
            zstd, ours = sizes[1], sizes[-1]
            ratio = f"{ours / zstd:.3f}" if zstd and ours is not None else "-"
            lines.append(f"| {pack.id} | {name} | {kind} | {shown} | {ratio} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__.split("\n")[0])
    parser.add_argument("packs", nargs="+", type=Path, metavar="PACK", help="files *.aeszpack")
    parser.add_argument("--totals", action="store_true", help="one row a pack")
    options = parser.parse_args(arguments)
    try:
        packs = [Pack.from_file(path) for path in options.packs]
    except PackError as error:
        print(f"benchmarks.weights: error: {error}", file=sys.stderr)
        return 2
    print(table(packs, deepcabac(), options.totals))
    return 0


if __name__ == "__main__":
    sys.exit(main())
