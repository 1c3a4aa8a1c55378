"""One file from a server to the disk, over a bad line and from a server that may fail, lie or never end.

    headers = fetch("https://huggingface.co/user/model/resolve/main/config.json", Path("config.json"), None, "config.json", "")

A download that was cut off goes on with Range, as long as the server still has the same commit and etag; else it starts over.
It is bounded: in retries, in bytes, and in time, see the numbers below. hub.py checks the hash and gives the file its name.
"""

import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urljoin, urlsplit

RETRIES = 5                         # in a row without a new byte
BACKOFF = 0.25                      # seconds before the first retry, doubled for each further one
MAX_WAIT = 60                       # seconds; a server that asks for a longer pause ends the download
SLOWEST, GRACE = 10_000, 600        # slower than 10 kB/s on average, the first ten minutes aside, is given up
LARGEST = {".safetensors": 2**34, "": 2**27}        # bytes of weights (gpt2-xl has 6.4e9), and of any other file


class Retry(Exception):
    """A failure that another request may mend: (what broke, the seconds that the server asks to wait or None)."""


def say(text: str, end: str = "\n") -> None:
    """A line on stderr, also where that is closed, full or not there; with a carriage return at its end for terminals only."""
    try:
        if end == "\n" or sys.stderr.isatty():
            sys.stderr.write(text + end)
            sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass


def request(url: str, position: int, token: str):
    """GET `url` from byte `position` on; returns the response, its status 200 or 206, and the endpoint's own headers.

    Large files are redirected to a storage host: commit, size and hash are headers of the redirect; the token must not follow.
    """
    home, facts, timeout = urlsplit(url)[:2], {}, float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or 10)
    opener = urllib.request.OpenerDirector()                                # every answer is one: no status raises, and no
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        opener.add_handler(handler())                                       # redirect is followed unseen
    for _ in range(10):
        token = token if urlsplit(url)[:2] == home else ""                  # (scheme, host:port); and it does not come back
        headers = {"User-Agent": "minippo", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        headers |= {"Range": f"bytes={position}-"} if position else {}
        try:
            response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.URLError) and not position:       # no connection at all: say so at once
                raise ConnectionError(f"cannot reach {url}: {error.reason}; the path of a folder needs no network") from error
            raise Retry(error, None) from error
        answer, status, reason = response.headers, response.status, response.reason
        if urlsplit(url)[:2] == home:
            facts |= {name.lower(): value for name, value in answer.items()}
        if status in (200, 206):
            return response, facts
        response.close()                                                    # unread: its body may have no end
        to = urljoin(url, answer.get("Location", ""))
        if status not in (301, 302, 303, 307, 308) or not to.startswith(("http://", "https://")):
            break
        url = to
    if status in (408, 429) or status >= 500:
        after = answer.get("Retry-After", "")
        raise Retry(f"status {status} {reason}{after and ', Retry-After '}{after}", int(after) if after.isdigit() else None)
    raise urllib.error.HTTPError(url, status, reason, answer, None)


def receive(response, facts: dict, temp: Path, size: int | None, label: str, started: float) -> None:
    """Append the body to `temp`. Retry where reading breaks off; an error in writing, a full disk, stays what it is."""
    start = temp.stat().st_size if response.status == 206 else 0                # a server that ignores Range sends all again
    span, linked = response.headers.get("Content-Range", f"bytes {start}-"), facts.get("x-linked-size", "")
    announced = None if response.length is None else start + response.length
    size = size or (int(linked) if linked.isdigit() else announced)
    most = LARGEST.get(Path(label).suffix, LARGEST[""])
    if announced not in (None, size) or not span.startswith(f"bytes {start}-"):
        raise OSError(f"{response.url}: the server announces {announced} bytes ({span}), expected {size}: another file?")
    temp.parent.mkdir(parents=True, exist_ok=True)
    with open(temp, "ab" if start else "wb") as out:
        done, shown, chunk = start, 0.0, b" "
        while chunk and (size is None or done <= size):
            try:
                chunk = response.read1(2**20)
            except (OSError, http.client.HTTPException) as error:
                raise Retry(error, None) from error
            out.write(chunk)
            done, seconds = done + len(chunk), time.monotonic() - started
            if max(done, size or 0) > most or done < SLOWEST * (seconds - GRACE):
                raise ConnectionError(f"{response.url}: {done:,} of {size or '?'} bytes in {seconds:.0f} s; such a "
                                      f"file may have {most:,}, and must come at {SLOWEST:,} a second; gave up")
            if not chunk or seconds > shown + 0.2:
                shown, total = seconds, f" of {size:,} bytes, {100 * done // size}%" if size else " bytes"
                say(f"{label}: {done:,}{total}, {done / 1e6 / (seconds + 1e-3):.1f} MB/s", "\r" if chunk else "\n")
    if size not in (None, done):
        raise Retry(f"connection closed at byte {done} of {size}", None)


def fetch(url: str, temp: Path, size: int | None, label: str, token: str) -> dict[str, str]:
    """Download `url` to `temp`, a new file, going on where it was cut off; returns the endpoint's headers, names in lower case.

    size: the bytes it must have, where they are known; label: for the progress line. OSError where it failed for good.
    """
    started, failures, done, farthest, version = time.monotonic(), 0, 0, 0, None
    while True:
        try:
            response, facts = request(url, done, token)
            with response:
                now = facts.get("x-repo-commit"), facts.get("x-linked-etag") or response.headers.get("ETag")
                if response.status == 206 and (now != version or None in now):
                    temp.unlink()                                               # halves of two versions are no file
                    raise Retry("the server has another version now, or does not say which", None)
                version = now
                receive(response, facts, temp, size, label, started)
            return facts
        except Retry as error:
            problem, wait = error.args
        done = temp.stat().st_size if temp.exists() else 0
        failures = 1 if done > farthest else failures + 1                       # a large file over a bad line may be cut often
        farthest = max(farthest, done)
        wait = BACKOFF * 2 ** (failures - 1) if wait is None else wait
        if failures > RETRIES or wait > MAX_WAIT:
            raise ConnectionError(f"{url}: {problem}; gave up with {done} bytes here, try again later")
        say(f"{label}: {problem}; trying again in {wait:g} s")
        time.sleep(wait)
