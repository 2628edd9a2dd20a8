"""Integer networks: validated when they are loaded, the same integers on every machine (``docs/networks.md``, INT-1).

::

    description, tensors --load--> Network --call--> int32        native core: the norm for speed
                                     |                            NumPy int64: the written reference
                                     +-mlp()--> for loops of the native core

A `Network` cannot overflow: `Network.load` refuses weights for which some input could (the L1 rule).  Nothing here reads
floats, and torch is not imported; `aesz_codec.train.integers` makes networks from trained layers and evaluates them in torch.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import InvalidModelError, ModelInputError, UnsupportedModelError

__all__ = ["ARITHMETIC", "LIMIT", "Form", "Network"]

ARITHMETIC = "INT-1"
LIMIT = 1 << 24
"""What sums stay below in magnitude."""

_MAX_CHANNELS = 65536
_MAX_LAYERS = 256
_MAX_GROWTH, _MAX_SMALL = (
    4096,
    65536,
)  # entries of a layer: this many times those of the input, and this many besides
_MAX_KNOWN_LENGTH = 256
_KNOWN_ITEMS = (64, 16, 4, 1)  # for 0 to 3 spatial axes

Integers = npt.NDArray[Any]  # int64
Array = npt.NDArray[Any]
Extents = tuple[int, ...]  # of the spatial axes


@dataclass(frozen=True, slots=True)
class Form:
    """What a network knows of a tensor beforehand.

    Attributes
    ----------
    channels, dims : int
        Entries of the last axis; spatial axes before it.
    lo, hi : int
        Range of the values.
    raw : bool
        Whether they are sums as they are; then the range is that of sums.
    """

    channels: int
    dims: int
    lo: int
    hi: int
    raw: bool = False

    @property
    def amax(self) -> int:
        """Largest magnitude of a value."""
        return max(-self.lo, self.hi)


@dataclass(frozen=True, slots=True)
class Activation:
    """What becomes of a shifted sum: a negative one loses `slope` more bits, then all are clamped (section 3)."""

    lo: int
    hi: int
    slope: int = 0

    def __call__(self, v: Integers) -> Integers:
        return np.clip(np.where(v < 0, v >> self.slope, v) if self.slope else v, self.lo, self.hi)


class Layer(Protocol):
    """A layer that is known to be sound."""

    def extents(self, before: Extents) -> Extents:
        """Return the extents after the layer; an entry below 1 means that the input is too small."""

    def evaluate(self, x: Integers, tensors: Sequence[Integers]) -> Integers:
        """Evaluate the layer, in int64; `tensors` are the network's input and the results of all layers before."""

    def build(self, network: _core.Network) -> None:
        """Add the layer to a network of the native core."""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Layers ``linear`` and ``conv``: sums of products over channels and, for ``conv``, over a window.

    Attributes
    ----------
    weight : int16, shape (outputs, inputs, *kernel)
    bias : int32, shape (outputs,)
    shift : uint8, shape (outputs,), or None
        None: the sums are the result.
    activation : Activation
    amax : int
        Largest magnitude of an input.
    stride : tuple of int; pad : tuple of (int, int); padding : tuple of str
        One entry for each axis of the window.
    """

    weight: npt.NDArray[np.int16]
    bias: npt.NDArray[np.int32]
    shift: npt.NDArray[np.uint8] | None
    activation: Activation
    amax: int
    conv: bool = False
    stride: tuple[int, ...] = ()
    pad: tuple[tuple[int, int], ...] = ()
    padding: tuple[str, ...] = ()

    def extents(self, before: Extents) -> Extents:
        """Return the extents after the layer."""
        if not self.conv:
            return before
        kernel = self.weight.shape[2:]
        return tuple(
            (n + sum(pad) - k) // stride + 1
            for n, k, stride, pad in zip(before, kernel, self.stride, self.pad, strict=True)
        )

    def evaluate(self, x: Integers, tensors: Sequence[Integers]) -> Integers:
        """Evaluate the layer."""
        kernel = self.weight.shape[2:]
        axes = len(kernel)
        out = self.extents(x.shape[x.ndim - 1 - axes : -1]) if self.conv else ()
        for i, (pad, how) in enumerate(zip(self.pad, self.padding, strict=True)):
            widths = [(0, 0)] * x.ndim
            widths[x.ndim - 1 - axes + i] = pad
            mode: Any = {"zero": "constant", "replicate": "edge", "circular": "wrap"}[how]
            x = np.pad(x, widths, mode=mode)
        total: Integers | None = None
        weight = self.weight.astype(np.int64)
        for tap in itertools.product(*map(range, kernel)):
            window: Any = tuple(
                slice(t, t + (n - 1) * stride + 1, stride)
                for t, n, stride in zip(tap, out, self.stride, strict=True)
            )
            here: Any = (slice(None), slice(None), *tap)
            part = x[(..., *window, slice(None))] @ weight[here].T
            total = part if total is None else total + part
        assert total is not None
        total = total + self.bias
        if self.shift is None:
            return total
        shift = self.shift.astype(np.int64)
        return self.activation((total + (1 << (shift - 1))) >> shift)

    def packed(self) -> _core.Dense:
        """Return the weights as the native core has them."""
        outputs, _, *kernel = self.weight.shape
        runs = math.prod(kernel[:-1])
        rows = np.moveaxis(self.weight, 1, -1).reshape(outputs, runs, -1)  # channels last
        lo, hi, slope = self.activation.lo, self.activation.hi, self.activation.slope
        return _core.Dense(np.ascontiguousarray(rows), self.bias, self.shift, self.amax, lo, hi, slope)

    def build(self, network: _core.Network) -> None:
        """Add the layer to a network of the native core."""
        if not self.conv:
            return network.linear(self.packed())
        modes = [["zero", "replicate", "circular"].index(how) for how in self.padding]
        kernel = list(self.weight.shape[2:])
        network.conv(self.packed(), kernel, list(self.stride), [n for pair in self.pad for n in pair], modes)


@dataclass(frozen=True, slots=True)
class Reshape:
    """Layer ``reshape``: channels become spatial axes and channels."""

    shape: tuple[int, ...]

    def extents(self, before: Extents) -> Extents:
        """Return the extents after the layer."""
        return self.shape[:-1]

    def evaluate(self, x: Integers, tensors: Sequence[Integers]) -> Integers:
        """Evaluate the layer."""
        return x.reshape(*x.shape[:-1], *self.shape)

    def build(self, network: _core.Network) -> None:
        """Add the layer to a network of the native core."""
        network.reshape(list(self.shape))


@dataclass(frozen=True, slots=True)
class PixelShuffle:
    """Layer ``pixel_shuffle``: channels become finer spatial axes."""

    factor: tuple[int, ...]

    def extents(self, before: Extents) -> Extents:
        """Return the extents after the layer."""
        return tuple(n * f for n, f in zip(before, self.factor, strict=True))

    def evaluate(self, x: Integers, tensors: Sequence[Integers]) -> Integers:
        """Evaluate the layer."""
        dims = len(self.factor)
        items, spatial = x.shape[: x.ndim - 1 - dims], x.shape[x.ndim - 1 - dims : -1]
        first = len(items)
        x = x.reshape(*items, *spatial, *self.factor, -1)
        order = [axis for i in range(dims) for axis in (first + i, first + dims + i)]
        x = x.transpose(*range(first), *order, first + 2 * dims)
        return x.reshape(*items, *self.extents(spatial), -1)

    def build(self, network: _core.Network) -> None:
        """Add the layer to a network of the native core."""
        network.pixel_shuffle(list(self.factor))


@dataclass(frozen=True, slots=True, eq=False)
class GDN:
    """Layer ``gdn``: every value times a weighted sum of all magnitudes at its point."""

    weight: npt.NDArray[np.int16]
    bias: npt.NDArray[np.int32]
    norm_shift: npt.NDArray[np.uint8]
    shift: npt.NDArray[np.uint8]
    activation: Activation
    amax: int

    def extents(self, before: Extents) -> Extents:
        """Return the extents after the layer."""
        return before

    def evaluate(self, x: Integers, tensors: Sequence[Integers]) -> Integers:
        """Evaluate the layer."""
        norm = abs(x) @ self.weight.astype(np.int64).T + self.bias
        shift = self.shift.astype(np.int64)
        return self.activation((x * (norm >> self.norm_shift.astype(np.int64)) + (1 << (shift - 1))) >> shift)

    def build(self, network: _core.Network) -> None:
        """Add the layer to a network of the native core."""
        sums = _core.Dense(self.weight[:, None, :].copy(), self.bias, None, self.amax, 0, 0, 0)
        network.gdn(sums, self.norm_shift, self.shift, self.activation.lo, self.activation.hi)


@dataclass(frozen=True, slots=True)
class Add:
    """Layer ``add``: the sum with an earlier tensor, 0 being the network's input and i + 1 the result of layer i."""

    tensor: int
    scale: tuple[int, int]
    shift: int
    activation: Activation

    def extents(self, before: Extents) -> Extents:
        """Return the extents after the layer."""
        return before

    def evaluate(self, x: Integers, tensors: Sequence[Integers]) -> Integers:
        """Evaluate the layer."""
        half = (1 << self.shift) >> 1
        v = (x << self.scale[0]) + (tensors[self.tensor] << self.scale[1]) + half
        return self.activation(v >> self.shift)

    def build(self, network: _core.Network) -> None:
        """Add the layer to a network of the native core."""
        lo, hi, slope = self.activation.lo, self.activation.hi, self.activation.slope
        network.add(self.tensor, *self.scale, self.shift, lo, hi, slope)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Layer ``table``: every value is looked up."""

    table: npt.NDArray[np.int16]
    lowest: int
    lo: int
    hi: int

    def extents(self, before: Extents) -> Extents:
        """Return the extents after the layer."""
        return before

    def evaluate(self, x: Integers, tensors: Sequence[Integers]) -> Integers:
        """Evaluate the layer."""
        out: Integers = self.table.astype(np.int64)[x - self.lowest]
        return out

    def build(self, network: _core.Network) -> None:
        """Add the layer to a network of the native core."""
        network.table(self.table, self.lo, self.hi)


class Network:
    """A network of integers, made by `Network.load`; immutable, may be used by many threads at once.

    Attributes
    ----------
    input, output : Form
        What it takes and gives.
    layers : tuple
        `Dense`, `Reshape`, `PixelShuffle`, `GDN`, `Add` and `Table`.

    Examples
    --------
    >>> description = {
    ...     "arithmetic": "INT-1",
    ...     "input": {"channels": 2},
    ...     "layers": [
    ...         {"type": "linear", "weight": "w", "bias": "b", "shift": "s", "activation": "relu"},
    ...         {"type": "linear", "weight": "v", "bias": "c"},
    ...     ],
    ... }
    >>> tensors = {
    ...     "w": np.array([[3, -1], [0, 2], [1, 1]]),
    ...     "b": np.array([0, 5, -5]),
    ...     "s": np.array([1, 1, 2]),
    ...     "v": np.array([[1, 1, 1]]),
    ...     "c": np.array([100]),
    ... }
    >>> Network.load(description, tensors)(np.array([[4, 1], [-4, 7]], np.int16))
    array([[110],
           [110]], dtype=int32)
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        tensors: Mapping[str, Array],
        layers: Sequence[Layer],
        forms: Sequence[Form],
    ) -> None:
        self._description = description
        self._tensors = dict(tensors)
        self.layers = tuple(layers)
        self.forms = tuple(forms)
        self.input, self.output = forms[0], forms[-1]
        self._native = self._built(-1)

    @classmethod
    def load(cls, description: Mapping[str, Any], tensors: Mapping[str, Array]) -> Network:
        """Validate a network and prepare it for evaluation.

        Parameters
        ----------
        description : mapping
            As in ``docs/networks.md``, section 2, from JSON.
        tensors : mapping of str to integer array
            At least those that the description names; values are copied.

        Raises
        ------
        UnsupportedModelError
            If the arithmetic or a layer is not known here.
        InvalidModelError
            If anything is missing, superfluous, of a wrong shape or out of its range; if some input could make a sum of 2^24
            or more; if there is a known answer and the native core gives another one.
        """
        reader = _Reader(description, "network", tensors)
        arithmetic = reader.any("arithmetic")
        if arithmetic != ARITHMETIC:
            raise UnsupportedModelError.at(
                "network.arithmetic",
                found=_short(arithmetic),
                expected=repr(ARITHMETIC),
                remedy="use a newer aesz-codec",
            )
        head = reader.mapping("input")
        lo, hi = _range(head.integer("bits", 8, 12, 10), head.flag("signed", True))
        forms = [Form(head.integer("channels", 1, _MAX_CHANNELS), head.integer("dims", 0, 3, 0), lo, hi)]
        head.done()
        entries = reader.any("layers")
        if not isinstance(entries, list | tuple) or not 1 <= len(entries) <= _MAX_LAYERS:
            raise InvalidModelError.at(
                "network.layers", found=_short(entries), expected=f"a list of 1 to {_MAX_LAYERS} layers"
            )
        layers: list[Layer] = []
        for i, entry in enumerate(entries):
            layer, form = _layer(_Reader(entry, f"network.layers[{i}]", tensors, reader.used), forms)
            layers.append(layer)
            forms.append(form)
        known = reader.any("known_answer", None)
        reader.done()
        network = cls(copy.deepcopy(dict(description)), reader.used, layers, forms)
        if known is not None:
            answer = network.known_answer()
            if known != answer:
                raise InvalidModelError.at(
                    "network.known_answer",
                    found=_short(known),
                    expected=f"{answer!r}, the digest of what the native core computes",
                    remedy="do not use this model here: it would decode to other values; report it",
                )
        return network

    def __call__(self, x: Array, backend: str = "native") -> npt.NDArray[np.int32]:
        """Evaluate the network.

        Parameters
        ----------
        x : integer array, shape (*items, *spatial, channels)
            Values within the range of `input`; no items axes are needed.
        backend : {"native", "numpy"}
            Both give the same integers.

        Returns
        -------
        int32, shape (*items, *spatial extents after the last layer, channels)

        Raises
        ------
        ModelInputError
            If the dtype, the shape or a value of `x` is not one that the network takes.
        """
        x = np.asarray(x)
        items, spatial = self._checked(x)
        shapes = self.shapes(spatial)
        if backend == "numpy":
            return self._evaluate(x.astype(np.int64)).astype(np.int32)
        if backend != "native":
            raise ModelInputError.at("backend", found=repr(backend), expected="'native' or 'numpy'")
        out = np.empty((*items, *shapes[-1]), np.int32)
        if out.size:
            self._native.run(np.ascontiguousarray(x, np.int16), math.prod(items), list(spatial), out)
        return out

    def shapes(self, spatial: Extents) -> list[tuple[int, ...]]:
        """Return the shapes of the input and of every layer's result, without items axes.

        Raises
        ------
        ModelInputError
            If an axis would be left without entries, or a layer would make far more entries than the input has.
        """
        shapes = [(*spatial, self.input.channels)]
        limit = _MAX_SMALL + _MAX_GROWTH * math.prod(shapes[0])
        for i, (layer, form) in enumerate(zip(self.layers, self.forms[1:], strict=True)):
            spatial = layer.extents(spatial)
            if any(n < 1 for n in spatial):
                raise ModelInputError.at(
                    "shape of the input",
                    found=str(shapes[0]),
                    expected="enough for a window",
                    remedy=f"see layer {i}",
                )
            shapes.append((*spatial, form.channels))
            if isinstance(layer, Add) and shapes[layer.tensor] != shapes[-1]:
                raise ModelInputError.at(
                    "shape of the input",
                    found=f"{shapes[0]}, of which layer {i} adds {shapes[layer.tensor]} and {shapes[-1]}",
                    expected="equal shapes there",
                )
            if math.prod(shapes[-1]) > limit:
                raise ModelInputError.at(
                    f"entries of layer {i}", found=str(math.prod(shapes[-1])), expected=f"at most {limit}"
                )
        return shapes

    def mlp(self) -> _core.Mlp:
        """Return the network for loops of the native core (``Mlp`` in ``native/networks.hpp``).

        Raises
        ------
        InvalidModelError
            If a layer is not ``linear``, or one but the last has more than 256 outputs.
        """
        layers = [layer for layer in self.layers if isinstance(layer, Dense) and not layer.conv]
        widest = max((layer.weight.shape[0] for layer in layers if layer.shift is not None), default=0)
        if len(layers) < len(self.layers) or self.input.dims or widest > _core.Mlp.max_width:
            raise InvalidModelError.at(
                "network",
                found=f"{len(self.layers)} layers, {len(layers)} of them linear, the widest of {widest} outputs",
                expected=f"linear layers of at most {_core.Mlp.max_width} outputs, no spatial axes",
            )
        return _core.Mlp([layer.packed() for layer in layers], self.input.lo, self.input.hi)

    def known_input(self) -> npt.NDArray[np.int16]:
        """Return the input of the known answer (``docs/networks.md``, section 6).

        Raises
        ------
        InvalidModelError
            If no length of up to 256 leaves something of every axis.
        """
        dims = self.input.dims
        length = 16
        while True:
            try:
                self.shapes((length,) * dims)
            except ModelInputError as error:
                if dims == 0 or length >= _MAX_KNOWN_LENGTH:
                    raise InvalidModelError(f"the network takes no input: {error}") from error
                length *= 2
            else:
                break
        shape = (_KNOWN_ITEMS[dims], *(length,) * dims, self.input.channels)
        z = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        lo, hi = self.input.lo, self.input.hi
        value = (z % np.uint64(hi - lo + 1)).astype(np.int64) + lo
        top = z >> np.uint64(61)
        return np.where(top == 0, lo, np.where(top == 1, hi, value)).astype(np.int16).reshape(shape)

    def known_answer(self, backend: str = "native") -> str:
        """Return the digest of what the network makes of `known_input`: 64 hexadecimal digits."""
        return hashlib.sha256(self(self.known_input(), backend).astype("<i4").tobytes()).hexdigest()

    def multiply_adds(self, spatial: Extents = ()) -> int:
        """Return how many multiplications with weights one item of these extents takes."""
        total = 0
        for layer, shape in zip(self.layers, self.shapes(spatial)[1:], strict=True):
            if isinstance(layer, Dense | GDN):
                total += math.prod(shape[:-1]) * layer.weight.size
        return total

    @property
    def description(self) -> dict[str, Any]:
        """A copy of the description."""
        return copy.deepcopy(dict(self._description))

    @property
    def tensors(self) -> dict[str, Array]:
        """The tensors that the description names, read-only."""
        return dict(self._tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        return Network.load, (self.description, self.tensors)

    def __repr__(self) -> str:
        return f"Network({len(self.layers)} layers, {self.input} -> {self.output})"

    def _checked(self, x: Array) -> tuple[tuple[int, ...], Extents]:
        """Return the items axes and the extents of an input that the network can take."""
        axes = self.input.dims + 1
        if x.dtype.kind not in "iu":
            raise ModelInputError.at("dtype of the input", found=str(x.dtype), expected="an integer dtype")
        if (
            x.ndim < axes
            or x.shape[-1] != self.input.channels
            or (self.input.dims and 0 in x.shape[-axes:-1])
        ):
            spatial = f"{self.input.dims} spatial axes and " if self.input.dims else ""
            raise ModelInputError.at(
                "shape of the input",
                found=str(x.shape),
                expected=f"(..., {spatial}{self.input.channels} channels)",
            )
        if x.size and (int(x.min()) < self.input.lo or int(x.max()) > self.input.hi):
            raise ModelInputError.at(
                "values of the input",
                found=f"{int(x.min())} to {int(x.max())}",
                expected=f"{self.input.lo} to {self.input.hi}",
                remedy="clamp them",
            )
        return x.shape[: x.ndim - axes], x.shape[x.ndim - axes : -1]

    def _evaluate(self, x: Integers) -> Integers:
        """Evaluate in int64, as the specification is written."""
        tensors = [x]
        for layer in self.layers:
            tensors.append(layer.evaluate(tensors[-1], tensors))
        return tensors[-1]

    def _built(self, level: int) -> _core.Network:
        """Return the network of the native core, with the loops of an instruction set (-1: the best)."""
        form = self.input
        network = _core.Network(form.channels, form.dims, form.lo, form.hi, level)
        for layer in self.layers:
            layer.build(network)
        return network


# ---- reading descriptions --------------------------------------------------------------------------------------


def _short(value: Any) -> str:
    try:
        text = reprlib.repr(value)
    except ValueError:  # integers of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _range(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class _Reader:
    """Reads an object of a description; `path` says where it is."""

    _missing: ClassVar[Any] = object()

    def __init__(
        self,
        entry: Any,
        path: str,
        tensors: Mapping[str, Array],
        used: dict[str, Array] | None = None,
    ) -> None:
        if not isinstance(entry, Mapping):
            raise InvalidModelError.at(path, found=_short(entry), expected="an object")
        self.path = path
        self.used: dict[str, Array] = {} if used is None else used
        self._entry = entry
        self._tensors = tensors
        self._seen: set[str] = set()

    def any(self, key: str, default: Any = _missing) -> Any:
        self._seen.add(key)
        if key in self._entry:
            return self._entry[key]
        if default is _Reader._missing:
            raise InvalidModelError.at(f"{self.path}.{key}", found="nothing", expected="a value")
        return default

    def has(self, key: str) -> bool:
        return key in self._entry

    def done(self) -> None:
        """Refuse keys that nothing has asked for."""
        unknown = sorted(map(str, set(self._entry) - self._seen))
        if unknown:
            raise InvalidModelError.at(
                self.path, found=f"the key {_short(unknown[0])}", expected=f"only {sorted(self._seen)}"
            )

    def mapping(self, key: str) -> _Reader:
        return _Reader(self.any(key), f"{self.path}.{key}", self._tensors, self.used)

    def integer(self, key: str, lo: int, hi: int, default: Any = _missing) -> int:
        return self._integer(self.any(key, default), key, lo, hi)

    def flag(self, key: str, default: bool) -> bool:
        value = self.any(key, default)
        if not isinstance(value, bool):
            raise InvalidModelError.at(f"{self.path}.{key}", found=_short(value), expected="true or false")
        return value

    def choice(self, key: str, among: Sequence[str], default: Any = _missing) -> str:
        return self._choice(self.any(key, default), key, among)

    def choices(self, key: str, count: int, among: Sequence[str], default: str) -> tuple[str, ...]:
        value = self.any(key, default)
        values = self._list(value, key, count) if isinstance(value, list | tuple) else [value] * count
        return tuple(self._choice(v, key, among) for v in values)

    def integers(self, key: str, count: int, lo: int, hi: int, default: Any = _missing) -> tuple[int, ...]:
        """Return `count` integers; one integer stands for as many."""
        value = self.any(key, default)
        values = self._list(value, key, count) if isinstance(value, list | tuple) else [value] * count
        return tuple(self._integer(v, key, lo, hi) for v in values)

    def pairs(
        self, key: str, default: Sequence[tuple[int, int]], lo: int, hi: int
    ) -> tuple[tuple[int, int], ...]:
        """Return a pair for every default one; one integer stands for all."""
        value = self.any(key, default)
        count = len(default)
        values = (
            self._list(value, key, count) if isinstance(value, list | tuple) else [[value, value]] * count
        )
        out = []
        for entry in values:
            first, second = self._list(entry, key, 2)
            out.append((self._integer(first, key, lo, hi), self._integer(second, key, lo, hi)))
        return tuple(out)

    def tensor(self, key: str, shape: tuple[int | None, ...], lo: int, hi: int, dtype: Any) -> Array:
        """Return a tensor of this shape, None being any length, whose values are all from `lo` to `hi`."""
        name = self.any(key)
        where = f"{self.path}.{key}"
        if not isinstance(name, str) or name not in self._tensors:
            names = ", ".join(sorted(self._tensors))
            raise InvalidModelError.at(
                where, found=_short(name), expected=f"the name of a tensor ({names[:200]})"
            )
        tensor = self._tensors[name]
        where = f"{where}: tensor {name!r}"
        if not isinstance(tensor, np.ndarray) or tensor.dtype.kind not in "iu":
            found = str(tensor.dtype) if isinstance(tensor, np.ndarray) else type(tensor).__name__
            raise InvalidModelError.at(where, found=found, expected="an array of integers")
        if tensor.ndim != len(shape) or any(
            s not in (None, n) for s, n in zip(shape, tensor.shape, strict=True)
        ):
            wanted = str(tuple("any" if n is None else n for n in shape)).replace("'", "")
            raise InvalidModelError.at(where, found=f"shape {tensor.shape}", expected=f"shape {wanted}")
        if tensor.size == 0:
            raise InvalidModelError.at(where, found=f"shape {tensor.shape}", expected="values")
        low, high = int(tensor.min()), int(tensor.max())
        if low < lo or high > hi:
            raise InvalidModelError.at(
                where, found=f"values from {low} to {high}", expected=f"values from {lo} to {hi}"
            )
        out = np.array(tensor, dtype, order="C")
        out.flags.writeable = False
        self.used[name] = out
        return out

    def _integer(self, value: Any, key: str, lo: int, hi: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not lo <= value <= hi:
            raise InvalidModelError.at(
                f"{self.path}.{key}", found=_short(value), expected=f"an integer from {lo} to {hi}"
            )
        return value

    def _choice(self, value: Any, key: str, among: Sequence[str]) -> str:
        if not isinstance(value, str) or value not in among:
            raise InvalidModelError.at(
                f"{self.path}.{key}", found=_short(value), expected=f"one of {', '.join(among)}"
            )
        return value

    def _list(self, value: Any, key: str, count: int) -> Sequence[Any]:
        if not isinstance(value, list | tuple) or len(value) != count:
            raise InvalidModelError.at(
                f"{self.path}.{key}", found=_short(value), expected=f"a list of {count}"
            )
        return value


def _activation(entry: _Reader) -> Activation:
    kind = entry.choice("activation", ("clamp", "relu", "leaky"), "clamp")
    bits = entry.integer("bits", 8, 12, 10)
    lo, hi = _range(bits, kind != "relu")
    return Activation(lo, hi, entry.integer("slope", 1, 8) if kind == "leaky" else 0)


def _bounded(
    entry: _Reader, bounds: Array | Sequence[int], what: str = "sum |weight| * amax + |bias| + rounding"
) -> None:
    """Refuse a layer if a bound reaches the limit."""
    worst = int(np.argmax(np.asarray(bounds)))
    if bounds[worst] >= LIMIT:
        raise InvalidModelError.at(
            f"{entry.path}, output {worst}",
            found=f"{what} = {bounds[worst]}",
            expected=f"less than {LIMIT}",
            remedy="sums could overflow; export it with coarser weights",
        )


def _dense(entry: _Reader, form: Form, kernel: tuple[int, ...] | None) -> tuple[Dense, int]:
    """Read what ``linear`` and ``conv`` have in common; the window's shape is not checked."""
    window: tuple[None, ...] = () if kernel is None else (None,) * form.dims
    weight = entry.tensor("weight", (None, form.channels, *window), -2047, 2047, np.int16)
    outputs = weight.shape[0]
    if outputs > _MAX_CHANNELS:
        raise InvalidModelError.at(
            entry.path, found=f"{outputs} outputs", expected=f"at most {_MAX_CHANNELS}"
        )
    bias = entry.tensor("bias", (outputs,), -(LIMIT - 1), LIMIT - 1, np.int32)
    shift = entry.tensor("shift", (outputs,), 1, 20, np.uint8) if entry.has("shift") else None
    bound = abs(weight.astype(np.int64)).reshape(outputs, -1).sum(1) * form.amax + abs(bias.astype(np.int64))
    if shift is not None:
        bound += 1 << (shift.astype(np.int64) - 1)
    _bounded(entry, bound)
    activation = _activation(entry) if shift is not None else Activation(0, 0)
    return Dense(weight, bias, shift, activation, form.amax), outputs


def _layer(entry: _Reader, forms: Sequence[Form]) -> tuple[Layer, Form]:
    """Read and check a layer whose input has the last of these forms; return it and the form of its result."""
    kind = entry.any("type")
    form = forms[-1]
    if not isinstance(kind, str) or kind not in _LAYERS:
        raise UnsupportedModelError.at(
            f"{entry.path}.type",
            found=_short(kind),
            expected=f"one of {', '.join(_LAYERS)}",
            remedy="use a newer aesz-codec",
        )
    if form.raw and kind != "pixel_shuffle":
        raise InvalidModelError.at(
            entry.path,
            found=f"{kind!r} after a layer without 'shift'",
            expected="nothing but 'pixel_shuffle' there",
        )
    layer, after = _LAYERS[kind](entry, forms)
    entry.done()
    return layer, after


def _after(form: Form, channels: int, activation: Activation) -> Form:
    return Form(channels, form.dims, activation.lo, activation.hi)


def _linear(entry: _Reader, forms: Sequence[Form]) -> tuple[Layer, Form]:
    form = forms[-1]
    layer, outputs = _dense(entry, form, None)
    return layer, _after_dense(layer, form, outputs)


def _after_dense(layer: Dense, form: Form, outputs: int) -> Form:
    if layer.shift is None:
        return Form(outputs, form.dims, 1 - LIMIT, LIMIT - 1, raw=True)
    return _after(form, outputs, layer.activation)


def _conv(entry: _Reader, forms: Sequence[Form]) -> tuple[Layer, Form]:
    form = forms[-1]
    if not form.dims:
        raise InvalidModelError.at(
            entry.path, found="'conv' of a tensor without spatial axes", expected="1 to 3 of them"
        )
    layer, outputs = _dense(entry, form, ())
    kernel = layer.weight.shape[2:]
    if max(kernel) > 15:
        raise InvalidModelError.at(
            entry.path, found=f"a window of {kernel}", expected="1 to 15 for every axis"
        )
    layer = Dense(
        layer.weight,
        layer.bias,
        layer.shift,
        layer.activation,
        layer.amax,
        True,
        entry.integers("stride", form.dims, 1, 8, 1),
        entry.pairs("pad", [((k - 1) // 2, k // 2) for k in kernel], 0, 15),
        entry.choices("padding", form.dims, ("zero", "replicate", "circular"), "zero"),
    )
    return layer, _after_dense(layer, form, outputs)


def _reshape(entry: _Reader, forms: Sequence[Form]) -> tuple[Layer, Form]:
    form = forms[-1]
    value = entry.any("shape")
    if form.dims or not isinstance(value, list | tuple) or not 2 <= len(value) <= 4:
        raise InvalidModelError.at(
            entry.path,
            found=f"{_short(value)} for {form.dims} spatial axes",
            expected="1 to 3 spatial axes and channels, for a tensor without spatial axes",
        )
    shape = entry.integers("shape", len(value), 1, _MAX_CHANNELS)
    if math.prod(shape) != form.channels:
        raise InvalidModelError.at(
            f"{entry.path}.shape", found=str(shape), expected=f"{form.channels} entries"
        )
    return Reshape(shape), Form(shape[-1], len(shape) - 1, form.lo, form.hi)


def _pixel_shuffle(entry: _Reader, forms: Sequence[Form]) -> tuple[Layer, Form]:
    form = forms[-1]
    factor = entry.integers("factor", form.dims, 1, 8)
    if not form.dims or form.channels % math.prod(factor):
        raise InvalidModelError.at(
            f"{entry.path}.factor",
            found=f"{factor} for {form.channels} channels and {form.dims} spatial axes",
            expected="spatial axes, and channels that the product divides",
        )
    return PixelShuffle(factor), Form(
        form.channels // math.prod(factor), form.dims, form.lo, form.hi, form.raw
    )


def _gdn(entry: _Reader, forms: Sequence[Form]) -> tuple[Layer, Form]:
    form = forms[-1]
    channels = form.channels
    weight = entry.tensor("weight", (channels, channels), 0, 2047, np.int16)
    bias = entry.tensor("bias", (channels,), 0, LIMIT - 1, np.int32)
    norm_shift = entry.tensor("norm_shift", (channels,), 0, 20, np.uint8)
    shift = entry.tensor("shift", (channels,), 1, 20, np.uint8)
    lo, hi = _range(entry.integer("bits", 8, 12, 10), True)
    norm = weight.astype(np.int64).sum(1) * form.amax + bias
    _bounded(entry, norm, "sum weight * amax + bias")
    _bounded(
        entry,
        form.amax * (norm >> norm_shift.astype(np.int64)) + (1 << (shift.astype(np.int64) - 1)),
        "amax * (norm >> norm_shift) + rounding",
    )
    activation = Activation(lo, hi)
    return GDN(weight, bias, norm_shift, shift, activation, form.amax), _after(form, channels, activation)


def _add(entry: _Reader, forms: Sequence[Form]) -> tuple[Layer, Form]:
    form = forms[-1]
    tensor = entry.integer("with", -1, len(forms) - 2) + 1
    scale = entry.integers("scale", 2, 0, 8, 0)
    shift = entry.integer("shift", 0, 12, 0)
    activation = _activation(entry)
    other = forms[tensor]
    if (other.channels, other.dims) != (form.channels, form.dims):
        raise InvalidModelError.at(
            f"{entry.path}.with",
            found=f"{other.channels} channels, {other.dims} spatial axes",
            expected=f"{form.channels} channels, {form.dims} spatial axes",
        )
    bound = (form.amax << scale[0]) + (other.amax << scale[1]) + ((1 << shift) >> 1)
    _bounded(entry, [bound], "sum of the largest magnitudes")
    return Add(tensor, (scale[0], scale[1]), shift, activation), _after(form, form.channels, activation)


def _table(entry: _Reader, forms: Sequence[Form]) -> tuple[Layer, Form]:
    form = forms[-1]
    lo, hi = _range(entry.integer("bits", 8, 12, 10), entry.flag("signed", True))
    table = entry.tensor("table", (form.hi - form.lo + 1,), lo, hi, np.int16)
    return Table(table, form.lo, lo, hi), Form(form.channels, form.dims, lo, hi)


_LAYERS = {
    "linear": _linear,
    "conv": _conv,
    "reshape": _reshape,
    "pixel_shuffle": _pixel_shuffle,
    "gdn": _gdn,
    "add": _add,
    "table": _table,
}
