"""The lease: one driver at a time works on a table.

Correctness does not depend on the lease: the committer's compare-and-swap ensures it (see `committing`). The lease
saves the second driver's work and tells its user which process holds the table. It is kept in the table's config, where
two drivers that start from the same version conflict.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass

import psutil

from pipelines.store.retries import Fault, classify, retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import is_conflict, open_dataset, translate

LEASE_KEY = "isthmus.lease"
TTL_S = 600.0
_ATTEMPTS = 10
# Jobs of this process that ended but could not release their lease, because the store refused.
_LEFT: set[str] = set()
log = logging.getLogger(__name__)


class LeaseHeldError(RuntimeError):
    """Another driver works on the table."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lease.

    Attributes:
        job: random id of the job.
        host: host name of the machine.
        pid: process id on that host.
        started: when the process started, Unix seconds; tells it from a later process with the same id.
        expires: when the lease expires, Unix seconds.
    """

    job: str
    host: str
    pid: int
    started: float
    expires: float

    @classmethod
    def this_process(cls, job: str) -> Holder:
        """This process, with a lease of full length from now."""
        started = psutil.Process().create_time()
        expires = time.time() + TTL_S
        return cls(job=job, host=socket.gethostname(), pid=os.getpid(), started=started, expires=expires)

    def is_alive(self) -> bool:
        """False once the lease has expired, or as soon as a holder on this host has ended."""
        if time.time() >= self.expires:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        except psutil.NoSuchProcess:
            return False


class Lease:
    """A lease on a table: taken by `acquire`, extended by `renew`, given back by `release`."""

    def __init__(self, table: TableRef, holder: Holder) -> None:
        self._table = table
        self._holder = holder

    @classmethod
    def acquire(cls, table: TableRef) -> Lease:
        """Take the lease of an existing table.

        Raises:
            LeaseHeldError: another driver holds it; names the holder.
        """
        lease = cls(table, Holder.this_process(uuid.uuid4().hex))
        lease._write(lease._holder)
        return lease

    def renew(self) -> None:
        """Extend the lease once half of its time has passed.

        Raises:
            LeaseHeldError: another driver has taken the lease.
        """
        if self._holder.expires - time.time() < TTL_S / 2:
            self._holder = Holder.this_process(self._holder.job)
            self._write(self._holder)

    def release(self) -> None:
        """Give the lease back, if this job still holds it."""
        try:
            self._write(None)
        except LeaseHeldError:
            return
        except OSError as error:  # raising it would hide the error that ends the job, usually the same one
            _LEFT.add(self._holder.job)
            log.warning("table %s: the lease could not be released; it will expire by itself: %s", self._table, error)

    def _write(self, holder: Holder | None) -> None:
        """Set the lease by compare-and-swap on the config. A retry after a lost response finds its own lease."""
        retry(lambda: self._write_once(holder), self._table.uri)

    def _write_once(self, holder: Holder | None) -> None:
        value = json.dumps(asdict(holder)) if holder else None
        for _ in range(_ATTEMPTS):
            dataset = open_dataset(self._table)
            self._check(dataset.config().get(LEASE_KEY))
            try:
                if value is None:
                    dataset.delete_config_keys([LEASE_KEY])
                else:
                    dataset.update_config({LEASE_KEY: value})
                return
            except OSError as error:
                if not is_conflict(error):
                    if classify(error) is Fault.TRANSIENT:
                        raise
                    raise translate(error, self._table.uri) from error
                time.sleep(0.05)
        raise LeaseHeldError(f"table {self._table}: its config changes too often to take the lease; try again")

    def _check(self, raw: str | None) -> None:
        held = Holder(**json.loads(raw)) if raw else None
        if held and held.job not in (self._holder.job, *_LEFT) and held.is_alive():
            until = time.strftime("%H:%M:%S", time.localtime(held.expires))
            raise LeaseHeldError(
                f"table {self._table}: another isthmus job writes to it (process {held.pid} on {held.host}, "
                f"lease until {until}); wait for it or end it"
            )
