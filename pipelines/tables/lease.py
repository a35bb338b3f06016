"""The lease: one driver at a time works on a table.

It is kept in the table's config, where two drivers that start from the same version conflict. A driver that takes over
a lease that was not given back makes a version by the same compare-and-swap as every commit. A commit that the former
holder decided on before cannot land after it, and the next one finds that the lease is gone. So a driver that was
suspended, or whose clock is wrong, costs no row.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.store.retries import Fault, classify, retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import is_conflict, open_dataset, translate
from pipelines.tables.processes import ProcessIdentity, is_running, this_process
from pipelines.tables.swap import swap, swap_operation

if TYPE_CHECKING:
    import lance

LEASE_KEY = "isthmus.lease"
TTL_S = 600.0
_ATTEMPTS = 10
# Jobs of this process that have a lease now. A lease of this process that is not among them was left: the store refused
# its release, or an old version of the table was restored.
_ACTIVE: set[str] = set()
log = logging.getLogger(__name__)


class LeaseHeldError(RuntimeError):
    """Another driver works on the table."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lease.

    Attributes:
        job: random id of the job.
        process: the process.
        expires: when the lease expires, Unix seconds.
    """

    job: str
    process: ProcessIdentity
    expires: float

    @classmethod
    def this_process(cls, job: str) -> Holder:
        """This process, with a lease of full length from now."""
        return cls(job=job, process=this_process(), expires=time.time() + TTL_S)

    @classmethod
    def from_json(cls, text: str) -> Holder:
        """The holder as it stands in the config. Leases of older versions say less of their process."""
        data: dict[str, Any] = json.loads(text)
        return cls(job=data["job"], process=ProcessIdentity.from_dict(data), expires=data["expires"])

    def to_json(self) -> str:
        """The holder as it stands in the config."""
        return json.dumps({"job": self.job, "expires": self.expires, **asdict(self.process)})

    def is_alive(self) -> bool:
        """False once the lease has expired, or as soon as the process is known to have ended.

        Only a process that shares this one's machine, boot and numbering of processes can be known to have ended. In
        two containers, both may be process 1 of a host of the same name.
        """
        if time.time() >= self.expires:
            return False
        if self.process == this_process():
            return self.job in _ACTIVE
        return is_running(self.process) is not False


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
        _ACTIVE.add(lease._holder.job)
        try:
            if lease._write(lease._holder):
                retry(lease._fence, table.uri)
        except BaseException:
            _ACTIVE.discard(lease._holder.job)
            raise
        return lease

    def renew(self) -> None:
        """Extend the lease once half of its time has passed, or if the clock was set back.

        Raises:
            LeaseHeldError: another driver has taken the lease.
        """
        if not TTL_S / 2 <= self._holder.expires - time.time() <= TTL_S:
            self.touch()

    def touch(self) -> None:
        """Extend the lease now, which makes a version of the table.

        Raises:
            LeaseHeldError: another driver has taken the lease.
        """
        self._holder = Holder.this_process(self._holder.job)
        self._write(self._holder)

    def check(self, dataset: lance.LanceDataset) -> None:
        """Check that this job holds the lease in this version of the table. A commit is decided only on such a version.

        Raises:
            LeaseHeldError: another job has taken the lease, or the version has none of this job.
        """
        raw = dataset.config().get(LEASE_KEY)
        holder = Holder.from_json(raw) if raw else None
        if holder is not None and holder.job == self._holder.job:
            return
        by = f"another job took it over ({holder.process})" if holder else "the table was restored or written anew"
        raise LeaseHeldError(
            f"table {self._table}: this job lost its lease while it ran: {by}. Committed rows are kept; "
            "run the same command again for the rest"
        )

    def release(self) -> None:
        """Give the lease back, if this job still holds it."""
        _ACTIVE.discard(self._holder.job)
        try:
            self._write(None)
        except LeaseHeldError:
            return
        except OSError as error:  # raising it would hide the error that ends the job, usually the same one
            log.warning("table %s: the lease could not be released; it will expire by itself: %s", self._table, error)

    def _write(self, holder: Holder | None) -> bool:
        """Set the lease by compare-and-swap on the config. A retry after a lost response finds its own lease.

        Returns:
            Whether the lease was taken from a job that had not given it back.
        """
        return retry(lambda: self._write_once(holder), self._table.uri)

    def _write_once(self, holder: Holder | None) -> bool:
        for _ in range(_ATTEMPTS):
            dataset = open_dataset(self._table)
            held = dataset.config().get(LEASE_KEY)
            former = Holder.from_json(held) if held else None
            self._check_free(former)
            try:
                if holder is None:
                    dataset.delete_config_keys([LEASE_KEY])
                else:
                    dataset.update_config({LEASE_KEY: holder.to_json()})
                return former is not None and former.job != self._holder.job
            except OSError as error:
                self._raise_unless_conflict(error)
                time.sleep(0.05)
        raise LeaseHeldError(f"table {self._table}: its config changes too often to take the lease; try again")

    def _fence(self) -> None:
        """Make a version that every commit which the former holder decided on conflicts with.

        Raises:
            LeaseHeldError: yet another driver has taken the lease.
        """
        for _ in range(_ATTEMPTS):
            dataset = open_dataset(self._table)
            self.check(dataset)
            try:
                swap(self._table, dataset, swap_operation(dataset))
                return
            except OSError as error:
                self._raise_unless_conflict(error)
        raise LeaseHeldError(f"table {self._table}: other writers commit too often to take the lease; try again")

    def _raise_unless_conflict(self, error: OSError) -> None:
        if is_conflict(error):
            return
        if classify(error) is Fault.TRANSIENT:
            raise error
        raise translate(error, self._table.uri) from error

    def _check_free(self, held: Holder | None) -> None:
        if held and held.job != self._holder.job and held.is_alive():
            until = time.strftime("%H:%M:%S", time.localtime(held.expires))
            raise LeaseHeldError(
                f"table {self._table}: another isthmus job writes to it ({held.process}, lease until {until}); "
                "wait for it or end it"
            )
