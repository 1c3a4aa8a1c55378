"""A name or a folder -> a folder with files; and the way back, push_folder.

    folder = resolve_model("gpt2", ("config.json", "model.safetensors"))

Looked for in this order: a local folder; the Hugging Face cache; a download into that cache, in its own
layout, so that transformers finds the files as well. There, below models--user--name/,

    blobs/<etag>                   holds the bytes
    snapshots/<commit>/<file>      is a link to them
    refs/main                      names the commit that was main when it was fetched
    .no_exist/<commit>/<file>      says that the repo has no such file

The environment counts as it does for huggingface_hub: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE...
A download that was cut off goes on with Range, as long as the server still has the same commit and etag; else it starts over.
It is bounded: in retries, in bytes, and in time, see the numbers below.
Left out: looking for a newer commit than the cached one, since a model should not change under its user; and locks: two
processes that want the same file both fetch it, and one blob stands at the end.
"""

import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Sequence
from urllib.parse import urljoin, urlsplit

from .atomic import sha256, sync, write_text

RETRIES = 5                         # in a row without a new byte
BACKOFF = 0.25                      # seconds before the first retry, doubled for each further one
MAX_WAIT = 60                       # seconds; a server that asks for a longer pause ends the download
SLOWEST, GRACE = 10_000, 600        # slower than 10 kB/s on average, the first ten minutes aside, is given up
LARGEST = {".safetensors": 2**34, "": 2**27}        # bytes of weights (gpt2-xl has 6.4e9), and of any other file
SMALL = 2**22                                   # bytes; smaller files are hashed each time they are looked for in the cache
PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)      # what a word must look like before it becomes a file name

REFUSALS = {
    401: (PermissionError, "no such repo, or a private one for which HF_TOKEN is missing or not valid"),
    403: (PermissionError, "no access with this HF_TOKEN: accept the model's terms on its page, or take another token"),
    404: (FileNotFoundError, "no such repo or file (nor a folder of that name on this disk): check the name"),
}


class HubModel(NamedTuple):
    """A repo of the Hub, and what is known of it: file name -> (bytes, sha256), None where no value is published."""
    repo: str
    revision: str = "main"
    files: dict[str, tuple] = {}             # all that minippo may ask for; empty: contents not known


COMMON = {
    "vocab.json": (1042301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "merges.txt": (456318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}
PUBLIC_MODELS = {    # at a pinned revision, and known by their bytes: a cached file of another size or hash does not count
    "gpt2": HubModel("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e", COMMON | {
        "config.json": (665, "0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4"),
        "model.safetensors": (548105171, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707")}),
    "gpt2-medium": HubModel("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da", COMMON | {
        "config.json": (718, "ef1a44d889ad1a0acc7731c78134f1b87d2d222f110e97dd10fd4117331caf22"),
        "model.safetensors": (1519984962, "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd")}),
    "gpt2-large": HubModel("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519",
                           dict.fromkeys((*COMMON, "config.json", "model.safetensors"), (None, None))),
    "gpt2-xl": HubModel("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2", COMMON | {
        "config.json": (689, "be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a"),
        "model.safetensors": (None, "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a")}),
    "distilgpt2": HubModel("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa", COMMON | {
        "config.json": (762, "4ec5947c1d59fee6212cdf3b0ec1a53eac02092554c5ff0a733488cbd2c64f3a"),
        "model.safetensors": (352824413, "e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b")}),
}


def check_repo_id(repo_id: str) -> None:
    """ValueError unless `repo_id` is `name` or `user/name` as the Hub allows it: it becomes a path and an address."""
    if (not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]{0,95}", repo_id, re.ASCII)
            or "--" in repo_id or ".." in repo_id or repo_id.endswith((".git", ".", "-"))):
        raise ValueError(f"{repo_id!r} is not a repo id (nor a folder that exists): expected name or user/name, at "
                         "most 96 of A-Z a-z 0-9 _ - . without - or . at an end, without -- or .. or a final .git")


def hf_path(rest: str, *names: str) -> Path:
    """The first of `names` that the environment sets, else `rest` in HF_HOME."""
    home = os.environ.get("HF_HOME") or (os.environ.get("XDG_CACHE_HOME") or "~/.cache") + "/huggingface"
    path = next((os.environ[name] for name in names if os.environ.get(name)), f"{home}/{rest}")
    return Path(os.path.expanduser(os.path.expandvars(path)))


def storage_of(repo: str) -> Path:
    return hf_path("hub", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") / ("models--" + repo.replace("/", "--"))


def refusal(what: str, status: int | None, reason: object) -> OSError:
    """The error for a server's status, with advice or the reason in one line."""
    kind, text = REFUSALS.get(status, (OSError, " ".join(str(reason).split())))
    return kind(f"{what}: status {status}, {text}" if status else f"{what}: {text}")


def faults(folder: Path, files: Sequence[str], known: dict[str, tuple]) -> list[str]:
    """What is wrong with each of `files` that is not there, or not the one whose size and hash are known."""
    wrong = []
    for name in files:
        path, (size, digest) = folder / name, known.get(name, (None, None))
        if not path.is_file():
            wrong.append(f"lacks {name}" + (f" (a broken link to {os.readlink(path)})" if path.is_symlink() else ""))
        elif size not in (None, path.stat().st_size) or digest and path.stat().st_size < SMALL and sha256(path) != digest:
            wrong.append(f"has another {name} than the published one")
    return wrong


def find_cached(repos: Sequence[str], model: HubModel, files: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The cached snapshot that holds `files`, or None; and for the message what was seen at each place."""
    seen = []
    for storage in map(storage_of, repos):
        ref = storage / "refs" / "main"
        snapshots = sorted(path for path in storage.glob("snapshots/*") if path.is_dir())
        names = [model.revision, ref.read_text().strip() if ref.is_file() else None]
        chosen = [path for name in names for path in snapshots if path.name == name] if len(snapshots) != 1 else snapshots
        for snapshot in chosen:
            if not (wrong := faults(snapshot, files, model.files)):
                return snapshot, seen
            seen.append(f"{snapshot} {', '.join(wrong)}")
        if not chosen:
            seen.append(f"{storage} holds no snapshot that refs/main names, of {[path.name for path in snapshots]}")
    return None, seen


class Retry(Exception):
    """A failure that another request may mend: (what broke, the seconds that the server asks to wait or None)."""


def say(text: str, end: str = "\n") -> None:
    """A line on stderr, also where that is closed, full or not there; with a carriage return at its end for terminals only."""
    with suppress(OSError, ValueError, AttributeError):
        if end == "\n" or sys.stderr.isatty():
            sys.stderr.write(text + end)
            sys.stderr.flush()


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
    """Download `url` to `temp`, a new file, going on where it was cut off; returns the endpoint's headers, names in lower case."""
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


def download_file(storage: Path, repo: str, revision: str, name: str, size: int | None, digest: str | None) -> str:
    """Download one file into the cache; returns its commit. It gets its name only when it is whole and checked."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise ValueError(f"HF_ENDPOINT is {endpoint!r}, expected an address that starts with https:// or http://")
    url = f"{endpoint}/{repo}/resolve/{revision}/{name}"
    file, temp = hf_path("token", "HF_TOKEN_PATH"), storage / "blobs" / f"{uuid.uuid4().hex}.incomplete"
    token = os.environ.get("HF_TOKEN") or (file.read_text() if file.is_file() else "")
    try:
        # split: a line break would end up, with the token, in http.client's error message
        facts = fetch(url, temp, size, f"{repo}/{name}", "".join(token.split()))
        sync(temp)
        commit = facts.get("x-repo-commit", "") if revision == "main" else revision
        if not PLAIN.fullmatch(commit):
            raise OSError(f"{url}: no X-Repo-Commit in the answer; is HF_ENDPOINT a Hugging Face server?")
        etag, found = (facts.get("x-linked-etag") or facts.get("etag", "")).removeprefix("W/").strip('"'), sha256(temp)
        for wanted in (digest, etag if re.fullmatch("[0-9a-f]{64}", etag) else None):       # a large file's etag is its sha256
            if wanted not in (None, found):
                raise OSError(f"{url}: sha256 is {found}, expected {wanted}; deleted, try again")
        blob = storage / "blobs" / (etag if PLAIN.fullmatch(etag) else found)
        os.replace(temp, blob)
    finally:
        temp.unlink(missing_ok=True)
    link = storage / "snapshots" / commit / name
    link.parent.mkdir(parents=True, exist_ok=True)
    staged = link.with_name(temp.name)
    try:
        os.symlink(os.path.relpath(blob, link.parent), staged)
    except OSError:                     # a disk without symbolic links: the snapshot holds the file itself
        staged = blob
    os.replace(staged, link)            # also over a broken link
    return commit


def download(storage: Path, model: HubModel, files: Sequence[str], optional: Sequence[str]) -> Path:
    """Fetch what the snapshot lacks and return its folder; an optional file that the repo does not have is noted."""
    commit, ref = "" if model.revision == "main" else model.revision, storage / "refs" / "main"
    for name in (*files, *optional):
        snapshot, absent = storage / "snapshots" / commit, storage / ".no_exist" / commit / name
        if commit and (name in optional and absent.exists() or not faults(snapshot, (name,), model.files)):
            continue
        try:
            commit = download_file(storage, model.repo, commit or "main", name, *model.files.get(name, (None, None)))
        except urllib.error.HTTPError as error:
            commit = commit or error.headers.get("X-Repo-Commit", "")       # sent with a missing file, not a missing repo
            if error.code != 404 or name in files or not PLAIN.fullmatch(commit):
                raise refusal(error.filename, error.code, error.reason) from None
            absent = storage / ".no_exist" / commit / name
            absent.parent.mkdir(parents=True, exist_ok=True)
            absent.touch()
        if model.revision == "main" or not ref.exists():
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_text(ref, commit)     # no newline: huggingface_hub 0.x fails on one
    snapshot = storage / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    return snapshot


def resolve_model(name_or_dir: str | os.PathLike, files: Sequence[str], optional: Sequence[str] = ()) -> Path:
    """A local folder that holds `files`, and those of `optional` that exist; OSError where there is none."""
    if bad := [name for name in (*files, *optional) if not PLAIN.fullmatch(name)]:
        raise ValueError(f"file name {bad[0]!r}: expected a plain name, no path")
    name = os.fspath(name_or_dir)
    folder = Path(os.path.expanduser(name))
    is_path = not isinstance(name_or_dir, str) or name.startswith((os.sep, ".", "~")) or name.count("/") > 1
    if is_path or name and os.path.lexists(folder):
        if wrong := faults(folder, files, {}) if folder.is_dir() else ["does not exist or is no folder"]:
            raise FileNotFoundError(f"{folder} {', '.join(wrong)}: expected a folder with {', '.join(files)}")
        return folder
    check_repo_id(name)
    model, repos = HubModel(name), (name,)
    for short, public in PUBLIC_MODELS.items():
        if name in (short, public.repo):
            model, repos = public, (public.repo, short)     # the cache may have it under either name
    optional = [name for name in optional if name in model.files or not model.files]
    snapshot, seen = find_cached(repos, model, files)
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        if snapshot is None:
            raise FileNotFoundError(f"{name} is not cached ({'; '.join(seen)}), and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE "
                                    f"is set: unset it, or put {', '.join(files)} into a folder and give its path")
        return snapshot
    if snapshot is None:
        return download(storage_of(model.repo), model, files, optional)
    known = model.files if snapshot.name == model.revision else {}
    try:
        download(snapshot.parents[1], HubModel(model.repo, snapshot.name, known), (), optional)
    except OSError as error:            # no network, a cache that is read-only: what must be there is there
        say(f"{snapshot}: going on without {', '.join(optional)}, as far as they are not there ({error})")
    return snapshot


def push_folder(folder: str | os.PathLike, repo_id: str, token: str | None, private: bool, commit_message: str) -> str:
    """Upload a folder to the Hub, to a new repo where there is none; returns its address. token: None for the stored one."""
    check_repo_id(repo_id)
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError("sharing on the Hub needs the package huggingface_hub: pip install huggingface_hub") from None
    try:
        api = huggingface_hub.HfApi(token=token)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=commit_message)
    except Exception as error:    # huggingface_hub passes on the errors of requests up to 0.x, of httpx from 1.0 on
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise refusal(f"pushing {folder} to {repo_id} failed", status, error) from error
    return str(url)
