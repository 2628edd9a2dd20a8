"""The model zoo: finds packs by digest, id or what a variable says of itself.  ``docs/packs.md``, section 7.

Packs come, in this order, from

1. `embed`: packs that travel in the configuration of a codec, registered when it is read;
2. the installed package ``model_zoo``;
3. the folders and fsspec URLs in the environment variable ``AESZ_ZOO``, or, if that is not set, the folder
   ``~/.local/share/aesz-codec/zoo``.

Nothing else is looked at, and nothing is fetched from a network unless ``AESZ_ZOO`` names a URL.  Every function
may be called from many threads at once; a pack is decoded once per process.
"""

from __future__ import annotations

import base64
import binascii
import builtins
import hashlib
import importlib.resources
import os
import re
import shutil
import tempfile
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import (
    AESZError,
    InvalidConfigError,
    ModelNotFoundError,
    PackConflictError,
    PackError,
    PackSizeError,
)
from .packs import MAX_BYTES, Pack, is_digest, named_pack

__all__ = [
    "MAX_EMBEDDED",
    "Check",
    "Entry",
    "add",
    "embed",
    "embedded",
    "find",
    "get",
    "grid_hash",
    "home",
    "known_answer",
    "list",
    "verify",
]

MAX_EMBEDDED = 512_000  # bytes of a pack in the configuration of a codec
ENVIRONMENT = "AESZ_ZOO"
_SUFFIX = ".aeszpack"
_FILE = f"model{_SUFFIX}"
_VERSION = re.compile(r"-([0-9]{1,9})$")
_URL = re.compile(
    r"(?:^|" + re.escape(os.pathsep) + r")((?:[A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]+://.*)$", re.DOTALL
)


@dataclass(frozen=True)
class Entry:
    """A pack and where it was found.

    Attributes
    ----------
    pack : Pack
    place : str
        ``"embedded"``, or the file or URL.
    card : str or None
        File or URL of the model's card, if there is one beside the pack.
    """

    pack: Pack
    place: str
    card: str | None = None

    @property
    def id(self) -> str:
        """Name of the model."""
        return self.pack.id

    @property
    def kind(self) -> str:
        """One of `aesz_codec.packs.KINDS`."""
        return self.pack.kind

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return self.pack.digest

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return self.pack.nbytes

    @property
    def variables(self) -> tuple[Mapping[str, Any], ...]:
        """The variables that the model is for; none if it is for any."""
        variables: tuple[Mapping[str, Any], ...] = self.pack.manifest["variables"]
        return variables


@dataclass(frozen=True)
class Check:
    """What `verify` found of one pack: the pack, or the problem."""

    name: str
    pack: Pack | None = None
    problem: str | None = None


_lock = threading.RLock()
_by_digest: dict[str, Pack] = {}  # all that were read
_by_source: dict[tuple[Any, ...], Pack] = {}  # by file and state, or URL, or hash of embedded bytes
_embedded: dict[str, Pack] = {}  # by digest, in the order of registration


def list() -> builtins.list[Entry]:
    """Return all packs that can be found, those searched first first.

    Of packs with the same digest the first is there, of those with the same id each.  A file that cannot be read
    as a pack is left out, with a warning that names it.
    """
    entries: dict[str, Entry] = {}
    for source in _sources():
        try:
            entry = source.entry()
        except PackError as error:
            warnings.warn(f"left out of the model zoo: {error}", RuntimeWarning, stacklevel=2)
            continue
        entries.setdefault(entry.digest, entry)
    return [*entries.values()]


def get(digest_or_id: str) -> Pack:
    """Return a pack, verified.

    Parameters
    ----------
    digest_or_id : str
        64 hexadecimal digits are a digest, all else is an id; of several packs with an id the first counts.

    Raises
    ------
    ModelNotFoundError
        If it is in none of the places searched.
    PackError
        If the file that has this id as its name cannot be read, or is another model.
    """
    wanted = is_digest(digest_or_id)
    if wanted:
        with _lock:
            if digest_or_id in _by_digest:
                return _by_digest[digest_or_id]
    unreadable = []
    for source in _sources(None if wanted else digest_or_id):
        if not wanted:
            if source.name == digest_or_id:  # no other file can hold it
                return source.entry().pack
            continue
        try:
            pack = source.entry().pack
        except PackError as error:
            unreadable.append(str(error))
            continue
        if pack.digest == digest_or_id:
            return pack
    places = "; ".join(("configurations of codecs", *_places()))
    broken = f"; could not be read: {'; '.join(unreadable)}" if unreadable else ""
    raise ModelNotFoundError.at(
        "model",
        found=f"no pack with the {'digest' if wanted else 'id'} {digest_or_id!r}",
        expected=f"one in these places: {places}{broken}",
        remedy=f"run 'aesz-codec models add FILE{_SUFFIX}', or name its folder in {ENVIRONMENT}",
    )


def find(attributes: Mapping[str, Any], grid: str | None = None) -> builtins.list[Entry]:
    """Return the packs that may help with a variable, best first.

    Parameters
    ----------
    attributes : mapping
        Attributes of the variable, as CF and GRIB name them: ``standard_name``, ``short_name`` (or
        ``GRIB_shortName``, ``name``), ``units``, ``level`` (or ``GRIB_level``).  All are optional.
    grid : str, optional
        `grid_hash` of its coordinates.

    Returns
    -------
    list of Entry
        Packs with the standard name come first, then those with the short name alone; among them those with the same
        units, then the same level, then the same grid; a pack that names no variable comes last.  A pack for
        another variable or another grid is left out; other units or another level only rank behind.  Of packs that differ
        in the number at the end of their id, for the same variables and grid, only the last is there: `get` knows the others.
    """
    ranked = []
    for position, entry in enumerate(_last_versions(list())):
        bound = entry.pack.manifest["grid"]
        if bound is not None and grid is not None and bound != grid:
            continue
        same_grid = int(bound is not None and bound == grid) - int(bound is not None and grid is None)
        ranks = [_rank(variable, attributes) for variable in entry.variables] or [(0, 0, 0, 0)]
        best = max((rank for rank in ranks if rank is not None), default=None)
        if best is not None:
            ranked.append(((*best, same_grid), -position, entry))
    ranked.sort(key=lambda item: item[:2], reverse=True)
    return [entry for _, _, entry in ranked]


def _last_versions(entries: builtins.list[Entry]) -> builtins.list[Entry]:
    """Leave out models that a later one of the same name replaces: they are there for what was written with them."""
    numbered = []
    last: dict[str, int] = {}
    for entry in entries:
        found = _VERSION.search(entry.id)
        number = int(found[1]) if found else 0
        manifest = entry.pack.manifest
        name = repr((_VERSION.sub("", entry.id), entry.kind, manifest["variables"], manifest["grid"]))
        last[name] = max(number, last.get(name, 0))
        numbered.append((entry, name, number))
    return [entry for entry, name, number in numbered if number == last[name]]


def add(path: str | os.PathLike[str]) -> Pack:
    """Copy a pack into the user's folder, so that `get`, `find` and `list` know it.

    The folder is the first of ``AESZ_ZOO`` that is no URL, or ``~/.local/share/aesz-codec/zoo``.  A ``card.md`` and
    a ``recipe.toml`` beside the pack are copied too.

    Raises
    ------
    PackError
        If the file is no pack, or cannot be copied.
    PackConflictError
        If another content has the same id in a place that is searched.
    InvalidConfigError
        If ``AESZ_ZOO`` names no folder.
    """
    path = Path(path)
    pack = Pack.from_file(path)
    folders = [Path(place) for place in _user_places() if "://" not in place]
    if not folders:
        raise InvalidConfigError.at(
            ENVIRONMENT,
            found=repr(os.environ.get(ENVIRONMENT)),
            expected="a folder among its entries",
            remedy="unset it, or add one",
        )
    target = folders[0] / pack.id / _FILE
    with _lock:
        for entry in list():
            if entry.id == pack.id and entry.digest != pack.digest:
                raise PackConflictError.at(
                    f"pack {pack.id!r}",
                    found=f"digest {entry.digest} in {entry.place}",
                    expected=f"{pack.digest}, as in {path}",
                    remedy="a published id never changes its content: give the new model another id",
                )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for name in ("card.md", "recipe.toml"):
                if (path.parent / name).is_file() and path.parent.resolve() != target.parent.resolve():
                    shutil.copyfile(path.parent / name, target.parent / name)
            with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".partial", delete=False) as file:
                temporary = Path(file.name)
                file.write(pack.data)
            try:
                temporary.chmod(0o644)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise PackError.at(str(target), found=str(error), expected="a file that can be written") from None
        return _keep(pack)


def verify(models: Sequence[str] | None = None) -> builtins.list[Check]:
    """Read packs again, from beginning to end, whatever was read before.

    Parameters
    ----------
    models : sequence of str, optional
        Ids, digests, or files (what ends with ``.aeszpack``); all that can be found, broken ones too, if left out.

    Returns
    -------
    list of Check
        One for each, in order.  Nothing is raised for a pack that is not sound.
    """
    sources: builtins.list[tuple[str, _Source | None]]
    if models is None:
        sources = [(source.place, source) for source in _sources()]
    else:
        sources = [(name, _source_of(name)) for name in models]
    checks = []
    for name, source in sources:
        try:
            if source is None:
                pack = get(name)  # raises that it is nowhere
            else:
                pack = source.read()
            known_answer(pack)
        except AESZError as error:
            checks.append(Check(name, problem=str(error)))
        else:
            checks.append(Check(name, pack))
    return checks


def known_answer(pack: Pack) -> None:
    """Load the networks of a pack, which compares them with the answers that they declare; other packs pass.

    Raises
    ------
    InvalidModelError, UnsupportedModelError
    """
    from .predictors import LEARNED, SIDES, prepare  # above this module

    if pack.kind in LEARNED or pack.kind in SIDES:
        prepare(pack)


def _source_of(name: str) -> _Source | None:
    if name.endswith(_SUFFIX):
        return _File(Path(name), any_name=True)
    for source in _sources(None if is_digest(name) else name):
        if source.name == name:
            return source
        if is_digest(name):
            try:
                if source.entry().digest == name:
                    return source
            except PackError:
                continue
    return None


def embed(pack: str | bytes) -> Pack:
    """Register a pack that travels in the configuration of a codec: base64 text, or the bytes of the file.

    Decoded once per process and content; afterwards `get` knows it.

    Raises
    ------
    PackSizeError
        If it is larger than 512 kB.
    PackError
        If it is no base64, or no pack.
    """
    most = MAX_EMBEDDED if isinstance(pack, bytes) else 4 * -(-MAX_EMBEDDED // 3)
    if len(pack) > most:
        raise _too_large_to_embed(f"{len(pack)} {'bytes' if isinstance(pack, bytes) else 'digits'}", most)
    try:
        data = pack if isinstance(pack, bytes) else base64.b64decode(pack.encode(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PackError.at(
            "embedded pack", found=str(error), expected="base64", remedy="the configuration is damaged"
        ) from None
    key = ("embedded", hashlib.sha256(data).digest())
    with _lock:
        if key not in _by_source:
            _by_source[key] = _keep(named_pack(data, "embedded pack"))
        found = _by_source[key]
        _embedded.setdefault(found.digest, found)
        return found


def embedded(pack: Pack) -> str:
    """Return the pack as base64 for the configuration of a codec.

    Raises
    ------
    PackSizeError
        If it is larger than 512 kB.
    """
    if pack.nbytes > MAX_EMBEDDED:
        raise _too_large_to_embed(f"pack {pack.id!r} of {pack.nbytes} bytes", MAX_EMBEDDED)
    return base64.b64encode(pack.data).decode("ascii")


def home(pack: Pack) -> str | None:
    """Say who has a pack: ``"built-in"`` (all who have this package), ``"added"`` (the user's places), or None."""
    for name, places in (("built-in", _installed()), ("added", _user_places())):
        for source in _in_places(places, pack.id):
            try:
                if source.name == pack.id and source.entry().digest == pack.digest:
                    return name
            except PackError:
                continue
    return None


def grid_hash(lat: npt.ArrayLike, lon: npt.ArrayLike) -> str:
    """Return the hash of a grid: 32 hexadecimal digits.

    Parameters
    ----------
    lat, lon : float array
        Degrees, of one axis each for a regular grid or two for a curvilinear one.  What is equal to 1e-4 degrees,
        and longitudes that differ by 360, give the same hash; another order of the points another one.

    Raises
    ------
    InvalidConfigError
        If a coordinate is not a finite number of degrees.
    """
    digest = hashlib.sha256(b"AESZGRID")
    for name, values in (("lat", lat), ("lon", lon)):
        array = np.asarray(values, np.float64)
        if not (np.abs(array) <= 1e4).all():  # false for NaN too
            raise InvalidConfigError.at(
                name, found="NaN or more than 10000 degrees", expected="finite numbers of degrees"
            )
        units = np.rint(array * 1e4).astype(np.int64)
        if name == "lon":
            units %= 3_600_000
        digest.update(bytes([array.ndim]) + np.array(array.shape, "<u8").tobytes())
        digest.update(units.astype("<i4").tobytes())
    return digest.hexdigest()[:32]


def _too_large_to_embed(found: str, most: int) -> PackSizeError:
    return PackSizeError.at(
        "embedded pack",
        found=found,
        expected=f"at most {most}",
        remedy="install the pack where the data are read, and do not embed it",
    )


# Ranks


def _rank(variable: Mapping[str, Any], attributes: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """Say how well a variable of a pack fits, or that it is another variable."""
    standard = _agree(variable, attributes, ("standard_name", "GRIB_cfName"))
    short = _agree(variable, attributes, ("short_name", "GRIB_shortName", "name"))
    if standard < 0 or (standard == 0 and short <= 0):
        return None
    return (
        2 if standard > 0 else 1,
        short,
        _agree(variable, attributes, ("units", "GRIB_units")),
        _agree(variable, attributes, ("level", "GRIB_level")),
    )


def _agree(variable: Mapping[str, Any], attributes: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """Return 1 if both say the same, -1 if they differ, 0 if one says nothing; the first name is the pack's."""
    said = [attributes[name] for name in names if attributes.get(name) not in (None, "", "unknown")]
    if names[0] not in variable or not said:
        return 0
    return 1 if _comparable(variable[names[0]]) == _comparable(said[0]) else -1


def _comparable(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return " ".join(str(value).lower().split())


# Places


class _Source(ABC):
    """A file, URL or embedded pack, not read yet."""

    def __init__(self, name: str, place: str) -> None:
        self.name = name  # the id, if the file is named as it should be
        self.place = place

    @abstractmethod
    def entry(self) -> Entry:
        """Read it, once for each state of the file."""

    @abstractmethod
    def read(self) -> Pack:
        """Read it now."""


class _Embedded(_Source):
    def __init__(self, pack: Pack) -> None:
        super().__init__(pack.id, "embedded")
        self._pack = pack

    def entry(self) -> Entry:
        return Entry(self._pack, self.place)

    def read(self) -> Pack:
        return Pack.from_bytes(self._pack.data, digest=self._pack.digest)


class _File(_Source):
    def __init__(self, path: Path, any_name: bool = False) -> None:
        super().__init__(path.parent.name if path.name == _FILE else path.name[: -len(_SUFFIX)], str(path))
        self._path = path
        self._any_name = any_name

    def entry(self) -> Entry:
        try:
            state = self._path.stat()
        except OSError as error:
            raise PackError.at(self.place, found=error.strerror or str(error), expected="a file") from None
        key = (self.place, state.st_mtime_ns, state.st_size, state.st_ino)
        with _lock:
            if key not in _by_source:
                _by_source[key] = _keep(self.read())
        card = self._path.parent / "card.md"
        own = self._path.name == _FILE and card.is_file()
        return Entry(_by_source[key], self.place, str(card) if own else None)

    def read(self) -> Pack:
        pack = Pack.from_file(self._path)
        return pack if self._any_name else _checked(pack, self)


class _Url(_Source):
    def __init__(self, url: str) -> None:
        head, _, last = url.rpartition("/")
        super().__init__(
            head.rpartition("/")[2] if last == _FILE else last.removesuffix(_SUFFIX),
            url,
        )

    def entry(self) -> Entry:
        key = (self.place,)
        with _lock:
            if key not in _by_source:
                _by_source[key] = _keep(self.read())
        return Entry(_by_source[key], self.place)

    def read(self) -> Pack:
        fsspec = _fsspec()
        try:
            with fsspec.open(self.place, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except Exception as error:  # of any file system that fsspec knows
            raise PackError.at(
                self.place, found=f"{type(error).__name__}: {error}", expected="a file"
            ) from None
        return _checked(named_pack(data, self.place), self)


def _checked(pack: Pack, source: _Source) -> Pack:
    if pack.id != source.name:
        raise PackError.at(
            source.place,
            found=f"the pack {pack.id!r}",
            expected=f"{source.name!r}, as the file is named",
            remedy="name the file after its id, or use 'aesz-codec models add'",
        )
    return pack


def _keep(pack: Pack) -> Pack:
    """Remember a pack by its digest; the first of equals stays."""
    with _lock:
        return _by_digest.setdefault(pack.digest, pack)


def _sources(name: str | None = None) -> Iterator[_Source]:
    """Go through all places in order; with a name, URLs are asked for it first and listed only then."""
    with _lock:
        registered = [*_embedded.values()]
    for pack in registered:
        yield _Embedded(pack)
    yield from _in_places(_places(), name)


def _in_places(places: builtins.list[str], name: str | None) -> Iterator[_Source]:
    for place in places:
        if "://" in place:
            yield from _in_url(place, name)
        else:
            yield from _in_folder(Path(place))


def _places() -> builtins.list[str]:
    return [*_installed(), *_user_places()]


def _installed() -> builtins.list[str]:
    try:
        folder = importlib.resources.files("model_zoo")
    except ModuleNotFoundError:
        return []
    return [str(folder)] if isinstance(folder, Path) else []


def _user_places() -> builtins.list[str]:
    text = os.environ.get(ENVIRONMENT)
    if text is None:
        return [str(Path.home() / ".local" / "share" / "aesz-codec" / "zoo")]
    places = []
    for part in text.split(";"):
        url = _URL.search(part)
        paths = part[: url.start()] if url else part
        places += [str(Path(path).expanduser()) for path in paths.split(os.pathsep) if path]
        if url:
            places.append(url.group(1))
    return places


def _in_folder(folder: Path) -> Iterator[_Source]:
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return
    for path in found:
        if path.name.endswith(_SUFFIX) and path.is_file():
            yield _File(path)
        elif (path / _FILE).is_file():
            yield _File(path / _FILE)


def _in_url(url: str, name: str | None) -> Iterator[_Source]:
    if url.endswith(_SUFFIX):
        yield _Url(url)
        return
    url = url.rstrip("/")
    try:
        fsspec = _fsspec()
        filesystem, root = fsspec.core.url_to_fs(url)
        if name is not None:
            for candidate in (f"{name}/{_FILE}", f"{name}{_SUFFIX}"):
                if filesystem.exists(f"{root}/{candidate}"):
                    yield _Url(f"{url}/{candidate}")
                    return
            return
        found = [*filesystem.glob(f"{root}/*/{_FILE}"), *filesystem.glob(f"{root}/*{_SUFFIX}")]
    except PackError as error:
        warnings.warn(f"left out of the model zoo: {error}", RuntimeWarning, stacklevel=3)
        return
    except Exception as error:  # of any file system that fsspec knows
        warnings.warn(
            f"left out of the model zoo: {url}: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=3
        )
        return
    for path in sorted(found):
        inside = path.rstrip("/").split("/")[-2:]
        yield _Url(f"{url}/{'/'.join(inside) if inside[-1] == _FILE else inside[-1]}")


def _fsspec() -> Any:
    try:
        import fsspec
    except ModuleNotFoundError:
        raise PackError.at(
            ENVIRONMENT, found="a URL, but no fsspec", expected="fsspec", remedy="pip install fsspec"
        ) from None
    return fsspec
