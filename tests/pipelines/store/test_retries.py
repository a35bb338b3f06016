"""Mistaking a transient failure for a final one costs a job; mistaking a refusal for a transient one costs hours."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from pipelines.store.retries import Fault, Refusals, RetryPolicy, classify, has_ended, read_again, retry
from pipelines.store.storage import Storage

URI = "s3://bucket/some/file"
POLICY = RetryPolicy(attempts=5, base_s=1.0, cap_s=3.0, missing_attempts=3)


def from_s3(code: str, kind: type[OSError] = OSError) -> OSError:
    """An error as s3fs raises it: a Python error whose cause is botocore's."""
    error = kind("a message of the store's own")
    error.__cause__ = ClientError({"Error": {"Code": code, "Message": "no"}}, "GetObject")
    return error


def from_lance(status: str, code: str) -> OSError:
    return OSError(
        "LanceError(IO): Generic S3 error: Error performing GET http://h/timeout-404/SlowDown in 1ms - Server returned "
        f"non-2xx status code: {status}: <Error><Code>{code}</Code></Error>, /x/object_store.rs:182:69"
    )


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (from_s3("SlowDown"), Fault.TRANSIENT),
        (from_s3("500"), Fault.TRANSIENT),
        (from_s3("NoSuchKey", FileNotFoundError), Fault.NOT_FOUND),
        (from_s3("AccessDenied", PermissionError), Fault.DENIED),
        (from_s3("403", PermissionError), Fault.DENIED),
        (from_s3("InvalidAccessKeyId", PermissionError), Fault.BAD_CREDENTIALS),
        (from_s3("ExpiredToken", PermissionError), Fault.EXPIRED),
        (from_s3("InvalidRange"), Fault.OTHER),
        (ReadTimeoutError(endpoint_url="http://h"), Fault.TRANSIENT),
        (EndpointConnectionError(endpoint_url="http://h"), Fault.TRANSIENT),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Fault.TRANSIENT),
        (OSError(errno.ETIMEDOUT, "timed out"), Fault.TRANSIENT),
        (from_lance("503 Service Unavailable", "SlowDown"), Fault.TRANSIENT),
        (from_lance("500 Internal Server Error", "InternalError"), Fault.TRANSIENT),
        (from_lance("403 Forbidden", "AccessDenied"), Fault.DENIED),
        (from_lance("403 Forbidden", "ExpiredToken"), Fault.EXPIRED),
        (from_lance("400 Bad Request", "EntityTooLarge"), Fault.OTHER),
        (pa.ArrowInvalid("LanceError(IO): Generic S3 error: HTTP error: error sending request"), Fault.TRANSIENT),
        (OSError("LanceError(IO): Generic N/A error: Not found: d/_versions/1.manifest, x.rs:1:1"), Fault.NOT_FOUND),
        (pa.ArrowInvalid("Parquet magic bytes not found in footer"), Fault.OTHER),
        (ValueError("the connection reset button has no caption"), Fault.OTHER),
        (OSError(errno.ENOSPC, "No space left on device"), Fault.OTHER),
    ],
)
def test_errors_are_told_apart(error: Exception, fault: Fault) -> None:
    assert classify(error) is fault


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def step() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return step


def test_a_transient_failure_is_tried_again_with_growing_jittered_waits() -> None:
    waits: list[float] = []
    assert retry(failing(*[from_s3("SlowDown")] * 4), URI, POLICY, waits.append) == "done"
    assert len(waits) == 4
    assert all(0 <= wait <= bound for wait, bound in zip(waits, [1.0, 2.0, 3.0, 3.0], strict=True))
    assert len(set(waits)) == 4, "without jitter all workers come back at once"


def test_retries_end_with_one_line_that_says_why_and_are_not_begun_anew_by_a_step_around() -> None:
    waits: list[float] = []
    inner = failing(*[from_s3("SlowDown")] * 100)
    with pytest.raises(
        ConnectionError, match=r"s3://bucket/some/file: .* 5 times in a row.* SlowDown; check"
    ) as caught:
        retry(lambda: retry(inner, URI, POLICY, waits.append), URI, POLICY, waits.append)
    assert len(waits) == 4
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("code", "words"), [("AccessDenied", "refuses"), ("ExpiredToken", "expired; renew")])
def test_a_refusal_is_not_tried_again(code: str, words: str) -> None:
    waits: list[float] = []
    with pytest.raises(PermissionError, match=words):
        retry(failing(from_s3(code, PermissionError)), URI, POLICY, waits.append)
    assert not waits


def test_what_is_not_there_is_asked_for_less_often() -> None:
    waits: list[float] = []
    assert retry(failing(*[from_s3("NoSuchKey", FileNotFoundError)] * 2), URI, POLICY, waits.append) == "done"
    with pytest.raises(FileNotFoundError):
        retry(failing(*[from_s3("NoSuchKey", FileNotFoundError)] * 9), URI, POLICY, waits.append)
    assert len(waits) == 4


def test_disk_errors_are_final() -> None:
    with pytest.raises(TimeoutError):
        retry(failing(TimeoutError()), "/on/disk", POLICY, pytest.fail)


def test_the_end_of_retries_reaches_the_driver_from_a_worker() -> None:
    with pytest.raises(ConnectionError) as caught:
        retry(failing(*[TimeoutError()] * 9), URI, POLICY, lambda wait: None)
    sent = pickle.loads(pickle.dumps(caught.value))
    assert (type(sent), str(sent), has_ended(sent)) == (ConnectionError, str(caught.value), True)


def test_a_shard_that_breaks_off_is_taken_up_where_it_broke() -> None:
    """Rows that were yielded before must not come twice, whatever the tables' sizes."""
    breaks = [3, 0, 7, 7, 9]

    def read() -> Iterator[pa.Table]:
        stop = breaks.pop(0) if breaks else 99
        for start in range(0, 10, 2):
            if start + 2 > stop:
                raise ConnectionResetError("in the middle")
            yield pa.table({"n": [start, start + 1]})

    tables = read_again(read, URI, POLICY, lambda wait: None)
    assert [n for table in tables for n in table["n"].to_pylist()] == list(range(10))
    assert not breaks


def test_a_listed_file_that_is_gone_is_named() -> None:
    def read() -> Iterator[pa.Table]:
        raise from_s3("NoSuchKey", FileNotFoundError)
        yield

    with pytest.raises(FileNotFoundError, match=r"some/file was listed and is gone; run the job again"):
        list(read_again(read, URI, POLICY, lambda wait: None))


def test_secrets_are_taken_out_of_what_servers_quote() -> None:
    storage = Storage.from_options({"aws_secret_access_key": "hush", "aws_session_token": "t0ken"})
    assert storage.redact("x-amz-security-token:t0ken hush") == "x-amz-security-token:*** ***"


@pytest.mark.parametrize("value", ["soon", "0", "-1s", "inf"])
def test_timeouts_that_are_none_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match=f"request_timeout '{value}'"):
        Storage.from_options({"request_timeout": value})


def test_one_object_that_is_refused_stops_no_job_and_wrong_credentials_do() -> None:
    denied, unknown = from_s3("AccessDenied", PermissionError), from_s3("SignatureDoesNotMatch", PermissionError)
    seen = Refusals()
    seen.served("s3://open/a.jpg")
    assert not any(seen.stops(f"s3://open/{i}.jpg", denied) for i in range(100)), "the bucket gives others"
    assert [seen.stops(f"s3://closed/{i}.jpg", denied) for i in range(9)] == [False] * 7 + [True] * 2
    assert seen.stops("s3://open/a.jpg", unknown)
    assert seen.stops("s3://open/a.jpg", from_s3("ExpiredToken", PermissionError))
    assert not seen.stops("/disk/a.jpg", PermissionError("a file of somebody else's"))
    assert not seen.stops("s3://closed/a.jpg", from_s3("NoSuchKey", FileNotFoundError))


@pytest.mark.parametrize("code", ["AccessDenied", "SignatureDoesNotMatch", "ExpiredToken", "NoSuchKey", "SlowDown"])
def test_what_ends_the_tries_is_still_told_apart(code: str) -> None:
    first = from_s3(code)

    def step() -> None:
        raise first

    with pytest.raises(OSError, match="some") as caught:
        retry(step, URI, POLICY, sleep=lambda _: None)
    assert classify(caught.value) is classify(first) is not Fault.OTHER
    assert classify(pickle.loads(pickle.dumps(caught.value))) is classify(first), "also from a worker"
