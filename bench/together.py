"""The processes of a job together: one claims for all; all stop, or fail, at the same place, or the job ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from bench import distributed
from bench.distributed import PeerLost, from_main, meet, world_size
from bench.files import write_atomic
from bench.runs import RunFolder
from bench.stopping import Stop, on_signals

log = logging.getLogger(__name__)

MEET_WITHIN = 20.0          # seconds in which all processes have seen what ended a run; one that has not is lost


@contextlib.contextmanager
def stopping(stop: Stop | None) -> Iterator[Stop]:
    """The caller's flag, or one of our own that SIGINT and SIGTERM set."""
    if stop is not None:
        yield stop
    else:
        with on_signals(signal.SIGINT, signal.SIGTERM) as own:
            yield own


def asked_to_stop(stop: Stop) -> bool:
    """Whether any process was asked to stop; from here on all of them know it, and why."""
    asked = [a for a in distributed.gather_objects((stop.why, stop.signal) if stop.is_set() else None) if a]
    for reason in asked:
        stop.ask(*reason)
    return bool(asked)                              # not the flag: it may have been set here only, a moment ago


class _Follower:
    """What processes other than the main one hold."""

    def lost(self) -> bool:
        return False

    def release(self) -> None:
        pass


@contextlib.contextmanager
def claimed(folder: RunFolder) -> Iterator[Any]:
    """The lease of a run, or None on all processes; only the main one claims."""
    held: list[Any] = []

    def claim() -> bool:
        held.extend(filter(None, [folder.claim()]))
        return bool(held)

    ours = from_main(claim)
    lease = held[0] if held else _Follower()
    try:
        yield lease if ours else None
    finally:
        lease.release()


def together(folder: RunFolder, error: Exception) -> None:
    """After a failure of one of several processes: returns when all have failed at the same place, and can go on with
    the next run. Else nobody knows what the others wait for, and the job ends."""
    if world_size() == 1:
        return
    if not isinstance(error, PeerLost):
        file = folder.logs / f"failure-rank{distributed.rank()}.txt"
        with contextlib.suppress(OSError):          # before the others can notice: the main process points to it
            write_atomic(file, "".join(traceback.format_exception(error)))
        try:
            meet(MEET_WITHIN, failed=True)
        except PeerLost as lost:
            log.error("%s", lost)
        else:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            return
    end(str(error) or type(error).__name__)


def end(why: str) -> NoReturn:
    """Leave without tidying up: destructors of a group whose members are gone may wait for them. The exit code tells
    the launcher, which ends the others."""
    log.error("process %d ends, and with it the job: %s", distributed.rank(), why)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
