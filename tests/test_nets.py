"""Integer networks: the native core on every instruction set, NumPy and torch give the same integers; nothing else loads."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from aesz_codec import _core
from aesz_codec.nets import LIMIT, Network

LEVELS = range(len(_core.network_levels()))
Case = tuple[dict[str, Any], dict[str, np.ndarray]]


class Maker:
    """Random networks: weights as large as the L1 rule allows, in a random share of the outputs just below it."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, np.ndarray] = {}
        self.layers: list[dict[str, Any]] = []

    def name(self, tensor: np.ndarray) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = tensor
        return name

    def dense(self, outputs: int, amax: int, shape: tuple[int, ...], raw: bool) -> dict[str, Any]:
        """Return weights, biases and shifts, as large as they may be."""
        rng = self.rng
        size = int(np.prod(shape))
        shift = rng.integers(1, 21, outputs)
        room = (LIMIT - 1 - (0 * shift if raw else 1 << (shift - 1))) // amax
        weight = np.zeros((outputs, size), np.int64)
        for o in range(outputs):
            w = rng.integers(-2047, 2048, size) if rng.random() < 0.5 else rng.integers(-127, 128, size)
            if abs(w).sum() > room[o]:
                w = (w * (room[o] / abs(w).sum())).astype(np.int64)
            weight[o] = w
        left = LIMIT - 1 - abs(weight).sum(1) * amax - (0 * shift if raw else 1 << (shift - 1))
        bias = rng.choice([-1, 1], outputs) * np.where(rng.random(outputs) < 0.5, left, left // 1000)
        entry = {"weight": self.name(weight.reshape(outputs, *shape)), "bias": self.name(bias)}
        if not raw:
            entry["shift"] = self.name(shift)
            entry["activation"] = str(rng.choice(["clamp", "relu", "leaky"]))
            entry["bits"] = int(rng.integers(8, 13))
            if entry["activation"] == "leaky":
                entry["slope"] = int(rng.integers(1, 9))
        return entry


def amax_of(layer: dict[str, Any]) -> int:
    bits = layer.get("bits", 10)
    return 2**bits - 1 if layer.get("activation") == "relu" else 2 ** (bits - 1) - 1


def mlp(seed: int, widths: tuple[int, ...], bits: int = 10, raw: bool = True) -> Case:
    make = Maker(seed)
    amax = 2 ** (bits - 1) - 1
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        entry = make.dense(after, amax, (before,), raw and i == len(widths) - 2)
        make.layers.append({"type": "linear", **entry})
        amax = amax_of(entry)
    head = {"channels": widths[0], "bits": bits}
    return {"arithmetic": "INT-1", "input": head, "layers": make.layers}, make.tensors


def stack(seed: int, dims: int, channels: tuple[int, ...], extras: bool = True) -> Case:
    """Return convolutions of all kinds, with layers of the other types between."""
    make = Maker(seed)
    rng = make.rng
    amax, bits = 511, 10
    for i, (before, after) in enumerate(itertools.pairwise(channels)):
        kernel = tuple(int(k) for k in rng.choice([1, 2, 3, 5], dims))
        entry = make.dense(after, amax, (before, *kernel), raw=i == len(channels) - 2)
        entry["padding"] = [str(p) for p in rng.choice(["zero", "replicate", "circular"], dims)]
        if rng.random() < 0.3:
            entry["stride"] = [int(s) for s in rng.integers(1, 4, dims)]
        if rng.random() < 0.3:
            entry["pad"] = [[int(a), int(b)] for a, b in rng.integers(0, 4, (dims, 2))]
        make.layers.append({"type": "conv", **entry})
        amax, bits = amax_of(entry), entry.get("bits", 10)
        if not extras or i == len(channels) - 2:
            continue
        kind = rng.choice(["gdn", "add", "table", "linear"])
        signed = entry["activation"] != "relu"
        if kind == "gdn":
            weight = rng.integers(0, 2048, (after, after))
            weight = (weight * np.minimum(1, (LIMIT // 2 // amax) / weight.sum(1, keepdims=True))).astype(int)
            bias = rng.integers(0, LIMIT // 4, after)
            norm = weight.sum(1) * amax + bias
            low = np.ceil(np.log2((norm + 1) * amax / (LIMIT / 2))).astype(int).clip(0, 20)
            extra = {
                "weight": make.name(weight),
                "bias": make.name(bias),
                "norm_shift": make.name(low),
                "shift": make.name(rng.integers(8, 16, after)),
            }
        elif kind == "add":
            extra = {
                "with": len(make.layers) - 1,
                "scale": [int(n) for n in rng.integers(0, 4, 2)],
                "shift": 3,
            }
        elif kind == "table":
            size = 2**bits if not signed else 2**bits - 1
            extra = {"table": make.name(rng.integers(-511, 512, size))}
        else:
            extra = make.dense(after, amax, (after,), raw=False)
        make.layers.append({"type": str(kind), **extra})
        amax = amax_of(extra)
    head = {"channels": channels[0], "dims": dims}
    return {"arithmetic": "INT-1", "input": head, "layers": make.layers}, make.tensors


def decoder(seed: int, dims: int = 2, width: int = 12) -> Case:
    """Return the decoder of an autoencoder: a latent, three up-convolutions with gdn, raw pixels."""
    make = Maker(seed)
    amax, channels = 511, width
    entry = make.dense(4**dims * channels, amax, (7,), raw=False)
    make.layers += [{"type": "linear", **entry}, {"type": "reshape", "shape": [4] * dims + [channels]}]
    for after in (width, 5, 1):
        amax = amax_of(make.layers[0]) if len(make.layers) == 2 else 511
        entry = make.dense(after * 2**dims, amax, (channels, *[3] * dims), raw=after == 1)
        make.layers += [{"type": "conv", **entry}, {"type": "pixel_shuffle", "factor": 2}]
        channels = after
        if after > 1:
            amax = amax_of(entry)
            weight = make.rng.integers(0, 60, (after, after))
            make.layers.append(
                {
                    "type": "gdn",
                    "weight": make.name(weight),
                    "bias": make.name(make.rng.integers(0, 100000, after)),
                    "norm_shift": make.name(np.full(after, 14)),
                    "shift": make.name(make.rng.integers(1, 6, after)),
                }
            )
    return {"arithmetic": "INT-1", "input": {"channels": 7}, "layers": make.layers}, make.tensors


def sample(network: Network, count: int, spatial: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    """Return inputs, extremes among them: all lowest, all highest, random signs of them, small and any values."""
    rng = np.random.default_rng(seed)
    lo, hi = network.input.lo, network.input.hi
    x = rng.integers(lo, hi + 1, (count, *spatial, network.input.channels))
    kind = rng.integers(0, 5, (count,) + (1,) * (x.ndim - 1))
    x = np.where(kind == 1, np.where(x > 0, hi, lo), x)
    x = np.where(kind == 2, np.clip(x // 64, lo, hi), x)
    x[0], x[1] = lo, hi
    return x.astype(np.int16)


MLPS = [
    mlp(1, (32, 32, 16, 2)),
    mlp(2, (30, 48, 32, 1)),
    mlp(3, (20, 16, 16, 4), bits=8),
    mlp(4, (47, 33, 17, 3), bits=12),
    mlp(5, (1, 1, 1), bits=9),
    mlp(6, (3, 70, 5), raw=False),
    mlp(7, (13, 9)),
]
STACKS = [(stack(10 + s, dims, channels), dims) for s, (dims, channels) in enumerate(
    [
        (1, (1, 8, 3)),
        (1, (5, 17, 4, 2)),
        (2, (1, 16, 16, 3)),
        (2, (4, 20, 32, 1)),
        (2, (3, 9, 6, 5, 2)),
        (3, (1, 8, 6, 1)),
        (3, (2, 5, 33)),
    ]
)]  # fmt: skip


def equal_everywhere(network: Network, x: np.ndarray) -> np.ndarray:
    """Evaluate in NumPy and on every instruction set; return the result, which is the same."""
    expected = network(x, "numpy")
    assert np.array_equal(network(x), expected)
    axes = network.input.dims + 1
    items = int(np.prod(x.shape[: x.ndim - axes], dtype=int))
    for level in LEVELS:
        out = np.empty_like(expected)
        network._built(level).run(x, items, list(x.shape[x.ndim - axes : -1]), out)
        assert np.array_equal(out, expected), _core.network_levels()[level]
    return expected


@pytest.mark.parametrize("case", range(len(MLPS)))
def test_points(case):
    network = Network.load(*MLPS[case])
    x = sample(network, 1200)
    expected = equal_everywhere(network, x)
    assert network.input.channels == 1 or len(np.unique(expected)) > 5
    for count in (0, 1, 2, 3, 5, 31, 33):
        assert np.array_equal(network(x[:count]), expected[:count])
    assert np.array_equal(network(x.reshape(3, 400, -1)), expected.reshape(3, 400, -1))
    padded = np.full((len(x), -(-x.shape[1] // 2) * 2), -32768, np.int16)  # padding is never looked at
    padded[:, : x.shape[1]] = x
    for level in LEVELS:
        layers = [layer.packed() for layer in network.layers]
        out = np.empty_like(expected)
        _core.Mlp(layers, network.input.lo, network.input.hi, level).run(padded, out)
        assert np.array_equal(out, expected)
        for count in (1, 2, 3, 7, 15, 37):
            some = np.empty_like(expected[:count])
            _core.Mlp(layers, network.input.lo, network.input.hi, level).run(padded[:count], some)
            assert np.array_equal(some, expected[:count])


@pytest.mark.parametrize("case", range(len(STACKS)))
def test_tensors(case):
    (description, tensors), dims = STACKS[case]
    network = Network.load(description, tensors)
    count, extents = [(1000, (17,)), (1000, (7, 9)), (1000, (5, 4, 6))][dims - 1]
    equal_everywhere(network, sample(network, count, extents))
    wide = [(301,), (45, 131), (9, 10, 67)][dims - 1]
    equal_everywhere(network, sample(network, 2, wide, seed=1))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_decoders(dims):
    network = Network.load(*decoder(30 + dims, dims))
    x = sample(network, 1000 if dims < 3 else 200)
    out = equal_everywhere(network, x)
    assert out.shape == (len(x), *[32] * dims, 1)
