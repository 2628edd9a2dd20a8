"""The zoo: where packs are found, in which order, by whom at once, and the command ``models``."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import struct
import threading
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from aesz_codec import errors, packs, zoo
from aesz_codec.cli import main
from aesz_codec.packs import Pack
from aesz_codec.train.packing import write_pack

T2M = {"standard_name": "air_temperature", "short_name": "t2m", "units": "K"}


def pack_bytes(id_: str, seed: int = 0, size: int = 50, **fields: Any) -> bytes:
    weights = np.random.default_rng(seed).integers(-99, 99, (size, 8), dtype=np.int8)
    return write_pack({"id": id_, "kind": "contexts", "licence": "CC0-1.0", **fields}, {"w": weights})


def put(folder: Path, data: bytes, name: str | None = None) -> Path:
    path = folder / (name or Pack.from_bytes(data).id) / "model.aeszpack"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Give the zoo nothing but an installed folder and a user folder, both empty, and no memory."""
    found = {"installed": tmp_path / "installed", "user": tmp_path / "user"}
    for folder in found.values():
        folder.mkdir()
    monkeypatch.setattr(zoo, "_installed", lambda: [str(found["installed"])])
    for memory in ("_by_digest", "_by_source", "_embedded"):
        monkeypatch.setattr(zoo, memory, {})
    monkeypatch.setenv("AESZ_ZOO", str(found["user"]))
    return found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the ids of the packs that are decoded."""
    ids = []
    read = packs._read

    def counted(cls: type[Pack], data: bytes) -> Pack:
        pack = read(cls, data)
        ids.append(pack.id)
        return pack

    monkeypatch.setattr(packs, "_read", counted)
    return ids


class TestPlaces:
    def test_nothing(self) -> None:
        assert zoo.list() == [] and zoo.find(T2M) == []

    def test_order(self, places: dict[str, Path]) -> None:
        put(places["user"], pack_bytes("user"))
        put(places["installed"], pack_bytes("installed"))
        zoo.embed(pack_bytes("travelling"))
        assert [e.id for e in zoo.list()] == ["travelling", "installed", "user"]
        entry = zoo.list()[1]
        assert entry.place == str(places["installed"] / "installed" / "model.aeszpack") and entry.card is None
        assert (entry.kind, entry.nbytes) == ("contexts", entry.pack.nbytes) and zoo.list()[
            0
        ].place == "embedded"

    def test_same_content_is_listed_once_and_first_of_an_id_counts(self, places: dict[str, Path]) -> None:
        first, second = pack_bytes("a", 1), pack_bytes("a", 2)
        put(places["user"], second)
        put(places["user"], first, "../installed/a")
        put(places["user"], pack_bytes("b"))
        put(places["installed"], pack_bytes("b"))
        assert [e.id for e in zoo.list()] == ["a", "b", "a"]
        assert zoo.get("a").data == first
        assert zoo.get(Pack.from_bytes(second).digest).data == second

    def test_flat_files_and_cards(self, places: dict[str, Path]) -> None:
        (places["user"] / "flat.v1.aeszpack").write_bytes(pack_bytes("flat.v1"))
        path = put(places["user"], pack_bytes("deep"))
        path.with_name("card.md").write_text("# Deep")
        (places["user"] / "notes.txt").write_text("no pack")
        (places["user"] / "empty").mkdir()
        assert zoo.get("flat.v1").id == "flat.v1"
        assert [e.card for e in zoo.list()] == [str(path.with_name("card.md")), None]

    def test_environment(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        cases = {
            None: [str(tmp_path / ".local/share/aesz-codec/zoo")],
            "": [],
            "/a:/b": ["/a", "/b"],
            "~/z": [str(tmp_path / "z")],
            "/a:s3://bucket/zoo": ["/a", "s3://bucket/zoo"],
            "http://host:80/x;/a:memory://y;/b": ["http://host:80/x", "/a", "memory://y", "/b"],
            "simplecache::https://host/x": ["simplecache::https://host/x"],
        }
        for text, expected in cases.items():
            monkeypatch.delenv("AESZ_ZOO") if text is None else monkeypatch.setenv("AESZ_ZOO", text)
            assert zoo._user_places() == expected

    def test_installed_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        (place,) = zoo._installed()
        assert (Path(place) / "__init__.py").is_file() and Path(place).name == "model_zoo"

    def test_broken_files(self, places: dict[str, Path]) -> None:
        good, bad = pack_bytes("good"), bytearray(pack_bytes("bad"))
        bad[100] ^= 1
        put(places["user"], good)
        path = put(places["user"], bytes(bad), "bad")
        misnamed = put(places["user"], pack_bytes("other"), "misnamed")
        with pytest.warns(RuntimeWarning) as caught:
            assert [e.id for e in zoo.list()] == ["good"]
        assert {str(path), str(misnamed)} == {str(w.message).split(": ")[1] for w in caught}
        with pytest.raises(errors.CorruptPackError, match="bad"):
            zoo.get("bad")
        with pytest.raises(errors.PackError, match="as the file is named"):
            zoo.get("misnamed")
        with pytest.raises(errors.ModelNotFoundError, match="could not be read"):
            zoo.get("0" * 64)
        assert zoo.get("good").data == good

    def test_changed_files_are_read_again(self, places: dict[str, Path]) -> None:
        path = put(places["user"], pack_bytes("a", 1))
        first = zoo.get("a")
        path.unlink()
        put(places["user"], pack_bytes("a", 2, size=60))
        assert zoo.get("a") != first and zoo.get(first.digest) is first

    @pytest.mark.parametrize("name", ["missing", "ab" * 32, "../../etc", ""])
    def test_missing(self, name: str, places: dict[str, Path]) -> None:
        with pytest.raises(errors.ModelNotFoundError) as caught:
            zoo.get(name)
        for part in (repr(name), *map(str, places.values()), "models add", "AESZ_ZOO"):
            assert part in str(caught.value)


class TestUrls:
    @pytest.fixture
    def url(self, monkeypatch: pytest.MonkeyPatch) -> str:
        url = f"memory://{uuid.uuid4().hex}/zoo"
        for path, id_ in (("a/model.aeszpack", "a"), ("b.aeszpack", "b")):
            with fsspec.open(f"{url}/{path}", "wb") as file:
                file.write(pack_bytes(id_))
        monkeypatch.setenv("AESZ_ZOO", url)
        return url

    def test_folder(self, url: str, decoded: list[str]) -> None:
        assert [(e.id, e.place) for e in zoo.list()] == [
            ("a", f"{url}/a/model.aeszpack"),
            ("b", f"{url}/b.aeszpack"),
        ]
        assert zoo.get("b").id == "b" and zoo.get("a") == Pack.from_bytes(pack_bytes("a"))
        assert decoded.count("b") == 1

    def test_only_what_is_asked_for_is_read(self, url: str, decoded: list[str]) -> None:
        assert zoo.get("b").id == "b" and decoded == ["b"]

    def test_one_file(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AESZ_ZOO", f"{url}/b.aeszpack")
        assert [e.id for e in zoo.list()] == ["b"]

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("bad", ["nosuchprotocol://x", "nosuchprotocol://x/y.aeszpack", "memory://none"])
    def test_unreachable(self, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AESZ_ZOO", bad)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert zoo.list() == []
        assert all("nosuchprotocol" in str(w.message) for w in caught)
        with pytest.raises(errors.ModelNotFoundError, match=bad):
            zoo.get("a")

    def test_nothing_is_fetched_unless_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise AssertionError

        monkeypatch.setattr(zoo, "_fsspec", refuse)
        assert zoo.list() == []
        with pytest.raises(errors.ModelNotFoundError):
            zoo.get("a")


class TestFind:
    def test_ranks(self, places: dict[str, Path]) -> None:
        here, there = zoo.grid_hash([1, 2], [3, 4]), zoo.grid_hash([1, 2], [3, 5])
        level = {**T2M, "level": 850}
        for id_, variables, grid in [
            ("a-general", [], None),
            ("b-short", [{"short_name": "T2M"}], None),
            ("c-standard", [{"standard_name": "air_temperature"}], None),
            ("d-units", [{"short_name": "x"}, T2M], None),
            ("e-level", [level], None),
            ("f-grid", [level], here),
            ("g-other-grid", [level], there),
            ("h-other-level", [{**T2M, "level": 500}], None),
            ("i-celsius", [{**T2M, "units": "degC"}], None),
            ("j-other", [{"standard_name": "eastward_wind", "short_name": "t2m"}], None),
        ]:
            put(places["user"], pack_bytes(id_, variables=variables, grid=grid))
        attributes = {"standard_name": "air_temperature", "GRIB_shortName": "t2m", "units": "K"}
        found = [e.id[0] for e in zoo.find({**attributes, "GRIB_level": "850"}, here)]
        assert found == list("fedhicba")
        assert [e.id[0] for e in zoo.find({"name": "t2m"})][-1] == "a"
        assert "j-other" in [e.id for e in zoo.find({"name": "t2m"})]
        assert [e.id for e in zoo.find({"standard_name": "sea_ice"})] == ["a-general"]
        assert [e.id for e in zoo.find({})] == ["a-general"]

    def test_only_the_last_version_is_proposed(self, places: dict[str, Path]) -> None:
        for id_ in ("general-2", "general-10", "general-x", "other-1"):
            put(places["user"], pack_bytes(id_, variables=[], grid=None))
        put(places["user"], pack_bytes("general-11", variables=[T2M], grid=None))  # for something else
        assert {e.id for e in zoo.find({})} == {"general-10", "general-x", "other-1"}
        assert {e.id for e in zoo.find(T2M)} == {"general-10", "general-11", "general-x", "other-1"}
        assert zoo.get("general-2").id == "general-2"  # for what was written with it
        assert "general-2" in {e.id for e in zoo.list()}

    def test_a_pack_of_one_grid_ranks_last_where_the_grid_is_unknown(self, places: dict[str, Path]) -> None:
        put(places["user"], pack_bytes("a", variables=[T2M], grid=zoo.grid_hash([1], [2])))
        put(places["user"], pack_bytes("b", variables=[T2M]))
        assert [e.id for e in zoo.find(T2M)] == ["b", "a"]


class TestGridHash:
    def test_equal(self) -> None:
        lat, lon = np.linspace(60, 30, 121), np.linspace(-10, 20, 121)
        expected = zoo.grid_hash(lat, lon)
        assert len(expected) == 32
        assert zoo.grid_hash(lat.astype("f4"), lon % 360) == expected
        assert zoo.grid_hash(lat + 3e-5, [*map(float, lon)]) == expected

    def test_as_documented(self) -> None:
        content = b"AESZGRID" + struct.pack("<BQ2i", 1, 2, 15000, -2500)
        content += struct.pack("<BQ3i", 1, 3, 3590000, 3590000, 2)
        expected = hashlib.sha256(content).hexdigest()[:32]
        assert zoo.grid_hash([1.5, -0.25], [-1, 359.00004, 0.00025]) == expected

    def test_different(self) -> None:
        lat, lon = np.arange(4.0), np.arange(6.0)
        grids = [(lat, lon), (lon, lat), (lat[::-1], lon), (lat, lon + 0.001), (lat[:, None], lon)]
        grids.append(np.meshgrid(lat, lon))
        assert len({zoo.grid_hash(*grid) for grid in grids}) == len(grids)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 1e5])
    def test_bad(self, bad: float) -> None:
        with pytest.raises(errors.InvalidConfigError, match="lon"):
            zoo.grid_hash([1.0], [bad])


class TestAdd:
    def test_copies(self, places: dict[str, Path], tmp_path: Path) -> None:
        source = put(tmp_path / "from", pack_bytes("a"))
        source.with_name("card.md").write_text("# A")
        pack = zoo.add(source)
        target = places["user"] / "a" / "model.aeszpack"
        assert target.read_bytes() == source.read_bytes() == pack.data
        assert zoo.list()[0].card == str(target.with_name("card.md"))
        assert zoo.add(source) == zoo.add(target) == pack
        assert sorted(p.name for p in target.parent.iterdir()) == ["card.md", "model.aeszpack"]

    def test_other_content(self, places: dict[str, Path], tmp_path: Path) -> None:
        put(places["installed"], pack_bytes("a", 1))
        with pytest.raises(errors.PackConflictError, match="another id"):
            zoo.add(put(tmp_path / "from", pack_bytes("a", 2)))
        assert not any(places["user"].iterdir())

    def test_broken(self, places: dict[str, Path], tmp_path: Path) -> None:
        path = put(tmp_path / "from", pack_bytes("a")[:-3], "a")
        with pytest.raises(errors.TruncatedPackError):
            zoo.add(path)
        assert not any(places["user"].iterdir())

    def test_replaces_a_damaged_copy(self, places: dict[str, Path], tmp_path: Path) -> None:
        put(places["user"], b"AEPK", "a")
        with pytest.warns(RuntimeWarning):
            zoo.add(put(tmp_path / "from", pack_bytes("a")))
        assert zoo.get("a").id == "a"

    def test_no_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = put(tmp_path / "from", pack_bytes("a"))
        monkeypatch.setenv("AESZ_ZOO", "memory://x")
        with pytest.raises(errors.InvalidConfigError, match="AESZ_ZOO"):
            zoo.add(path)
        monkeypatch.setenv("AESZ_ZOO", str(path))
        with pytest.raises(errors.PackError, match="written"):
            zoo.add(path)


class TestEmbedding:
    def test_round_trip(self, decoded: list[str]) -> None:
        pack = Pack.from_bytes(pack_bytes("a"))
        text, data, digest = zoo.embedded(pack), pack.data, pack.digest
        del pack  # what somebody has is not decoded again
        decoded.clear()
        first = zoo.embed(text)
        assert zoo.embed(text) is first and zoo.embed(data) is first and decoded == ["a"]
        assert zoo.get("a") is first and zoo.get(digest) is first
        json.dumps(text)

    def test_too_large(self) -> None:
        pack = Pack.from_bytes(pack_bytes("a", size=70_000))
        assert pack.nbytes > zoo.MAX_EMBEDDED
        for call, value in (
            (zoo.embedded, pack),
            (zoo.embed, pack.data),
            (zoo.embed, base64.b64encode(pack.data).decode()),
        ):
            with pytest.raises(errors.PackSizeError, match="at most"):
                call(value)

    @pytest.mark.parametrize("text", ["?", "QUVQSw==", "é", "QUVQ\nSw=="])
    def test_damaged(self, text: str) -> None:
        with pytest.raises(errors.PackError, match="embedded pack"):
            zoo.embed(text)
        assert zoo.list() == []


def test_many_threads(places: dict[str, Path], decoded: list[str]) -> None:
    ids = [f"m{i}" for i in range(6)]
    digests = {}
    for i, id_ in enumerate(ids):
        data = pack_bytes(id_, i)
        digests[id_] = Pack.from_bytes(data).digest
        put(places["user"], data)
    travelling = [zoo.embedded(Pack.from_bytes(pack_bytes(f"e{i}", i))) for i in range(3)]
    decoded.clear()
    start = threading.Barrier(12)

    def work(seed: int) -> list[int]:
        start.wait()
        order = np.random.default_rng(seed).permutation(len(ids))
        seen = {}
        for i in order:
            pack = zoo.get(ids[i] if seed % 2 else digests[ids[i]])
            seen[int(i)] = id(pack)
            zoo.embed(travelling[i % 3])
            assert len(zoo.list()) >= len(ids)
        return [seen[i] for i in range(len(ids))]

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(work, range(12)))
    assert all(result == results[0] for result in results)
    assert sorted(decoded) == sorted([*ids, "e0", "e1", "e2"])


class TestCommand:
    @pytest.fixture
    def run(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("COLUMNS", "200")

        def call(*arguments: Any) -> tuple[int, str, str]:
            try:
                status = main(["models", *map(str, arguments)])
            except SystemExit as stop:  # of argparse
                status = int(str(stop.code))
            captured = capsys.readouterr()
            return status, captured.out, captured.err

        return call

    def test_list(self, run: Any, places: dict[str, Path]) -> None:
        assert run("list")[0] == 0 and "No models" in run("list")[1]
        put(places["user"], pack_bytes("one", variables=[{**T2M, "level": 850}]))
        put(places["user"], pack_bytes("two"))
        status, out, err = run("list")
        digest = zoo.get("one").digest
        assert (status, err) == (0, "")
        for part in (
            "one",
            "two",
            "contexts",
            "air_temperature",
            "850",
            "any",
            digest[:12],
            str(places["user"]),
        ):
            assert part in out
        listed = json.loads(run("list", "--json")[1])
        assert [e["id"] for e in listed] == ["one", "two"] and listed[0]["digest"] == digest

    def test_list_with_a_broken_file(self, run: Any, places: dict[str, Path]) -> None:
        put(places["user"], b"junk", "broken")
        status, out, err = run("list")
        assert status == 0 and "broken" in err and "No models" in out

    def test_show(self, run: Any, places: dict[str, Path]) -> None:
        rates = [{"field": "t2m", "ratio": 12.5}, {"field": "msl", "bound": 0.01}]
        path = put(places["user"], pack_bytes("one", rates=rates, training={"data": "era5"}))
        path.with_name("card.md").write_text("# One")
        digest = zoo.get("one").digest
        for name in ("one", digest, digest[:9], path):
            status, out, err = run("show", name)
            assert (status, err) == (0, "")
            for part in ("one", digest, "CC0-1.0", "era5", "12.5", "msl", "int8"):
                assert part in out
        assert "card.md" in run("show", "one")[1]
        assert json.loads(run("show", "one", "--json")[1])["manifest"]["rates"] == rates
        status, out, err = run("show", "none")
        assert (status, out) == (2, "") and err.count("\n") == 1 and str(places["user"]) in err

    def test_add(self, run: Any, places: dict[str, Path], tmp_path: Path) -> None:
        path = put(tmp_path / "from", pack_bytes("one"))
        status, out, err = run("add", path)
        assert (status, err) == (0, "") and "one" in out and zoo.get("one")
        status, out, err = run("add", put(tmp_path / "from", pack_bytes("one", 2)))
        assert (status, out) == (2, "") and err.count("\n") == 1

    def test_verify(self, run: Any, places: dict[str, Path], tmp_path: Path) -> None:
        path = put(places["user"], pack_bytes("one"))
        put(places["user"], pack_bytes("two"))
        assert run("verify")[0] == run("verify", "one")[0] == run("verify", path, "two")[0] == 0
        data = bytearray(path.read_bytes())
        zoo.get("one")
        data[-1] ^= 1
        path.write_bytes(data)
        for arguments in ((), ("one",), (path,), ("two", "one")):
            status, out, _ = run("verify", *arguments)
            assert status == 1 and "FAILED" in out and "checksum" in out
        assert run("verify", "none")[0] == 1
        shutil.rmtree(places["user"])
        assert run("verify")[0] == 0

    def test_help(self, run: Any) -> None:
        assert run("--help")[0] == 0 and run()[0] == 2
