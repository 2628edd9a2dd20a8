"""Integer networks: the native core on every instruction set, NumPy and torch give the same integers; nothing else loads."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aesz_codec import _core
from aesz_codec.errors import AESZError, InvalidModelError, ModelInputError, UnsupportedModelError
from aesz_codec.nets import LIMIT, Dense, Network

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
    x = sample(network, 1000 if dims < 3 else 60)
    out = equal_everywhere(network, x)
    assert out.shape == (len(x), *[32] * dims, 1)


def test_accumulators_next_to_the_limit():
    """Sums of 2^24 - 1, which no machine may round."""
    weight = np.array([[2047, 2047, 2047, 2055 % 2048], [-2047, 2047, 0, 1]])
    bias = np.array([LIMIT - 1 - 511 * (3 * 2047 + 7), -(LIMIT - 1 - 511 * (2 * 2047 + 1))])
    description = {
        "arithmetic": "INT-1",
        "input": {"channels": 4},
        "layers": [{"type": "linear", "weight": "w", "bias": "b"}],
    }
    network = Network.load(description, {"w": weight, "b": bias})
    signs = np.array(list(itertools.product([-511, 511, 510], repeat=4)), np.int16)
    out = equal_everywhere(network, signs)
    assert out.max() == LIMIT - 1 and out.min() == -(LIMIT - 1)
    torch_integers = pytest.importorskip("aesz_codec.train.integers")
    torch = pytest.importorskip("torch")
    assert np.array_equal(torch_integers.to_torch(network)(torch.from_numpy(signs)).numpy(), out)
    for change in (1, -1):
        with pytest.raises(InvalidModelError, match="16777216"):
            Network.load(description, {"w": weight, "b": bias + [1 * (change > 0), -1 * (change < 0)]})


def test_known_answer_and_pickle():
    description, tensors = decoder(40)
    network = Network.load(description, tensors)
    assert network.known_answer() == network.known_answer("numpy")
    described = {**description, "known_answer": network.known_answer()}
    again = pickle.loads(pickle.dumps(Network.load(described, tensors)))
    x = sample(network, 9)
    assert np.array_equal(again(x), network(x))
    assert again.description == described
    assert set(again.tensors) == set(tensors)
    with pytest.raises(InvalidModelError, match="known_answer"):
        Network.load({**description, "known_answer": "0" * 64}, tensors)
    big = Network.load(*stack(50, 2, (2, 3)))  # windows that need more than 16
    assert big.known_input().dtype == np.int16
    assert (network.known_input() == network.input.lo).any() and (
        network.known_input() == network.input.hi
    ).any()


def test_the_answer_of_the_specification():
    """SplitMix64 as docs/networks.md has it, in Python integers."""
    network = Network.load(*mlp(60, (3, 4, 1)))
    mask = 2**64 - 1
    flat = []
    for j in range(network.known_input().size):
        z = (j + 1) * 0x9E3779B97F4A7C15 & mask
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        z ^= z >> 31
        flat.append({0: -511, 1: 511}.get(z >> 61, -511 + z % 1023))
    assert network.known_input().ravel().tolist() == flat


GOOD = mlp(70, (5, 6, 2))


def changed(**changes: Any) -> dict[str, Any]:
    """Return the description of GOOD with other keys in its first layer; None removes one."""
    description = copy.deepcopy(GOOD[0])
    description["layers"][0].update(changes)
    description["layers"][0] = {k: v for k, v in description["layers"][0].items() if v is not None}
    return description


def headed(**changes: Any) -> dict[str, Any]:
    return {**GOOD[0], **changes}


BAD = [
    ("an object", [], InvalidModelError),
    ("arithmetic", headed(arithmetic="INT-2"), UnsupportedModelError),
    ("arithmetic", {"layers": []}, InvalidModelError),
    ("input", headed(input=5), InvalidModelError),
    ("channels", headed(input={}), InvalidModelError),
    ("channels", headed(input={"channels": True}), InvalidModelError),
    ("channels", headed(input={"channels": 10**5000}), InvalidModelError),
    ("dims", headed(input={"channels": 5, "dims": 4}), InvalidModelError),
    ("bits", headed(input={"channels": 5, "bits": 13}), InvalidModelError),
    ("signed", headed(input={"channels": 5, "signed": 1}), InvalidModelError),
    ("depth", headed(input={"channels": 5, "depth": 1}), InvalidModelError),
    ("layers", headed(layers=[]), InvalidModelError),
    ("layers", headed(layers=GOOD[0]["layers"] * 200), InvalidModelError),
    ("layers", headed(layers="linear"), InvalidModelError),
    ("extra", headed(extra=1), InvalidModelError),
    ("known_answer", headed(known_answer=7), InvalidModelError),
    ("type", changed(type="attention"), UnsupportedModelError),
    ("type", changed(type=None), InvalidModelError),
    ("type", changed(type=["linear"]), UnsupportedModelError),
    ("stride", changed(stride=1), InvalidModelError),
    ("activation", changed(activation="gelu"), InvalidModelError),
    ("slope", changed(activation="leaky", slope=0), InvalidModelError),
    ("slope", changed(activation="leaky", slope=None), InvalidModelError),
    ("slope", changed(activation="relu", slope=3), InvalidModelError),
    ("bits", changed(bits=7), InvalidModelError),
    ("bits", changed(bits=10.0), InvalidModelError),
    ("'conv'", changed(type="conv"), InvalidModelError),
    ("weight", changed(weight="nothing"), InvalidModelError),
    ("weight", changed(weight=["t0"]), InvalidModelError),
    ("shape", changed(weight="t3"), InvalidModelError),
    ("shape", changed(bias="t0"), InvalidModelError),
    ("shift", changed(shift="t1"), InvalidModelError),
    ("'linear' after", changed(shift=None, activation=None, bits=None, slope=None), InvalidModelError),
    ("factor", headed(layers=[{"type": "pixel_shuffle", "factor": 1}]), InvalidModelError),
    ("reshape|layers", headed(layers=[{"type": "reshape", "shape": [2, 3]}]), InvalidModelError),
    ("layers", headed(layers=[{"type": "reshape", "shape": [5]}]), InvalidModelError),
    ("with", headed(layers=[{"type": "add", "with": 0}]), InvalidModelError),
    ("with", headed(layers=[{"type": "add", "with": -2}]), InvalidModelError),
    ("scale", headed(layers=[{"type": "add", "with": -1, "scale": [9, 0]}]), InvalidModelError),
    ("table", headed(layers=[{"type": "table", "table": "t0"}]), InvalidModelError),
    ("norm_shift|weight", headed(layers=[{"type": "gdn", "weight": "t0"}]), InvalidModelError),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_descriptions_that_are_refused(case):
    what, description, error = BAD[case]
    with pytest.raises(error, match=what):
        Network.load(description, GOOD[1])


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("t0", np.full((6, 5), 2048)),
        ("t0", np.full((6, 5), -(2**60))),
        ("t0", np.full((6, 5), 1.0)),
        ("t0", [[1]]),
        ("t0", np.zeros((6, 5), bool)),
        ("t0", np.zeros((6, 4), int)),
        ("t0", np.zeros((0, 5), int)),
        ("t1", np.full(6, 2**24)),
        ("t1", np.full(6, 2**63, np.uint64)),
        ("t2", np.full(6, 0)),
        ("t2", np.full(6, 21)),
        ("t2", np.full((6, 1), 5)),
    ],
)
def test_tensors_that_are_refused(name, tensor):
    with pytest.raises(InvalidModelError, match=r"layers\[0\]"):
        Network.load(GOOD[0], {**GOOD[1], name: tensor})


def test_what_could_overflow_is_refused():
    description, tensors = GOOD
    for name, tensor in tensors.items():
        for o in range(len(tensor)):
            if tensor.ndim == 2:
                more = tensor.copy()
                more[o, 0] += np.sign(more[o, 0]) * (LIMIT // 255 // 2) if abs(more[o, 0]) < 2000 else 0
                with pytest.raises(InvalidModelError):
                    Network.load(description, {**tensors, name: np.clip(more * 100, -2047, 2047)})
    gdn = {"type": "gdn", "weight": "g", "bias": "b", "norm_shift": "v", "shift": "k"}
    described = {"arithmetic": "INT-1", "input": {"channels": 2}, "layers": [gdn]}
    sound = {"g": np.full((2, 2), 2047), "b": np.full(2, 1000), "v": np.full(2, 7), "k": np.full(2, 9)}
    equal_everywhere(Network.load(described, sound), sample(Network.load(described, sound), 1000))
    for name, value in [("b", LIMIT - 1), ("v", 1), ("g", -1), ("k", 0), ("b", -1)]:
        with pytest.raises(InvalidModelError):
            Network.load(described, {**sound, name: np.full_like(sound[name], value)})
    for layer in (
        lambda: _core.Dense(
            np.full((1, 1, 9000), 2047, np.int16), np.zeros(1, np.int32), None, 1023, 0, 0, 0
        ),
        lambda: _core.Dense(
            np.ones((1, 1, 1), np.int16), np.full(1, 2**31 - 1, np.int32), None, 1023, 0, 0, 0
        ),
        lambda: _core.Dense(
            np.ones((1, 1, 1), np.int16), np.zeros(1, np.int32), np.zeros(1, np.uint8), 9, -1, 1, 0
        ),
        lambda: _core.Dense(np.ones((1, 1, 1), np.int16), np.zeros(1, np.int32), None, 1023, -9999, 0, 0),
    ):
        with pytest.raises(ValueError):
            layer()


def test_inputs_that_are_refused():
    network = Network.load(*STACKS[2][0])
    sound = sample(network, 2, (9, 9))
    for x in (
        sound[..., :0],
        sound[0, 0],
        sound.astype(float),
        sound.astype(bool),
        sound[:, :0],
        sound[0, :, 0],
    ):
        for backend in ("native", "numpy"):
            with pytest.raises(ModelInputError):
                network(x, backend)
    for value in (512, -512, 2**40):
        with pytest.raises(ModelInputError, match="511"):
            network(np.full((1, 9, 9, 1), value))
    with pytest.raises(ModelInputError, match="backend"):
        network(sound, "torch")
    with pytest.raises(InvalidModelError, match="linear"):
        network.mlp()
    assert network(sound[:0]).shape[0] == 0
    with pytest.raises(ValueError):
        Network.load(*GOOD).mlp().run(np.full((1, 6), 9999, np.int16), np.zeros((1, 2), np.int32))
    with pytest.raises(ValueError):
        Network.load(*GOOD).mlp().run(np.zeros((2, 6), np.int16), np.zeros((1, 2), np.int32))


def test_tensors_that_grow_are_refused():
    """Every layer alone is harmless; together they would take terabytes."""
    wide = {"w": np.zeros((4096, 1, 1), int), "b": np.zeros(4096, int), "s": np.ones(4096, int)}
    layer = {"type": "conv", "weight": "w", "bias": "b", "shift": "s"}
    layers = [layer] + [{"type": "pixel_shuffle", "factor": 8}] * 4
    head = {"arithmetic": "INT-1", "input": {"channels": 1, "dims": 1}}
    network = Network.load({**head, "layers": layers}, wide)
    assert network(np.zeros((3, 1), int)).shape == (3 * 4096, 1)
    twice = Network.load({**head, "layers": layers * 2}, wide)
    with pytest.raises(ModelInputError, match="entries"):
        twice(np.zeros((1000, 1), int))


def test_extents_that_differ_are_refused():
    description, tensors = stack(80, 2, (2, 2, 2), extras=False)
    description["layers"][0] |= {"stride": 2, "pad": 0}
    description["layers"].insert(1, {"type": "add", "with": -1})
    amax = amax_of(description["layers"][0])
    assert amax <= 4095
    description["layers"][1]["activation"] = "clamp"
    tensors[description["layers"][2]["weight"]] //= 8
    tensors[description["layers"][2]["bias"]] //= 8
    with pytest.raises(ModelInputError, match="layer 1"):
        Network.load(description, tensors)(np.zeros((30, 30, 2), int))


def test_any_damage_gives_a_typed_error():
    """Random changes anywhere in a description: a network or an error of this package."""
    rng = np.random.default_rng(4)
    values: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        2,
        99,
        10**30,
        1.5,
        "",
        "t0",
        "relu",
        [],
        [1, 2],
        {},
        [[0, 0]],
        {"type": "add"},
    ]

    def spoil(value: Any) -> Any:
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = str(rng.choice(list(value)))
            if rng.random() < 0.1:
                return {k: v for k, v in value.items() if k != key}
            return {**value, key: spoil(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.9:
            i = int(rng.integers(len(value)))
            return [*value[:i], spoil(value[i]), *value[i + 1 :]]
        return values[int(rng.integers(len(values)))]

    cases = [decoder(41, 2), stack(42, 2, (2, 5, 4, 1)), stack(43, 1, (2, 5, 4, 1)), mlp(44, (3, 4, 2))]
    loaded = 0
    for i in range(2000):
        description, tensors = cases[i % len(cases)]
        try:
            network = Network.load(spoil(description), tensors)
            x = sample(network, 2, (20,) * network.input.dims)
            network(x)
            loaded += 1
        except AESZError:
            pass
    assert loaded > 20


def test_many_threads():
    """One network and one Mlp, called by one thread and by four at once."""
    description, tensors = decoder(45)
    network, points = Network.load(description, tensors), Network.load(*MLPS[0])
    xs = [sample(network, 20, seed=i) for i in range(16)]
    ps = [sample(points, 999, seed=i) for i in range(16)]
    mlps = points.mlp()

    def run(i: int) -> bytes:
        out = np.empty((len(ps[i]), 2), np.int32)
        mlps.run(ps[i], out)
        return network(xs[i]).tobytes() + points(ps[i]).tobytes() + out.tobytes()

    expected = [run(i) for i in range(16)]
    for workers in (1, 4):
        with ThreadPoolExecutor(workers) as pool:
            assert list(pool.map(run, [*range(16)] * 3)) == expected * 3


def test_without_simd():
    """A process that is told to use none gives the same known answers."""
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from test_nets import MLPS, STACKS, Network
for case in [*MLPS, *(case for case, _ in STACKS)]:
    print(Network.load(*case).known_answer())
"""
    folder = str(Path(__file__).parent)

    def run(simd: str) -> str:
        env = {**os.environ, "AESZ_SIMD": simd}
        out = subprocess.run(
            [sys.executable, "-c", script, folder], env=env, capture_output=True, text=True, check=True
        )
        return out.stdout

    answers = [Network.load(*case).known_answer("numpy") for case in [*MLPS, *(case for case, _ in STACKS)]]
    assert run("0").split() == run("1").split() == answers


def test_the_base_package_does_not_load_torch():
    script = """
import sys
import aesz_codec, aesz_codec.nets, aesz_codec.codec, aesz_codec.pipeline, aesz_codec.encoding, aesz_codec.cli
aesz_codec.AESZ(1e-3)
assert not [name for name in sys.modules if name.split(".")[0] == "torch"], "torch"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- torch -----------------------------------------------------------------------------------------------------


def test_torch_gives_the_same_integers():
    torch = pytest.importorskip("torch")
    integers = pytest.importorskip("aesz_codec.train.integers")
    torch.set_num_threads(1)
    for case in MLPS:
        network = Network.load(*case)
        x = sample(network, 1000)
        assert np.array_equal(integers.to_torch(network)(torch.from_numpy(x)).numpy(), network(x))
    cases = [(case, (1000, *[(17,), (7, 9), (5, 4, 6)][dims - 1])) for case, dims in STACKS]
    cases += [(decoder(46, 2), (1000,)), (decoder(47, 3), (30,))]
    for case, shape in cases:
        network = Network.load(*case)
        x = sample(network, shape[0], shape[1:])
        for dtype in (torch.float32, torch.float64):
            some = x if dtype == torch.float32 else x[:50]
            module = integers.to_torch(network, dtype=dtype)
            with torch.autocast("cpu", dtype=torch.bfloat16), torch.backends.mkldnn.flags(enabled=False):
                part = module(torch.from_numpy(some[:40])).numpy()
            out = module(torch.from_numpy(some)).numpy()
            assert np.array_equal(out, network(some)) and np.array_equal(part, out[:40])


def float_stacks(torch: Any, integers: Any) -> list[tuple[list[Any], Any, float]]:
    """Return float layers, calibration inputs and the step of the inputs."""
    nn = torch.nn
    torch.manual_seed(3)
    codes = torch.randint(-511, 512, (256, 30))
    pixels = torch.randint(-511, 512, (12, 2, 20, 24))
    return [
        (
            [nn.Linear(30, 48), nn.ReLU(), nn.Linear(48, 32), nn.LeakyReLU(0.25), nn.Linear(32, 2)],
            codes,
            1 / 128,
        ),
        ([nn.Linear(30, 8)], codes, 0.01),
        (
            [
                nn.Conv2d(2, 16, 3, padding=1, padding_mode="replicate"),
                nn.ReLU(),
                nn.Conv2d(16, 12, 5, padding=2),
                nn.PixelShuffle(2),
                nn.LeakyReLU(0.125),
                nn.Conv2d(3, 1, 3, padding="same", padding_mode="circular"),
            ],
            pixels,
            1 / 64,
        ),
        (
            [
                nn.Linear(30, 8 * 16),
                nn.Unflatten(1, (8, 4, 4)),
                integers.IGDN1(8),
                nn.Conv2d(8, 24, 3, padding=1),
                nn.PixelShuffle(2),
                integers.IGDN1(6),
                nn.Conv2d(6, 4, 3, padding=1),
                nn.PixelShuffle(2),
            ],
            codes,
            1 / 128,
        ),
        (
            [
                nn.Conv3d(2, 8, (1, 3, 3), stride=(1, 2, 1), padding=(0, 1, 1)),
                nn.ReLU(),
                nn.Conv3d(8, 8, 2),
                integers.Shuffle(2, 2, 2),
                nn.Conv3d(1, 3, 1),
            ],
            torch.randint(-511, 512, (6, 2, 5, 8, 9)),
            1 / 256,
        ),
        (
            [nn.Conv1d(2, 9, 7, padding=3), nn.ReLU(), nn.Conv1d(9, 1, 3)],
            torch.randint(-511, 512, (9, 2, 50)),
            1.0,
        ),
    ]


@pytest.mark.parametrize("case", range(6))
def test_exported_layers(case):
    """Close to the float layers; and the integers that training saw, before and after fine-tuning."""
    torch = pytest.importorskip("torch")
    integers = pytest.importorskip("aesz_codec.train.integers")
    torch.set_num_threads(1)
    torch.manual_seed(case)
    layers, codes, step = float_stacks(torch, integers)[case]
    bits = 10 if case == 2 else 12  # wide windows of 12 bits would leave few for the weights
    stack = integers.IntegerStack.from_float(layers, codes, input_step=step, bits=bits)
    wished = torch.nn.Sequential(*layers)(codes * step).detach()
    error = (stack(codes.float()).detach() - wished).std() / wished.std()
    assert error < 0.05

    def check() -> None:
        seen = stack.codes(codes.float()).detach()
        exported = stack.export()
        network = Network.load(exported.description, exported.tensors)
        x = codes.movedim(1, -1).numpy().astype(np.int16)
        out = equal_everywhere(network, np.ascontiguousarray(x))
        assert np.array_equal(out, seen.movedim(1, -1).numpy())
        for layer in network.layers:
            if isinstance(layer, Dense):
                total = abs(layer.weight.astype(int)).reshape(len(layer.weight), -1).sum(1) * layer.amax
                assert (total + abs(layer.bias.astype(int))).max() < integers.AIM * 2

    check()
    optimizer = torch.optim.Adam(stack.parameters(), 1e-3)
    target = wished + 0.1 * wished.std()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = ((stack(codes.float()) - target) ** 2).mean()
        loss.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in stack.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses) < losses[0]
    check()


def test_layers_that_cannot_be_exported():
    torch = pytest.importorskip("torch")
    integers = pytest.importorskip("aesz_codec.train.integers")
    nn = torch.nn
    codes = torch.randint(-511, 512, (9, 4))
    pixels = torch.randint(-511, 512, (9, 4, 6, 6))
    for layers, x in [
        ([], codes),
        ([nn.ReLU(), nn.Linear(4, 4)], codes),
        ([nn.Linear(4, 4), nn.ReLU()], codes),
        ([nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)], codes),
        ([nn.Linear(4, 4), nn.LeakyReLU(0.3), nn.Linear(4, 4)], codes),
        ([nn.Linear(6, 4)], pixels),
        ([nn.Conv2d(4, 4, 3, groups=2)], pixels),
        ([nn.Conv2d(4, 4, 3, dilation=2)], pixels),
        ([nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")], pixels),
        ([nn.Linear(4, 4), integers.IGDN1(4)], codes),
    ]:
        with pytest.raises(InvalidModelError, match="layers|slope"):
            integers.quantize(layers, x)
