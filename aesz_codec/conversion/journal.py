"""What is finished of a conversion, kept in the store itself: written once, found again, by one converter at a time.

    <work>/.aesz/lock             who converts; renewed while it runs
    <work>/.aesz/plan.json        what was asked for and decided; a store with one is not finished
    <work>/.aesz/done-000001.json finished tasks: their objects, checksums and measurements
    <work>/.aesz/done-000002.json ...

A task is noted after its objects are in the store, so a note is never ahead of the data; what was written and not
noted is written again, to the same bytes.  All is plain objects: a folder and a bucket work alike.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .._source import one_line
from .._store import JOURNAL, StoreAddress
from ..errors import ConversionError
from .write import TaskRecord

__all__ = ["Journal", "Lock", "unfinished_work"]

_FLUSH_SECONDS = 1.0
_RENEW_SECONDS = 10.0
_ABANDONED_SECONDS = 60.0
_VERSION = 1


@dataclass
class Journal:
    """The notes of one conversion.

    Attributes
    ----------
    address : StoreAddress
        Of the store that is being written.
    plan : dict
        Request and decisions, as JSON values; see `begin`.
    records : dict
        Task id to what is known of finished tasks.
    """

    address: StoreAddress
    plan: dict[str, Any] = field(default_factory=dict)
    records: dict[str, TaskRecord] = field(default_factory=dict)
    _unwritten: list[TaskRecord] = field(default_factory=list)
    _segments: int = 0
    _written_at: float = 0.0

    @classmethod
    def find(cls, address: StoreAddress) -> Self | None:
        """Read the journal of a store; None if there is none.

        Raises
        ------
        ConversionError
            If it is of another version, or damaged.
        """
        data = address.get(f"{JOURNAL}/plan.json")
        if data is None:
            return None
        try:
            plan = json.loads(data)
            if plan["version"] != _VERSION:
                raise ConversionError.at(
                    "journal",
                    found=f"version {plan['version']} in {address}",
                    expected=f"version {_VERSION}",
                    remedy="go on with the version of aesz-codec that began, or pass overwrite (--overwrite)",
                )
            journal = cls(address, plan)
            names = sorted(key for key in address.sizes(f"{JOURNAL}/") if "/done-" in key)
            for name in names:
                for entry in json.loads(address.get(name) or b"[]"):
                    record = TaskRecord.from_json(entry)
                    journal.records[record.id] = record
            journal._segments = int(names[-1].rpartition("-")[2].removesuffix(".json")) if names else 0
        except (ValueError, KeyError, TypeError) as error:
            raise ConversionError.at(
                "journal",
                found=f"a damaged one in {address} ({one_line(error)})",
                expected="what a conversion writes",
                remedy="pass overwrite (--overwrite) to begin anew",
            ) from error
        return journal

    @classmethod
    def begin(cls, address: StoreAddress, plan: Mapping[str, Any]) -> Self:
        """Start a journal: from here on the store says that it is not finished."""
        journal = cls(address, {"version": _VERSION, **plan})
        address.put(f"{JOURNAL}/plan.json", json.dumps(journal.plan).encode())
        return journal

    def note(self, record: TaskRecord) -> None:
        """Remember a finished task; written at most a second later, with others."""
        self.records[record.id] = record
        self._unwritten.append(record)
        if time.monotonic() - self._written_at >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if not self._unwritten:
            return
        data = json.dumps([record.to_json() for record in self._unwritten]).encode()
        self.address.put(f"{JOURNAL}/done-{self._segments + 1:06}.json", data)
        self._segments += 1
        self._unwritten.clear()
        self._written_at = time.monotonic()

    def forget(self, ids: Iterable[str]) -> None:
        """Drop tasks whose objects are not what was noted; they are done again."""
        for name in ids:
            self.records.pop(name, None)


def unfinished_work(address: StoreAddress) -> str:
    """Say how far a conversion came, for messages."""
    try:
        journal = Journal.find(address)
    except ConversionError:
        return "unfinished"
    if journal is None:
        return "unfinished"
    return f"unfinished, {len(journal.records)} of {journal.plan.get('tasks', '?')} tasks done"


# Lock


class Lock:
    """Keeps a second converter out of a store; to be used in a ``with`` statement.

    The lock of a process that has died is taken over: at once if it ran on this machine, else a minute after it was
    last renewed.

    Parameters
    ----------
    address : StoreAddress

    Raises
    ------
    ConversionError
        If another conversion has it.
    """

    def __init__(self, address: StoreAddress) -> None:
        self.address = address
        self.key = f"{JOURNAL}/lock"
        self.lost = threading.Event()
        self._me = {"owner": secrets.token_hex(8), **_this_process()}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        found = self._read()
        if found is not None and not _abandoned(found):
            raise self._busy(found)
        if found is not None:
            self.address.delete(self.key)
        if not self.address.create(self.key, self._text()):
            raise self._busy(self._read() or {})
        self._thread = threading.Thread(target=self._renew, name="aesz-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *ignored: Any) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if (self._read() or {}).get("owner") == self._me["owner"]:
                self.address.delete(self.key)
        except Exception:  # the store cannot be reached: the lock is found to be abandoned
            self.lost.set()

    def check(self, *, now: bool = False) -> None:
        """Raise if somebody else has taken the lock, as far as is known, or as it is `now`."""
        if now and (self._read() or {}).get("owner") != self._me["owner"]:
            self.lost.set()
        if self.lost.is_set():
            raise self._busy(self._read() or {})

    def _read(self) -> dict[str, Any] | None:
        data = self.address.get(self.key)
        if data is None:
            return None
        try:
            found = json.loads(data)
            return found if isinstance(found, dict) else {}
        except ValueError:
            return {}

    def _text(self) -> bytes:
        return json.dumps({**self._me, "renewed": time.time()}).encode()

    def _renew(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS):
            try:
                if (self._read() or {}).get("owner") != self._me["owner"]:
                    self.lost.set()
                    return
                self.address.put(self.key, self._text())
            except Exception:  # a network that is down; the tasks find out by themselves
                continue

    def _busy(self, found: Mapping[str, Any]) -> ConversionError:
        return ConversionError.at(
            "store",
            found=f"another conversion to {self.address}, process {found.get('pid', '?')} on {found.get('host', '?')}",
            expected="to be the only one",
            remedy=f"wait for it, or if it was killed on another machine, for {_ABANDONED_SECONDS:.0f} seconds",
        )


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "system": _system(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
    }


def _system() -> str:
    """Identify the system in which process ids count: a boot, and a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    """Return when a process began, in the clock of its system; empty if there is none or it is not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _abandoned(lock: Mapping[str, Any]) -> bool:
    if lock.get("system") and lock["system"] == _system():
        return bool(_began(int(lock.get("pid", 0))) != lock.get("began"))
    renewed = lock.get("renewed", 0)
    return not isinstance(renewed, int | float) or time.time() - renewed > _ABANDONED_SECONDS
