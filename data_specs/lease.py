"""Leases: one writer a folder. `with lease.hold(FOLDER, "dnd train"): …` refuses while another process writes there.

A lease is FOLDER/lease/NNNNNN.json, created only if absent; the highest number holds. Its holder rewrites it every
BEAT_SECONDS. A process that finds a dead one creates the next number, so that only one of two wins, on S3 too (by
If-None-Match alone). A holder that slept while another took over sees the higher number and must stop.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from data_specs import storage
from data_specs.records import LeaseHolder

BEAT_SECONDS = 10.0  # seconds between two heartbeats
LAPSE_SECONDS = 45.0  # seconds without a heartbeat after which a holder counts as dead
LONG_AGO = 20 * LAPSE_SECONDS  # no two clocks differ by so much: a beat this old needs no watching
log = logging.getLogger(__name__)


class Lease:
    """A folder's lease, held by this process until `release`; a thread keeps it alive."""

    def __init__(self, folder: str, number: int, holder: LeaseHolder, shared: bool = False) -> None:
        self.folder = folder
        self.number = number
        self.holder = holder
        self.shared = shared
        self.lost = False
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()

    def check(self) -> None:
        """Raise ValueError where another process has taken the lease over: nothing more may be written."""
        if self.lost:
            raise ValueError(
                f"{self.folder}: another process took over, since this one stood still for {LAPSE_SECONDS:.0f} s"
            )

    def release(self) -> None:
        """Give the lease back."""
        self.ended.set()
        self.thread.join()
        storage.delete(_uri(self.folder, self.number))

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_SECONDS) and not self.lost:
            try:
                self.lost = not self.shared and max(_numbers(self.folder), default=0) > self.number
                if not self.lost:
                    alive = self.holder.model_copy(update={"beat": time.time()})
                    storage.write(_uri(self.folder, self.number), alive.to_json())
            except OSError:  # storage that is gone for a while: the next beat tries again
                continue


def acquire(folder: str, command: str, shared: bool = False) -> Lease:
    """Take the lease of a folder for this process.

    Args:
        folder: the folder, local or on S3.
        command: what this process does, to be shown to others, for instance `dnd train`.
        shared: hold it together with others of the same command, whose receipts decide who commits a unit.

    Raises:
        ValueError: another process holds it; the message names its host, pid, command and start.
    """
    while True:
        before = _holders(folder)
        in_the_way = {n: holder for n, holder in before.items() if not (shared and holder.command == command)}
        for number, holder in in_the_way.items():
            if not _is_dead(folder, number, holder):
                raise _refusal(folder, holder)
        mine = _this_process(command)
        number = max(before, default=0) + 1
        if storage.create(_uri(folder, number), mine.to_json()):
            break
        if not shared:
            raise _refusal(folder, holder_of(folder))
    others = {n: holder for n, holder in _holders(folder).items() if n != number and n not in before}
    if any(not (shared and holder.command == command) for holder in others.values()):  # somebody came meanwhile
        storage.delete(_uri(folder, number))
        raise _refusal(folder, holder_of(folder))
    for dead in [*in_the_way, *(n for n, holder in before.items() if n not in in_the_way and _ended_here(holder))]:
        storage.delete(_uri(folder, dead))
    if not storage.decides_who_creates(storage.join(folder, "lease")):
        log.warning("%s: the storage refuses no second writer: of two jobs here at once the last receipt holds", folder)
    return Lease(folder, number, mine, shared)


@contextmanager
def hold(folder: str, command: str, shared: bool = False) -> Iterator[Lease]:
    """Hold the lease of a folder inside the block; raises as `acquire` does."""
    lease = acquire(folder, command, shared)
    try:
        yield lease
    finally:
        lease.release()


def holder_of(folder: str) -> LeaseHolder | None:
    """Return the holder of a folder's lease, dead or alive; None where there is none."""
    holders = _holders(folder)
    return holders[max(holders)] if holders else None


def is_alive(holder: LeaseHolder) -> bool:
    """Return whether a holder is alive, as far as its last heartbeat tells."""
    return not _ended_here(holder) and time.time() - holder.beat < LAPSE_SECONDS


def _this_process(command: str) -> LeaseHolder:
    now = time.time()
    return LeaseHolder(
        host=socket.gethostname(), pid=os.getpid(), pid_space=_pid_space(), command=command, since=now, beat=now
    )


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _refusal(folder: str, holder: LeaseHolder | None) -> ValueError:
    if holder is None:
        return ValueError(f"{folder}: another process came first and has just ended: try again")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    return ValueError(
        f"{folder}: `{holder.command}` writes here since {since} (host {holder.host}, process {holder.pid}): wait for "
        "it, end it, or use another --root"
    )


def _is_dead(folder: str, number: int, found: LeaseHolder) -> bool:
    """Whether a holder is gone: its process on this machine, or else its heartbeat, watched for as long as it takes."""
    age = time.time() - found.beat
    if _ended_here(found) or age > LONG_AGO:
        return True
    if _is_of_here(found) and age < LAPSE_SECONDS:
        return False
    deadline = time.monotonic() + LAPSE_SECONDS
    while time.monotonic() < deadline:
        if _read(folder, number) != found:  # it beats, or has just ended
            return False
        time.sleep(BEAT_SECONDS / 20)
    return True


def _ended_here(holder: LeaseHolder) -> bool:
    """Whether a holder was a process of this machine that is no more."""
    return _is_of_here(holder) and not psutil.pid_exists(holder.pid)


def _is_of_here(holder: LeaseHolder) -> bool:
    return (holder.host, holder.pid_space) == (socket.gethostname(), _pid_space())


def _holders(folder: str) -> dict[int, LeaseHolder]:
    """Holders by number, also dead ones."""
    found = {number: _read(folder, number) for number in sorted(_numbers(folder))}
    return {number: holder for number, holder in found.items() if holder}


def _numbers(folder: str) -> list[int]:
    names = (file.uri.rpartition("/")[2] for file in storage.list_files(storage.join(folder, "lease")))
    return [int(match[1]) for name in names if (match := re.fullmatch(r"(\d{6})\.json", name))]


def _uri(folder: str, number: int) -> str:
    return storage.join(folder, "lease", f"{number:06d}.json")


def _read(folder: str, number: int) -> LeaseHolder | None:
    uri = _uri(folder, number)
    try:
        return LeaseHolder.parse(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        return None
