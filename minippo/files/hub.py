"""A name or a folder -> a folder with files; and the way back, push_folder.

    folder = resolve_model("gpt2", ("config.json", "model.safetensors"))

Looked for in this order: a local folder; the Hugging Face cache; a download into that cache, in its own layout, so
that transformers finds the files as well. There, below models--user--name/,

    blobs/<etag>                   holds the bytes
    snapshots/<commit>/<file>      is a link to them
    refs/main                      names the commit that was main when it was fetched
    .no_exist/<commit>/<file>      says that the repo has no such file

The environment counts as it does for huggingface_hub: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE...

What was left out, and why:
1. Looking for a newer commit when a cached one has the files: a model should not change under its user.
2. Locks: two processes that want the same file both fetch it, and one blob stands at the end.
3. Hashing small files whose sha256 is not published: their etag is a git hash on the Hub, but not on every mirror.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urljoin, urlsplit

RETRIES = 5           # in a row without a new byte
BACKOFF = 0.25        # seconds before the first retry, doubled for each further one
MAX_WAIT = 60         # seconds; a server that asks for a longer pause ends the download
MAX_REDIRECTS = 10
CHUNK = 1 << 20       # bytes
PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)    # what a server's word must look like before it becomes a file name
SHA256 = re.compile(r"[0-9a-f]{64}")

KINDS = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}
ADVICE = {
    401: "no such repo, or a private one for which HF_TOKEN is missing or not valid",
    403: "no access with this HF_TOKEN: accept the model's terms on its page, or take a token that may do this",
    404: "no such repo or file (nor a folder of that name on this disk): check the name",
    409: "the repo was changed at the same time: try again",
    413: "a file is larger than the server takes",
    416: "the server announced more bytes than the file has",
}


@dataclass(frozen=True)
class HubModel:
    """A repo of the Hub, and what is known of it: file name -> (bytes, sha256), None where no value is published."""
    repo: str
    revision: str = "main"
    files: dict[str, tuple] = field(default_factory=dict)    # all that minippo may ask for; empty: contents not known


COMMON = {
    "generation_config.json": (124, "b90eadacf585a743a30ea51e8b5c88b8d282a2a34dc0c7e556d0987cdbd68805"),
    "tokenizer_config.json": (26, "5e04eb606e3a1583530a42e36c2a6b6615c86f34fe77e44d9ddeb43ff940931f"),
    "vocab.json": (1042301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "merges.txt": (456318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}
PUBLIC_MODELS = {    # at a pinned revision: the same name is the same bytes on every machine
    "gpt2": HubModel("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e", COMMON | {
        "generation_config.json": (124, "ed0b32ac72c0f5f44a719abb2d7786ea5146c871f83717b7f2018065954de02b"),
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


# --- names and the environment --------------------------------------------------------------------------------------

def check_repo_id(repo_id: str) -> None:
    """ValueError unless `repo_id` is `name` or `user/name` as the Hub allows it: it becomes a path and an address."""
    if (not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]{0,95}", repo_id, re.ASCII)
            or "--" in repo_id or ".." in repo_id or repo_id.endswith((".git", ".", "-"))):
        raise ValueError(f"{repo_id!r} is not a repo id (nor a folder that exists): expected name or user/name, at "
                         "most 96 of A-Z a-z 0-9 _ - . without - or . at an end, without -- or .. or a final .git")


def _check_file_name(name):
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise ValueError(f"file name {name!r}: expected a relative path inside the model folder")


def _env_path(name):
    value = os.environ.get(name)
    return Path(os.path.expandvars(value)).expanduser() if value else None


def _hf_home():
    return _env_path("HF_HOME") or (_env_path("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"


def _storage(repo):
    cache = _env_path("HF_HUB_CACHE") or _env_path("HUGGINGFACE_HUB_CACHE") or _hf_home() / "hub"
    return cache / ("models--" + repo.replace("/", "--"))


def _endpoint():
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise ValueError(f"HF_ENDPOINT is {endpoint!r}, expected an address that starts with https:// or http://")
    return endpoint


def _token():
    path = _env_path("HF_TOKEN_PATH") or _hf_home() / "token"
    token = os.environ.get("HF_TOKEN") or (path.read_text() if path.is_file() else "")
    return "".join(token.split())    # a line break would end up, with the token, in http.client's error message


def _offline():
    switches = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(switch.upper() in ("1", "ON", "YES", "TRUE") for switch in switches)


# --- what is on the disk already ------------------------------------------------------------------------------------

def _missing(folder, files):
    return [f"{name} (a broken link to {os.readlink(folder / name)})" if os.path.islink(folder / name) else name
            for name in files if not os.path.isfile(folder / name)]


def _check_folder(folder, files):
    if not folder.is_dir():
        state = "is a broken link" if folder.is_symlink() else "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {state}: expected a folder with {', '.join(files)}")
    if missing := _missing(folder, files):
        there = ", ".join(sorted(os.listdir(folder))[:20]) or "nothing"
        raise FileNotFoundError(f"folder {folder} lacks {', '.join(missing)}; it holds {there}")


def _find_cached(repos, revision, files):
    """The cached snapshot that holds `files`, or None; and for the message what was seen at each place."""
    seen = []
    for storage in map(_storage, repos):
        ref = storage / "refs" / "main"
        main = ref.read_text().strip() if ref.is_file() else None
        snapshots = {path.name: path for path in sorted(storage.glob("snapshots/*")) if path.is_dir()}
        chosen = [snapshots[commit] for commit in (revision, main) if commit in snapshots]
        if len(snapshots) == 1:    # nothing to choose
            chosen = list(snapshots.values())
        for snapshot in chosen:
            missing = _missing(snapshot, files)
            if not missing:
                return snapshot, seen
            seen.append(f"{snapshot} lacks {', '.join(missing)}")
        if not chosen:
            several = f"{storage}/snapshots: refs/main names none of {', '.join(snapshots)}, so give the path of one"
            seen.append(several if snapshots else f"{storage} holds no snapshot")
    return None, seen


# --- download -------------------------------------------------------------------------------------------------------

class _Retry(Exception):
    """A failure that another request may mend: (what broke, the seconds that the server asks to wait or None)."""


def _open(url, position):
    """GET `url` from byte `position` on; returns the response, its status 200 or 206, and the endpoint's own headers.

    For a large file the endpoint redirects to a storage host. Commit, size and hash are headers of that redirect, and
    the token must not follow it. urllib's own redirect handler loses the headers and sends the token on.
    """
    opener = urllib.request.OpenerDirector()
    for handler in ("ProxyHandler", "HTTPHandler", "HTTPSHandler", "UnknownHandler"):
        opener.add_handler(getattr(urllib.request, handler)())
    headers = {"User-Agent": "minippo", "Accept-Encoding": "identity"}
    if position:
        headers["Range"] = f"bytes={position}-"
    if token := _token():
        headers["Authorization"] = f"Bearer {token}"
    timeout = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or 10)
    home, facts = urlsplit(url)[:2], {}    # (scheme, host:port)
    for _ in range(MAX_REDIRECTS):
        at_home = urlsplit(url)[:2] == home
        if not at_home:
            headers.pop("Authorization", None)
        try:
            response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.URLError) and not position:    # no connection at all: say so at once
                problem = f"cannot reach {url}: {error.reason}; the path of a folder needs no network"
                raise ConnectionError(problem) from error
            raise _Retry(error, None) from error
        if at_home:
            facts.update((name.lower(), value) for name, value in response.headers.items())
        if response.status in (200, 206):
            return response, facts
        response.close()
        if response.status in (408, 429) or response.status >= 500:
            after = response.headers.get("Retry-After", "")
            problem = f"status {response.status} {response.reason}{after and ', Retry-After '}{after}"
            raise _Retry(problem, int(after) if after.isdigit() else None)
        if response.status not in (301, 302, 303, 307, 308):
            raise urllib.error.HTTPError(url, response.status, response.reason, response.headers, None)
        url = urljoin(url, response.headers.get("Location", ""))
    raise OSError(f"{url}: more than {MAX_REDIRECTS} redirects")


def _progress(label, done, size, started, end):
    total = f" of {size:,} bytes, {100 * done // size}%" if size else " bytes"
    speed = done / 1e6 / max(time.monotonic() - started, 1e-3)
    print(f"{label}: {done:,}{total}, {speed:.1f} MB/s", end=end, file=sys.stderr, flush=True)


def _receive(response, out, size, label, started):
    """Write the body to `out`. _Retry where reading breaks off; an error in writing, a full disk, stays what it is."""
    shown = time.monotonic() if sys.stderr.isatty() else float("inf")
    while size is None or out.tell() <= size:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Retry(error, None) from error
        if not chunk:
            break
        out.write(chunk)
        if time.monotonic() > shown + 0.2:
            shown = time.monotonic()
            _progress(label, out.tell(), size, started, end="\r")
    if size is not None and out.tell() != size:
        raise _Retry(f"connection closed at byte {out.tell()} of {size}", None)
    out.flush()
    os.fsync(out.fileno())
    _progress(label, out.tell(), size, started, end="\n")


def _attempt(url, temp, size, label, started):
    """One request for what `temp` lacks; returns the endpoint's headers once the file is whole."""
    position = temp.stat().st_size if temp.exists() else 0
    response, facts = _open(url, position)
    with response:
        start = position if response.status == 206 else 0    # a server that ignores Range sends all of it again
        span = response.headers.get("Content-Range", f"bytes {start}-")
        announced = None if response.length is None else start + response.length
        linked = facts.get("x-linked-size", "")
        size = size or (int(linked) if linked.isdigit() else announced)
        if announced not in (None, size) or not span.startswith(f"bytes {start}-"):
            raise OSError(f"{url}: the server announces {announced} bytes ({span}), expected {size}: another file?")
        temp.parent.mkdir(parents=True, exist_ok=True)
        with open(temp, "ab" if start else "wb") as out:
            _receive(response, out, size, label, started)
    return facts


def _transfer(url, temp, size, label):
    """Download `url` to `temp`, going on where it was cut off; returns the endpoint's headers."""
    started, failures, farthest = time.monotonic(), 0, 0
    while True:
        try:
            return _attempt(url, temp, size, label, started)
        except _Retry as error:
            problem, wait = error.args
        position = temp.stat().st_size if temp.exists() else 0
        failures = 1 if position > farthest else failures + 1    # a large file over a bad line may be cut often
        farthest = max(farthest, position)
        wait = BACKOFF * 2 ** (failures - 1) if wait is None else wait
        if failures > RETRIES or wait > MAX_WAIT:
            raise ConnectionError(f"{url}: {problem}; gave up with {position} bytes here, try again later")
        print(f"{label}: {problem}; trying again in {wait:g} s", file=sys.stderr)
        time.sleep(wait)


def _download_file(storage, repo, revision, name, size, sha256):
    """Download one file into the cache; returns its commit. It gets its name only when it is whole and checked."""
    url = f"{_endpoint()}/{repo}/resolve/{revision}/{quote(name)}"
    temp = storage / "blobs" / f"{uuid.uuid4().hex}.incomplete"
    try:
        facts = _transfer(url, temp, size, f"{repo}/{name}")
        commit = facts.get("x-repo-commit", "") if revision == "main" else revision
        if not PLAIN.fullmatch(commit):
            raise OSError(f"{url}: no X-Repo-Commit in the answer; is HF_ENDPOINT a Hugging Face server?")
        etag = (facts.get("x-linked-etag") or facts.get("etag", "")).removeprefix("W/").strip('"')
        digest = hashlib.sha256()
        with open(temp, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        for wanted in (sha256, etag if SHA256.fullmatch(etag) else None):    # a large file's etag is its sha256
            if wanted not in (None, digest.hexdigest()):
                raise OSError(f"{url}: sha256 is {digest.hexdigest()}, expected {wanted}; deleted, try again")
        blob = storage / "blobs" / (etag if PLAIN.fullmatch(etag) else digest.hexdigest())
        os.replace(temp, blob)
    finally:
        temp.unlink(missing_ok=True)
    link = storage / "snapshots" / commit / name
    link.parent.mkdir(parents=True, exist_ok=True)
    staged = link.with_name(temp.name)
    try:
        os.symlink(os.path.relpath(blob, link.parent), staged)
    except OSError:    # a disk without symbolic links: the snapshot holds the file itself
        os.replace(blob, link)
    else:
        os.replace(staged, link)    # also over a broken link
    return commit


def _download(storage, repo, revision, known, files, optional):
    """Fetch what the snapshot lacks and return its folder; an optional file that the repo does not have is noted."""
    commit = "" if revision == "main" else revision
    for name in (*files, *optional):
        if commit and (storage / "snapshots" / commit / name).is_file():
            continue
        try:
            commit = _download_file(storage, repo, commit or "main", name, *known.get(name, (None, None)))
        except urllib.error.HTTPError as error:
            commit = commit or error.headers.get("X-Repo-Commit", "")    # sent with a missing file, not a missing repo
            if error.code != 404 or name in files or not PLAIN.fullmatch(commit):
                advice = ADVICE.get(error.code, error.reason)
                raise KINDS.get(error.code, OSError)(f"{error.filename}: status {error.code}, {advice}") from None
            absent = storage / ".no_exist" / commit / name
            absent.parent.mkdir(parents=True, exist_ok=True)
            absent.touch()
    snapshot, ref = storage / "snapshots" / commit, storage / "refs" / "main"
    snapshot.mkdir(parents=True, exist_ok=True)
    if revision == "main" or not ref.exists():
        ref.parent.mkdir(parents=True, exist_ok=True)
        temp = ref.with_name(uuid.uuid4().hex)
        temp.write_text(commit)    # no newline: huggingface_hub 0.x fails on one
        os.replace(temp, ref)
    return snapshot


# --- the two entrances ----------------------------------------------------------------------------------------------

def resolve_model(name_or_dir: str | os.PathLike, files: Sequence[str], optional: Sequence[str] = ()) -> Path:
    """A local folder that holds `files`, and those of `optional` that exist.

    `name_or_dir` is a folder, a name of PUBLIC_MODELS, or any repo id of the Hub. FileNotFoundError where files are
    missing, PermissionError for 401 and 403, ConnectionError or OSError where a download failed: all are OSErrors.
    """
    for name in (*files, *optional):
        _check_file_name(name)
    name = os.fspath(name_or_dir)
    folder = Path(name).expanduser()
    is_path = not isinstance(name_or_dir, str) or name.startswith((os.sep, ".", "~")) or name.count("/") > 1
    if is_path or name and os.path.lexists(folder):
        _check_folder(folder, files)
        return folder
    check_repo_id(name)
    model, repos = HubModel(name), (name,)
    for short, public in PUBLIC_MODELS.items():
        if name in (short, public.repo):
            model, repos = public, (public.repo, short)    # the cache may have it under either name
    optional = [name for name in optional if name in model.files or not model.files]
    snapshot, seen = _find_cached(repos, model.revision, files)
    if snapshot is None and _offline():
        raise FileNotFoundError(f"{name} is not cached ({'; '.join(seen)}), and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE "
                                f"is set: unset it, or put {', '.join(files)} into a folder and give its path")
    if snapshot is None:
        return _download(_storage(model.repo), model.repo, model.revision, model.files, files, optional)
    storage, commit = snapshot.parent.parent, snapshot.name
    absent = storage / ".no_exist" / commit
    lacking = [name for name in optional if not (snapshot / name).is_file() and not (absent / name).exists()]
    if lacking and not _offline():
        try:
            _download(storage, model.repo, commit, model.files if commit == model.revision else {}, (), lacking)
        except OSError as error:    # no network, a cache that is read-only: what must be there is there
            print(f"{snapshot}: going on without {', '.join(lacking)} ({error})", file=sys.stderr)
    return snapshot


def push_folder(folder: str | os.PathLike, repo_id: str, token: str | None = None, private: bool = False,
                commit_message: str = "Upload with minippo") -> str:
    """Upload the files of `folder` to the Hub, creating the repo where there is none; returns its address.

    `token` None is HF_TOKEN or the stored one. PermissionError, FileNotFoundError or OSError say the status.
    """
    check_repo_id(repo_id)
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} does not exist: expected a folder that save_pretrained wrote")
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
        advice = ADVICE.get(status, "the server failed: try again later")
        what = f"status {status}, {advice}" if status else " ".join(str(error).split())
        raise KINDS.get(status, OSError)(f"pushing {folder} to {repo_id} failed: {what}") from error
    return str(url)
