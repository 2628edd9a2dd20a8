"""Block autoencoders: the same integers everywhere, seams and edges, side information, bad packs, training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from aesz_codec.autoencoder import Autoencoder, Description, joined, tiled
from aesz_codec.errors import (
    AESZError,
    CorruptStreamError,
    InvalidConfigError,
    InvalidModelError,
    ModelInputError,
    ModelKindError,
    WeightRangeError,
)
from aesz_codec.packs import Pack, plain
from aesz_codec.train.packing import write_pack


def small(block=(4, 8), latents=3, seed=0, **changes):
    """A sound, untrained model: patches in, a linear layer and a convolution out."""
    rng = np.random.default_rng(seed)
    dims, size = len(block), int(np.prod(block))
    tensors = {
        "e.weight": rng.integers(-40, 41, (latents, 1, *block)).astype(np.int8),
        "e.bias": rng.integers(-99, 99, latents).astype(np.int32),
        "d0.weight": rng.integers(-100, 101, (size, latents)).astype(np.int8),
        "d0.bias": np.zeros(size, np.int32),
        "d0.shift": np.full(size, 5, np.uint8),
        "d1.weight": rng.integers(-20, 21, (1, 1, *(3,) * dims)).astype(np.int8),
        "d1.bias": np.array([7], np.int32),
    }
    network = {
        "block": list(block),
        "encoder": {
            "arithmetic": "INT-1",
            "input": {"channels": 1, "dims": dims},
            "layers": [{"type": "conv", "weight": "e.weight", "bias": "e.bias", "pad": 0}],
        },
        "encoder_shift": 8,
        "decoder": {
            "arithmetic": "INT-1",
            "input": {"channels": latents, "dims": 0},
            "layers": [
                {"type": "linear", "weight": "d0.weight", "bias": "d0.bias", "shift": "d0.shift"},
                {"type": "reshape", "shape": [*block, 1]},
                {"type": "conv", "weight": "d1.weight", "bias": "d1.bias", "padding": "replicate"},
            ],
        },
        "decoder_shift": 12,
    }
    manifest = {"id": "small", "kind": "autoencoder", "licence": "CC0-1.0", "network": {**network, **changes}}
    return Pack.from_bytes(write_pack(manifest, tensors))


def field(shape, seed=0):
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    waves = sum(
        np.sin(sum(k * a for k, a in zip(rng.normal(0, 0.3, len(shape)), axes, strict=True)) + p)
        for p in range(5)
    )
    return (273 + 10 * waves + 0.1 * rng.normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("block", "shape"), [((4, 8), (13, 21)), ((4, 8), (3, 8, 9)), ((4, 4, 8), (5, 4, 17)), ((8,), (3, 30))]
)
def test_predictions_are_what_the_page_says(block, shape):
    model = Autoencoder.from_pack(small(block))
    values = field(shape)
    described = model.describe(values, 0.25, 2)
    predicted = model.predict(described, shape)
    assert predicted.dtype == np.int64 and predicted.shape == shape
    again = Description.from_bytes(described.to_bytes(), len(described.means), model.latents)
    np.testing.assert_array_equal(model.predict(again, shape), predicted)

    blocks = np.empty((len(described.means), *block), np.int64)
    for i, (m, c, z) in enumerate(zip(described.means, described.scales, described.latents, strict=True)):
        y = model.decoder(np.clip(z.astype(np.int64) << 2, -511, 511), backend="numpy")[..., 0].astype(
            np.int64
        )
        s = 12 - 7 - int(c)
        y = (y + (1 << s >> 1)) >> s if s > 0 else y << -s
        blocks[i] = (int(m) << 8) + (y if c else 0)
    lead = len(shape) - len(block)
    at = itertools.product(*map(range, model.blocks(shape)))
    expected = np.empty(
        tuple(-(-n // b) * b for n, b in zip(shape, (1,) * lead + block, strict=True)), np.int64
    )
    for number, corner in enumerate(at):
        expected[
            tuple(slice(c * b, (c + 1) * b) for c, b in zip(corner, (1,) * lead + block, strict=True))
        ] = blocks[number]
    np.testing.assert_array_equal(predicted, expected[tuple(map(slice, shape))])


def test_a_block_is_described_by_itself():
    """Seams: what is in other blocks changes nothing, and edges are padded with the last values."""
    model = Autoencoder.from_pack(small())
    values = field((12, 24))
    whole = model.predict(model.describe(values, 0.5), values.shape)
    np.testing.assert_array_equal(
        model.predict(model.describe(values[4:8, 8:16], 0.5), (4, 8)), whole[4:8, 8:16]
    )
    cropped = values[:10, :19]
    padded = np.pad(cropped, ((0, 2), (0, 5)), mode="edge")
    described = model.describe(cropped, 0.5)
    np.testing.assert_array_equal(described.latents, model.describe(padded, 0.5).latents)
    np.testing.assert_array_equal(
        model.predict(described, (10, 19)), model.predict(described, (12, 24))[:10, :19]
    )


@pytest.mark.parametrize(("shape", "block"), [((5, 9), (4, 4)), ((2, 3, 7, 5), (2, 4)), ((6,), (4,))])
def test_tiles_come_back(shape, block):
    values = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(joined(tiled(values, block), shape), values)


def test_flat_blocks_are_their_means_and_cost_no_latents():
    model = Autoencoder.from_pack(small())
    values = np.full((8, 64), 41.0)
    described = model.describe(values, 0.5)
    assert not described.scales.any() and not described.latents.any()
    np.testing.assert_array_equal(model.predict(described, values.shape), 82 * 256)
    assert len(described.to_bytes()) < 20
    nothing = model.describe(np.empty((0, 8)), 1.0)
    assert model.predict(nothing, (0, 8)).shape == (0, 8)
    assert len(Description.from_bytes(nothing.to_bytes(), 0, 3).means) == 0


def test_predictions_of_extremes_stay_exact():
    model = Autoencoder.from_pack(small(decoder_shift=0))
    described = Description(
        np.array([2**31 - 1, -(2**31) + 1], np.int32),
        np.array([30, 30], np.uint8),
        np.full((2, 3), 2048, np.int32),
        8,
    )
    assert np.abs(model.predict(described, (8, 8))).max() < 2**52


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"means": np.zeros(3, np.int32)}, "shapes"),
        ({"scales": np.array([1, 31], np.uint8)}, "scales"),
        ({"latents": np.full((2, 3), 5000, np.int32)}, "latents"),
        ({"coarseness": 9}, "coarseness"),
    ],
)
def test_descriptions_out_of_range_are_refused(change, text):
    model = Autoencoder.from_pack(small())
    sound = {
        "means": np.zeros(2, np.int32),
        "scales": np.ones(2, np.uint8),
        "latents": np.zeros((2, 3), np.int32),
    }
    with pytest.raises(ModelInputError, match=text):
        model.predict(Description(**{**sound, **change}), (8, 8))
    with pytest.raises(ModelInputError, match="2 blocks"):
        model.predict(Description(**sound), (8, 24))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_cannot_be_described(value):
    model = Autoencoder.from_pack(small())
    values = field((8, 8)).astype(np.float64)
    values[2, 3] = value
    with pytest.raises(ModelInputError, match="values"):
        model.describe(values, 1e-3)
    with pytest.raises(ModelInputError, match="step"):
        model.describe(field((8, 8)), 0.0)
    with pytest.raises(ModelInputError, match="axes"):
        model.describe(np.zeros(8), 1.0)


def test_damaged_side_information_never_gets_past():
    model = Autoencoder.from_pack(small())
    values = field((16, 40))
    described = model.describe(values, 0.5, 1)
    data = described.to_bytes()
    for end in range(len(data)):
        with pytest.raises(CorruptStreamError):
            Description.from_bytes(data[:end], 20, 3)
    for at, bit in itertools.product(range(len(data)), range(8)):
        broken = bytearray(data)
        broken[at] ^= 1 << bit
        try:
            model.predict(Description.from_bytes(bytes(broken), 20, 3), values.shape)
        except (CorruptStreamError, ModelInputError):
            continue
    with pytest.raises(CorruptStreamError, match="values in"):
        Description.from_bytes(data, 1 << 40, 3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"block": [4]}, "inputs of"),
        ({"block": [4, 4]}, "network"),
        ({"block": [4, 4096]}, "lengths"),
        ({"block": "4, 8"}, "lengths"),
        ({"decoder_shift": 25}, "decoder_shift"),
        ({"encoder_shift": True}, "encoder_shift"),
        ({"encoder": {"arithmetic": "INT-1"}}, "encoder"),
        ({"extra": 1}, "keys"),
    ],
)
def test_bad_packs_are_refused(change, text):
    pack = small()
    with pytest.raises(InvalidModelError, match=text):
        Autoencoder.load({**plain(pack.manifest["network"]), **change}, pack.tensors)


def test_packs_of_another_kind_and_swapped_networks():
    pack = small()
    network = plain(pack.manifest["network"])
    with pytest.raises(InvalidModelError):
        Autoencoder.load(
            {**network, "encoder": network["decoder"], "decoder": network["encoder"]}, pack.tensors
        )
    other = {"id": "x", "kind": "basis", "licence": "CC0-1.0"}
    with pytest.raises(ModelKindError, match="basis"):
        Autoencoder.from_pack(Pack.from_bytes(write_pack(other, {"a": np.zeros(3, np.int8)})))
    assert issubclass(WeightRangeError, AESZError)


# ---- training: torch ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    pytest.importorskip("torch")
    from aesz_codec.train.autoencoder import fit, sample

    values = np.stack([field((40, 48), seed) for seed in range(6)])
    blocks = sample(values, (8, 8), 400, np.random.default_rng(0))
    return blocks, fit(blocks, latents=4, steps=30)


def test_integers_equal_their_twin_in_torch(fitted):
    torch = pytest.importorskip("torch")
    from aesz_codec.train.integers import to_torch

    _, result = fitted
    model = Autoencoder.load(result.network, result.tensors)
    rng = np.random.default_rng(1)
    codes = rng.integers(-511, 512, (50, 4))
    expected = model.decoder(codes.astype(np.int16))
    np.testing.assert_array_equal(to_torch(model.decoder)(torch.from_numpy(codes)).numpy(), expected)
    np.testing.assert_array_equal(model.decoder(codes, backend="numpy"), expected)
    inputs = rng.integers(-511, 512, (50, 8, 8, 1))
    np.testing.assert_array_equal(
        to_torch(model.encoder)(torch.from_numpy(inputs)).numpy(), model.encoder(inputs.astype(np.int16))
    )


def test_a_trained_model_explains_what_it_has_not_seen(fitted):
    result = fitted[1]
    assert result.explained > 0.5 * result.linear > 0.3
    model = Autoencoder.load(result.network, result.tensors)
    values = field((40, 48), 17)
    errors = []
    for coarseness in (0, 3, 6):
        described = model.describe(values, 0.5, coarseness)
        error = values - model.predict(described, values.shape) * (0.5 / 256)
        errors.append(float((error**2).mean()))
    assert errors[0] < 0.7 * values.var() and errors[0] <= errors[1] * 1.05 <= errors[2] * 1.1


def test_the_same_blocks_and_seed_give_the_same_integers(fitted):
    from aesz_codec.train.autoencoder import fit

    blocks, result = fitted
    again = fit(blocks, latents=4, steps=30)
    assert again.network == result.network
    assert all(np.array_equal(again.tensors[name], tensor) for name, tensor in result.tensors.items())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    xarray = pytest.importorskip("xarray")
    path = tmp_path_factory.mktemp("data") / "waves.nc"
    values = np.stack([field((24, 40), seed) for seed in range(10)])
    values[0, :3, :3] = np.nan
    xarray.Dataset({"t": (("time", "y", "x"), values)}).to_netcdf(path)
    return path


def test_the_command_trains_a_pack(file, tmp_path, capsys):
    pytest.importorskip("torch")
    from aesz_codec.cli import main

    out = tmp_path / "w.aeszpack"
    arguments = ["train", "autoencoder", str(file), "--out", str(out), "--id", "w", "--licence", "CC0-1.0"]
    arguments += ["--block", "8,8", "--latents", "4", "--samples", "400", "--bound", "range_rel=1e-2"]
    assert main([*arguments, "--steps", "20"]) == 0
    text = capsys.readouterr().out
    assert "principal components" in text and "waves.nc:t" in text and "digest" in text
    pack = Pack.from_file(out)
    assert Autoencoder.from_pack(pack).block == (8, 8)
    assert list(pack.manifest["training"]["data"]) == ["waves.nc"] and len(pack.manifest["rates"]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["w.aeszpack"]
    assert main([*arguments, "--steps", "0"]) == 2
    assert "--steps" in capsys.readouterr().err
    arguments[arguments.index("8,8")] = "9,8"
    assert main(arguments) == 2
    assert "multiples of 4" in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.nan, 3.5])
def test_nothing_to_learn_from(tmp_path, value):
    pytest.importorskip("torch")
    xarray = pytest.importorskip("xarray")
    from aesz_codec.train.autoencoder import train

    path = tmp_path / "flat.nc"
    xarray.Dataset({"v": (("t", "y", "x"), np.full((20, 40, 40), value, np.float32))}).to_netcdf(path)
    with pytest.raises(InvalidModelError, match="NaN, or constant"):
        train([path], tmp_path / "x.aeszpack", id="x", licence="CC0-1.0")
    assert [p.name for p in tmp_path.iterdir()] == ["flat.nc"]


@pytest.mark.parametrize(
    ("change", "text"),
    [({"variables": ["q"]}, "q"), ({"latents": 65}, "latents"), ({"block": (32, 34)}, "multiples of 4")],
)
def test_bad_requests_are_refused(file, tmp_path, change, text):
    pytest.importorskip("torch")
    from aesz_codec.train.autoencoder import train

    with pytest.raises(InvalidConfigError, match=text):
        train([file], tmp_path / "x.aeszpack", id="x", licence="CC0-1.0", **change)
    assert not list(tmp_path.iterdir())


# ---- the comparison ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(13, 21), (6, 9, 11)])
def test_mixtures_of_the_benchmark_can_be_decoded(shape):
    """Autoencoder, then Lorenzo value by value, then interpolation: the decoded values are those of the encoder."""
    pytest.importorskip("matplotlib")
    from benchmarks import autoencoders as compared

    model = Autoencoder.from_pack(small((4,) * len(shape)))
    values = field(shape)
    values[tuple(slice(2, 5) for _ in shape)] = np.nan
    piece = compared.Piece(values, 0.05, model, 1)
    choice = np.random.default_rng(0).integers(0, 3, piece.grid)
    codes, _, decoded = piece.mixture(choice)
    assert piece.violations(decoded) == 0

    of_block = np.broadcast_to(choice.reshape(*piece.grid, *(1,) * len(shape)), (*piece.grid, *model.block))
    method = joined(of_block, shape)
    found = np.where(piece.valid & (method == compared.AE), piece.predicted + codes, piece.predicted)
    there = piece.valid & (method == compared.AE)
    whole = np.rint(found)
    for at in np.ndindex(*shape):
        if method[at] == compared.LORENZO:
            window = tuple(slice(max(0, i - 1), i + 1) for i in at)
            here = tuple(min(1, i) for i in at)
            guess = compared.lorenzo(whole[window], there[window], piece.base)[here]
            found[at] = whole[at] = guess + codes[at]
            there[at] = piece.valid[at]
    mine = method == compared.INTERPOLATION
    compared.interpolate(None, piece.valid, mine, piece.predicted.copy(), found, piece.base, codes)
    np.testing.assert_array_equal(found, decoded)
