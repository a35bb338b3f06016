"""`isthmus serve` itself, driven by a browser as an analyst would use it, and by a thousand hostile requests."""

from __future__ import annotations

import http.client
import json
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import lance
import pytest
from browsers import browser_page
from corpora import picture
from serving_tools import SECRET, N, make_table

if TYPE_CHECKING:
    from playwright.sync_api import Page

UPS = ("../", "..%2f", "%2e%2e/", "..\\", "%252e%252e%252f", "....//", "/", "%00")
FILES = ("etc/passwd", "secret.txt", "proc/self/environ", "app.py", "windows/win.ini")
URLS = ("http://169.254.169.254/", "file:///etc/passwd", "s3://bucket/key", "http://localhost:22/", "gopher://x/")
SQL = (
    *("' OR '1'='1", "1; DROP TABLE t", "1) OR (1=1", "x' UNION SELECT * FROM t --", "/* */", "\x00", "`"),
    *("price < 3 limit 1", "it's' or shop = 'plain", "1=1 or true; select 1"),
)
HOSTS = ("evil.example", "localhost.evil.example", "169.254.169.254", "127.0.0.1.nip.io")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of the command, serving a table twice under two names."""
    table = make_table(folder)
    other = str(folder / "db" / "other")
    lance.write_dataset(lance.dataset(table.uri).to_table(), f"{other}.lance")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", "serve", str(folder / "db" / "t"), other, "--port", "0"], stderr=log
        )
    try:
        yield wait_for_address(process, folder / "log")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130), (folder / "log").read_text()


def wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    import time

    deadline = time.monotonic() + 60
    while True:
        if found := re.search(r"http://\S+", log.read_text().replace("\n", "")):
            return found[0].rstrip("/")
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "no address in a minute"
        time.sleep(0.1)


@pytest.fixture
def page(server: str) -> Iterator[Page]:
    """A browser page; any error on it fails the test."""
    with browser_page() as made:
        made.goto(server)
        made.wait_for_selector("#table option", state="attached")
        yield made


def answered(page: Page) -> list[str]:
    """The rows on the page, once all have loaded."""
    page.wait_for_selector("section[aria-busy=false]")
    page.wait_for_function("() => !document.querySelector('section[aria-busy=true]')")
    return [card.get_attribute("data-row") or "" for card in page.query_selector_all(".card")]


def test_an_analyst_types_drops_filters_composes_and_shares(page: Page, server: str, folder: Path) -> None:
    page.keyboard.press("/")
    page.keyboard.type("red thing")
    page.keyboard.press("Enter")
    words = answered(page)
    assert len(words) == 24
    assert "red+thing" in page.url
    page.wait_for_function("() => [...document.querySelectorAll('.card img')].slice(0, 6).every(i => i.complete)")
    assert page.evaluate("() => [...document.querySelectorAll('.card img')].filter(i => i.naturalWidth > 0).length") > 3

    page.click("text=Filters")
    page.select_option("select[name=shop]", "it's")
    filtered = answered(page)
    assert filtered
    assert all(int(row.removeprefix("r'")) % 3 == 0 for row in filtered)
    page.fill("input[name='price.at_least']", "30")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#filtered').textContent.includes('price')")
    assert all(int(row.removeprefix("r'")) >= 30 for row in answered(page))

    page.click(".card >> nth=0 >> .alike")
    page.wait_for_selector(".term")
    chosen, alike = answered(page), page.url
    page.click(".card >> nth=2 >> .away")
    page.wait_for_selector(".term.away")
    composed, url = answered(page), page.url
    assert composed != chosen
    assert url != alike
    page.reload()
    page.wait_for_selector(".term.away")
    assert answered(page) == composed, "a URL is the whole view"
    page.go_back()
    page.wait_for_function("() => !document.querySelector('.term.away')")
    assert answered(page) == chosen

    page.select_option("#beside", "other")
    page.wait_for_function("() => document.querySelectorAll('section').length === 2")
    both = answered(page)
    assert both[: len(both) // 2] == both[len(both) // 2 :], "the same table beside itself"
    page.keyboard.press("Escape")
    page.wait_for_selector("text=Type words, or drop a picture")

    drop(page, picture(7))
    page.wait_for_selector("text=your picture")
    page.select_option("#beside", "")
    assert answered(page)[0] == "r'7"
    page.screenshot(path=str(folder / "page.png"))


def drop(page: Page, data: bytes) -> None:
    """Drop a picture file onto the page."""
    transfer = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "p.jpg", {type: "image/jpeg"}));
            return transfer;
        }""",
        list(data),
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def test_the_page_works_by_keyboard_at_phone_width_and_shows_what_is_wrong(page: Page) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    page.fill("#words", "green")
    page.keyboard.press("Enter")
    rows = answered(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 380, "nothing hangs over the edge"
    page.locator("#words").blur()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => document.activeElement.dataset.row") == rows[1]
    page.keyboard.press("Enter")
    page.wait_for_selector(".term")
    assert rows[1] not in answered(page)
    theme = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") != theme
    page.goto(page.url.split("?")[0] + "?" + "i=" + "0" * 32)
    assert "bring it again" in page.wait_for_selector("[role=alert]").inner_text()  # type: ignore[union-attr]


def test_captions_are_text_and_never_markup(page: Page) -> None:
    page.goto(page.url.split("?")[0] + "?q=" + quote("<img src=x onerror=alert(1)>"))
    answered(page)
    assert page.evaluate("() => document.querySelector('#words').value") == "<img src=x onerror=alert(1)>"
    assert not page.query_selector("img[onerror]")


def hostile(rng: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
    """A malicious request: method, path as sent over the wire, body, headers."""
    up, target, sql, url = rng.choice(UPS) * rng.randrange(1, 9), rng.choice(FILES), rng.choice(SQL), rng.choice(URLS)
    noise = bytes(rng.randrange(256) for _ in range(rng.randrange(2_000)))
    odd = rng.choice([up + target, sql, url, "r" * 5_000])
    number = rng.choice(["k", "skip", "diversity", "not_weight"])
    searches: list[dict[str, Any]] = [
        {"table": odd},
        {"where": sql},
        {"where": f"note = '{sql}"},
        {"filters": [{"column": sql, "value": sql}]},
        {"filters": [{"column": "shop", "value": sql}]},
        {"filters": [{"column": "price", "operation": "at_least", "value": sql}]},
        {"like": [odd]},
        {"vector": rng.choice([sql, "image_vector,", "caption"])},
        {"images": [rng.choice([url, up, "f" * 32])]},
        {number: rng.choice([-(10**12), 10**30, "1", None, []])},
    ]
    paths = [
        f"/static/{up}{target}",
        f"/{up}{target}",
        f"/api/tables/{quote(odd, safe='')}/picture?row=r",
        f"/api/tables/t/picture?row={quote(odd, safe='')}",
        f"/api/pictures/{quote(odd, safe='')}",
    ]
    json_type = {"Content-Type": "application/json"}
    kind = rng.randrange(10)
    if kind < 4:
        return "GET", rng.choice(paths), b"", {}
    if kind < 7:
        body = {"table": "t", "words": "red", **rng.choice(searches)}
        return "POST", "/api/search", json.dumps(body).encode(), json_type
    bodies = [noise, b"[" * 3_000 + b"]" * 3_000, b"{", b"\xff\xfe", json.dumps({"url": url}).encode()]
    if kind == 7:
        return "POST", rng.choice(["/api/search", "/api/pictures"]), rng.choice(bodies), json_type
    if kind == 8:
        return "POST", "/api/pictures", picture(3)[: rng.randrange(300)] + noise, {}
    method = rng.choice(["PUT", "DELETE", "PATCH", "GET", "OPTIONS"])
    return method, rng.choice(["/", "/api/tables", "/static/app.js"]), b"", {"Host": rng.choice(HOSTS)}


def test_a_thousand_hostile_requests_get_nothing_and_the_server_stays_up(server: str, folder: Path) -> None:
    rng = random.Random(4)
    version, files = lance.dataset(str(folder / "db" / "t.lance")).version, sorted(folder.rglob("*"))
    statuses: Counter[int] = Counter()
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
    for _ in range(1_000):
        method, path, body, headers = hostile(rng)
        if method == "GET" and any(c in path for c in " \x00"):
            path = quote(path, safe="/%?=.\\")
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        data = answer.read()
        statuses[answer.status] += 1
        assert SECRET not in data
        assert b"root:" not in data
        assert b"import " not in data
        assert answer.status < 500, (method, path, body, data)
        assert "Host" not in headers or answer.status == 400
        if answer.status == 200 and path == "/api/search":
            asked = json.loads(body)
            assert "where" in asked or not asked.get("filters") or json.loads(data)["hits"] == [], asked
    connection.close()
    assert min(statuses[400], statuses[404], statuses[422]) > 50, statuses
    found = lance.dataset(str(folder / "db" / "t.lance"))
    assert (found.version, found.count_rows(), sorted(folder.rglob("*"))) == (version, N, files)
    again = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
    again.request(
        "POST", "/api/search", json.dumps({"table": "t", "words": "red", "k": 5}), {"Content-Type": "application/json"}
    )
    assert len(json.loads(again.getresponse().read())["hits"]) == 5


def test_others_are_not_served_without_a_token(folder: Path, server: str) -> None:
    command = [sys.executable, "-m", "jobs.cli", "serve", str(folder / "db" / "t"), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "set ISTHMUS_TOKEN to a secret, or listen on 127.0.0.1" in done.stderr
