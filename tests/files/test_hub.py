"""Finding, downloading and checking model files, against a server on this machine that can fail in every way.

    python -m pytest tests/files/test_hub.py
"""

import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minippo.files import hub
from minippo.files.hub import HubModel, resolve_model

ROOT = Path(__file__).resolve().parents[2]
TIKTOKEN_CACHE = ROOT.parent / "shared" / "tiktoken-cache"
COMMIT, OTHER = "a" * 40, "b" * 40
CONFIG, WEIGHTS = b'{"n_layer": 2}', bytes(range(256)) * 200     # 14 and 51,200 bytes
FILES = ("config.json", "model.safetensors")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


# --- the server -----------------------------------------------------------------------------------------------------

class FakeHub(ThreadingHTTPServer):
    """A Hub that keeps `files` (path -> bytes), records requests, and does what `faults` says for the next ones."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.requests, self.faults = {}, [], []
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def asked(self):
        return [path.rpartition("/")[2] for path, _ in self.requests]

    def ranges(self):
        return [headers.get("Range") for _, headers in self.requests]

    def tokens(self):
        return [headers.get("Authorization") for _, headers in self.requests]


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        fault = self.server.faults.pop(0) if self.server.faults else serve
        try:
            fault(self)
        except ConnectionError:     # the client hung up
            pass

    def log_message(self, *args):
        pass


def send(request, status, headers, body=b""):
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, str(value))
    request.end_headers()
    request.wfile.write(body)


def facts(body, **more):
    """What the Hub says about a large file; for a small one the etag is a git hash and there is no X-Linked-*."""
    return {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256(body)}"', "X-Linked-Size": len(body)} | more


def serve(request, cut=None, ranges=True, **more):
    """The honest answer; or one that breaks off after `cut` bytes, ignores Range, or has other headers."""
    body = request.server.files.get(request.path)
    if body is None:
        return send(request, 404, {"X-Repo-Commit": COMMIT, "X-Error-Code": "EntryNotFound"})
    wanted = request.headers.get("Range") if ranges else None
    start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
    if wanted and start >= len(body):
        return send(request, 416, {})
    headers = facts(body, **{"Content-Length": len(body) - start})
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
    send(request, 206 if wanted else 200, headers | more, body[start:][:cut])


def cut(at, **more):
    return lambda request: serve(request, cut=at, **more)


def header(name, value, **more):
    return lambda request: serve(request, **{name: value}, **more)


def status(code, **headers):
    return lambda request: send(request, code, {name.replace("_", "-"): value for name, value in headers.items()})


def redirect(to, body=b"", code=302):
    return lambda request: send(request, code, facts(body, Location=to))


def stall(at):
    def fault(request):
        serve(request, cut=at)
        request.wfile.flush()
        time.sleep(0.6)     # twice the client's patience
    return fault


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty HF_HOME and no other setting of the machine; short waits."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "XDG_", "TRANSFORMERS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")     # nobody listens there
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.3")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub, "BACKOFF", 0.0001)
    return tmp_path / "hf"


def start_hub():
    server = FakeHub()
    for name, body in zip(FILES, (CONFIG, WEIGHTS)):
        server.files[f"/user/model/resolve/main/{name}"] = server.files[f"/user/model/resolve/{COMMIT}/{name}"] = body
    return server


@pytest.fixture
def server(home, monkeypatch):
    server = start_hub()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def storage_host():
    server = start_hub()
    yield server
    server.shutdown()
    server.server_close()


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def fetch_weights():
    return (resolve_model("user/model", ("model.safetensors",)) / "model.safetensors").read_bytes()


def cached(home, repo, commit, files=FILES, ref=None):
    """A cache as huggingface_hub leaves it, with copies in place of links."""
    storage = home / "hub" / ("models--" + repo.replace("/", "--"))
    for name in files:
        path = storage / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"cached")
    if ref is not None:
        (storage / "refs").mkdir(exist_ok=True)
        (storage / "refs" / "main").write_text(ref)
    return storage / "snapshots" / commit


@pytest.fixture
def cached_bytes(monkeypatch):
    """As if the public GPT-2 were the bytes that `cached` writes."""
    known = dict.fromkeys((*FILES, "vocab.json"), (6, sha256(b"cached")))
    monkeypatch.setitem(hub.PUBLIC_MODELS, "gpt2", HubModel("openai-community/gpt2", hub.PUBLIC_MODELS["gpt2"].revision, known))


# --- a download that goes well --------------------------------------------------------------------------------------

def test_download_leaves_a_hugging_face_cache(server, home, capsys):
    folder = resolve_model("user/model", FILES)
    storage = home / "hub" / "models--user--model"
    assert folder == storage / "snapshots" / COMMIT
    assert [(folder / name).read_bytes() for name in FILES] == [CONFIG, WEIGHTS]
    assert os.readlink(folder / "model.safetensors") == f"../../blobs/{sha256(WEIGHTS)}"
    assert (storage / "refs" / "main").read_bytes() == COMMIT.encode()
    assert everything(storage) == sorted([f"blobs/{sha256(CONFIG)}", f"blobs/{sha256(WEIGHTS)}", "refs/main",
                                          *(f"snapshots/{COMMIT}/{name}" for name in FILES)])
    # one line a file, on stderr, since this is no terminal
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 2 and "\r" not in err
    assert "user/model/model.safetensors: 51,200 of 51,200 bytes, 100%," in err and "MB/s" in err

    asked = len(server.requests)
    assert resolve_model("user/model", FILES) == folder and len(server.requests) == asked
    # the first file named the commit, the second was asked for at that commit
    assert [path.split("/")[4] for path, _ in server.requests] == ["main", COMMIT]


def test_small_files_with_a_git_etag(server, home):
    plain = {"X-Repo-Commit": COMMIT, "ETag": 'W/"1f1d9a"', "Content-Length": len(CONFIG)}
    server.faults = [lambda request: send(request, 200, plain, CONFIG)]
    folder = resolve_model("user/model", ("config.json",))
    assert (folder / "config.json").read_bytes() == CONFIG
    assert os.readlink(folder / "config.json") == "../../blobs/1f1d9a"


def test_public_model_is_pinned_checked_and_never_asked_for_what_it_lacks(server, home, monkeypatch):
    known = {"config.json": (14, sha256(CONFIG)), "model.safetensors": (51200, sha256(WEIGHTS))}
    monkeypatch.setitem(hub.PUBLIC_MODELS, "gpt2", HubModel("openai-community/gpt2", OTHER, known))
    for name, body in zip(FILES, (CONFIG, WEIGHTS)):
        server.files[f"/openai-community/gpt2/resolve/{OTHER}/{name}"] = body
    cached(home, "openai-community/gpt2", COMMIT, ("config.json",), ref=COMMIT)
    folder = resolve_model("gpt2", FILES, optional=("value_head.safetensors",))
    assert (folder.parents[1] / "refs" / "main").read_text() == COMMIT      # which commit is main was not asked
    assert folder == home / "hub" / "models--openai-community--gpt2" / "snapshots" / OTHER
    assert server.asked() == list(FILES)
    assert resolve_model("openai-community/gpt2", FILES, optional=("value_head.safetensors",)) == folder
    assert len(server.requests) == 2


def test_disk_without_symbolic_links_gets_the_file_itself(server, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "no links here")
    monkeypatch.setattr(os, "symlink", refuse)
    folder = resolve_model("user/model", FILES)
    assert not (folder / "model.safetensors").is_symlink() and (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_progress_line_on_a_terminal_is_rewritten_in_place(server, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    now = iter(range(10_000))
    monkeypatch.setattr(hub.time, "monotonic", lambda: float(next(now)))
    fetch_weights()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "\r" in err and err.endswith("MB/s\n")


# --- optional files -------------------------------------------------------------------------------------------------

def test_optional_file_that_the_repo_lacks_is_asked_for_once(server, home):
    folder = resolve_model("user/model", FILES, optional=("value_head.safetensors",))
    assert everything(folder) == list(FILES)
    assert (home / "hub" / "models--user--model" / ".no_exist" / COMMIT / "value_head.safetensors").exists()
    resolve_model("user/model", FILES, optional=("value_head.safetensors",))
    assert server.asked() == [*FILES, "value_head.safetensors"]


def test_only_optional_files_none_of_them_there(server):
    folder = resolve_model("user/model", (), optional=("vocab.json", "merges.txt"))
    assert folder.name == COMMIT and everything(folder) == []


def test_cached_model_gets_its_optional_file_from_the_same_commit(server, home):
    folder = cached(home, "user/model", OTHER, ref=OTHER)
    server.files[f"/user/model/resolve/{OTHER}/value_head.safetensors"] = b"head"
    assert resolve_model("user/model", FILES, optional=("value_head.safetensors",)) == folder
    assert (folder / "value_head.safetensors").read_bytes() == b"head"
    assert (folder / "config.json").read_bytes() == b"cached"
    assert (home / "hub" / "models--user--model" / "refs" / "main").read_text() == OTHER


def test_cached_model_is_used_when_its_optional_file_is_out_of_reach(home, capsys):
    folder = cached(home, "user/model", COMMIT, ref=COMMIT)
    assert resolve_model("user/model", FILES, optional=("vocab.json",)) == folder
    assert "going on without vocab.json, as far as they are not there (cannot reach http://127.0.0.1:9/" in capsys.readouterr().err


@pytest.mark.parametrize("commit, there", [(COMMIT, False), (OTHER, True)])
def test_published_hashes_hold_for_the_pinned_commit_only(server, home, monkeypatch, commit, there):
    known = dict.fromkeys(FILES, (None, None)) | {"vocab.json": (5, sha256(b"VOCAB"))}
    monkeypatch.setitem(hub.PUBLIC_MODELS, "tiny", HubModel("user/model", COMMIT, known))
    folder = cached(home, "user/model", commit, ref=commit)
    server.files[f"/user/model/resolve/{commit}/vocab.json"] = b"vocab"
    assert resolve_model("tiny", FILES, optional=("vocab.json",)) == folder
    assert (folder / "vocab.json").exists() == there


# --- cuts, lies and stalls ------------------------------------------------------------------------------------------

def test_cut_download_resumes_with_range(server, home, capsys):
    server.faults = [cut(20_000), cut(11_200)]
    assert fetch_weights() == WEIGHTS
    assert server.ranges() == [None, "bytes=20000-", "bytes=31200-"]
    assert "connection closed at byte 31200 of 51200; trying again in" in capsys.readouterr().err
    assert not [name for name in everything(home) if name.endswith(".incomplete")]


def test_more_cuts_than_retries_are_survived_while_bytes_arrive(server):
    server.faults = [cut(5_000)] * 10     # 50,000 of 51,200 bytes
    assert fetch_weights() == WEIGHTS and len(server.requests) == 11 > hub.RETRIES + 1


def test_retries_without_a_new_byte_are_bounded_and_leave_nothing(server, home):
    server.faults = [cut(20_000)] + [cut(0)] * 99
    with pytest.raises(ConnectionError, match="closed at byte 20000 of 51200; gave up with 20000 bytes"):
        fetch_weights()
    assert len(server.requests) == 1 + hub.RETRIES
    assert everything(home) == []


def test_server_that_ignores_range_starts_over(server):
    server.faults = [cut(20_000), lambda request: serve(request, ranges=False)]
    assert fetch_weights() == WEIGHTS and server.ranges() == [None, "bytes=20000-"]


@pytest.mark.parametrize("change", ["X-Linked-Etag", "ETag", "X-Repo-Commit"])
def test_a_cut_download_never_joins_two_versions(server, capsys, change):
    """20,000 bytes of the old file, then the server has another one of the same size, and no hash that anyone could check."""
    new, path = WEIGHTS[::-1], "/user/model/resolve/main/model.safetensors"
    old = {"X-Linked-Etag": "", "ETag": '"old"'}

    def changed(request):
        server.files[path] = new
        serve(request, **(old | {change: {"X-Repo-Commit": OTHER}.get(change, '"new"')}))

    server.faults = [cut(20_000, **old), changed, changed]
    assert fetch_weights() == new and server.ranges() == [None, "bytes=20000-", None]
    assert "another version now" in capsys.readouterr().err


def test_a_server_without_etag_starts_over(server):
    nameless = {"X-Linked-Etag": ""}
    server.faults = [cut(20_000, **nameless), header("X-Linked-Etag", ""), header("X-Linked-Etag", "")]
    assert fetch_weights() == WEIGHTS and server.ranges() == [None, "bytes=20000-", None]


def test_a_body_without_end_is_given_up(server, home, monkeypatch):
    """Neither Content-Length nor X-Linked-Size: the bound of its kind holds, 128 MiB for what is no weights."""
    monkeypatch.setitem(hub.LARGEST, "", 100_000)

    def endless(request):
        send(request, 200, {"X-Repo-Commit": COMMIT, "ETag": '"x"'})
        for _ in range(10_000):
            request.wfile.write(bytes(10_000))

    server.faults = [endless]
    with pytest.raises(OSError, match="such a file may have 100,000, .*gave up"):
        resolve_model("user/model", ("config.json",))
    assert len(server.requests) == 1 and everything(home) == []


def test_a_redirect_with_a_body_without_end_is_followed_at_once(server):
    def endless(request):
        send(request, 302, facts(WEIGHTS, Location=f"/user/model/resolve/{COMMIT}/model.safetensors"))
        for _ in range(1000):
            request.wfile.write(bytes(2**20))
            sent.append(1)

    server.faults, sent = [endless], []
    assert fetch_weights() == WEIGHTS and len(sent) < 1000


def test_an_announced_size_beyond_the_bound_is_refused(server, home, monkeypatch):
    monkeypatch.setitem(hub.LARGEST, ".safetensors", 50_000)
    with pytest.raises(OSError, match="of 51200 bytes .*such a file may have 50,000"):
        fetch_weights()
    assert everything(home) == []


def test_a_trickle_is_given_up(server, home, monkeypatch):
    monkeypatch.setattr(hub, "GRACE", 0.1)

    def trickle(request):
        send(request, 200, facts(WEIGHTS, **{"Content-Length": len(WEIGHTS)}))
        for byte in WEIGHTS:
            request.wfile.write(bytes([byte]))
            time.sleep(0.02)

    server.faults = [trickle]
    with pytest.raises(ConnectionError, match="must come at 10,000 a second; gave up"):
        fetch_weights()
    assert everything(home) == []


@pytest.mark.parametrize("stderr", ["closed", "full", None])
def test_printing_never_ends_a_download(server, monkeypatch, stderr):
    """With 2>&- Python has no stderr at all; one on a full disk raises at every line."""
    if stderr == "closed":
        stream = open(os.devnull, "w")
        stream.close()
    else:
        stream = stderr and open("/dev/full", "w")
    monkeypatch.setattr(sys, "stderr", stream)
    server.faults = [cut(20_000)]
    assert fetch_weights() == WEIGHTS


def test_server_that_sends_another_range_is_refused(server, home):
    server.faults = [cut(20_000), lambda request: serve(request, **{"Content-Range": "bytes 100-51199/51200"})]
    with pytest.raises(OSError, match="bytes 100-51199/51200"):
        fetch_weights()
    assert everything(home) == []


@pytest.mark.parametrize("length", [51_100, 51_300])
def test_announced_length_that_contradicts_the_hub_is_refused_before_the_download(server, home, length):
    server.faults = [header("Content-Length", length)]
    with pytest.raises(OSError, match=f"announces {length} bytes .*, expected 51200"):
        fetch_weights()
    assert len(server.requests) == 1 and everything(home) == []


def test_length_larger_than_the_file_is_no_endless_loop(server, home):
    server.faults = [header("Content-Length", 51_300, **{"X-Linked-Size": ""})]
    with pytest.raises(OSError, match="416, Requested Range Not Satisfiable"):
        fetch_weights()
    assert everything(home) == []


def test_body_longer_than_the_file_is_refused(server, home):
    """No Content-Length and no hash: only X-Linked-Size (51,200) speaks against the 51,201 bytes."""
    server.faults = [lambda request: send(request, 200, facts(WEIGHTS, **{"X-Linked-Etag": "abc"}), WEIGHTS + b"!")] * 9
    with pytest.raises(ConnectionError, match="51201 of 51200"):
        fetch_weights()
    assert everything(home) == []


def test_size_that_is_not_the_published_one_is_refused(server, home, monkeypatch):
    known = {"model.safetensors": (51_201, None)}
    monkeypatch.setitem(hub.PUBLIC_MODELS, "tiny", HubModel("user/model", COMMIT, known))
    with pytest.raises(OSError, match="announces 51200 bytes .*, expected 51201"):
        resolve_model("tiny", ("model.safetensors",))
    assert everything(home) == []


@pytest.mark.parametrize("liar", ["etag", "body"])
def test_wrong_hash_is_refused_and_deleted(server, home, monkeypatch, liar):
    """The sha256 may come from our table or from the etag: each alone refuses a file of the right size."""
    if liar == "body":
        known = {"model.safetensors": (51_200, sha256(b"other"))}
        monkeypatch.setitem(hub.PUBLIC_MODELS, "tiny", HubModel("user/model", COMMIT, known))
    server.faults = [header("X-Linked-Etag", f'"{sha256(b"other")}"' if liar == "etag" else "abc")]
    with pytest.raises(OSError, match=f"sha256 is {sha256(WEIGHTS)}, expected {sha256(b'other')}"):
        resolve_model("user/model", ("model.safetensors",))
    assert len(server.requests) == 1 and everything(home) == []


def test_stalled_server_times_out_and_the_download_goes_on(server):
    server.faults = [stall(20_000)]
    assert fetch_weights() == WEIGHTS and server.ranges() == [None, "bytes=20000-"]


def test_server_that_never_answers_ends_in_an_error(server, home, monkeypatch):
    monkeypatch.setattr(hub, "RETRIES", 1)
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.1")
    server.faults = [lambda request: time.sleep(0.3)] * 9
    with pytest.raises(ConnectionError, match="timed out; gave up"):
        fetch_weights()
    assert len(server.requests) == 2 and everything(home) == []


def test_unreachable_endpoint_is_said_at_once(home, monkeypatch):
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: pytest.fail("waited for a server that is not there"))
    with pytest.raises(ConnectionError, match="cannot reach http://127.0.0.1:9/user/model/resolve/main/config.json"):
        resolve_model("user/model", FILES)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_and_interrupt_leave_nothing_and_are_not_retried(server, home, monkeypatch, error):
    def fail(descriptor):
        raise error
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        fetch_weights()
    assert len(server.requests) == 1 and everything(home) == []


# --- refusals of the server -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("code, kind, advice", [
    (401, PermissionError, "HF_TOKEN is missing or not valid"), (403, PermissionError, "terms"),
    (404, FileNotFoundError, "check the name"), (400, OSError, "Bad Request")])
def test_refusal_is_not_retried_and_says_what_to_do(server, home, code, kind, advice):
    server.faults = [status(code)] * 9
    with pytest.raises(kind, match=f"/user/model/resolve/main/config.json: status {code}, .*{advice}"):
        resolve_model("user/model", FILES, optional=("vocab.json",))
    assert len(server.requests) == 1 and not home.exists()      # a mistyped name leaves no empty folders


def test_required_file_that_the_repo_lacks_is_an_error(server):
    with pytest.raises(FileNotFoundError, match=f"/user/model/resolve/{COMMIT}/vocab.json: status 404"):
        resolve_model("user/model", ("config.json", "vocab.json"))


def test_optional_file_of_a_repo_that_does_not_exist_is_an_error(server):
    server.faults = [status(404, X_Error_Code="RepoNotFound")]
    with pytest.raises(FileNotFoundError, match="404"):
        resolve_model("user/modle", (), optional=("vocab.json",))


def test_busy_server_is_given_the_time_it_asks_for(server, monkeypatch):
    waits = []
    monkeypatch.setattr(hub.time, "sleep", waits.append)
    server.faults = [status(429, Retry_After=7), status(503, Retry_After="soon"), status(500), status(502)]
    assert fetch_weights() == WEIGHTS
    assert waits == [7, hub.BACKOFF * 2, hub.BACKOFF * 4, hub.BACKOFF * 8]


def test_busy_server_that_asks_for_too_long_a_pause_ends_it(server, monkeypatch):
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: pytest.fail("slept"))
    server.faults = [status(429, Retry_After=3600)]
    with pytest.raises(ConnectionError, match="status 429 Too Many Requests, Retry-After 3600"):
        fetch_weights()


def test_broken_server_is_retried_six_times_in_all(server):
    server.faults = [status(500)] * 99
    with pytest.raises(ConnectionError, match="status 500"):
        fetch_weights()
    assert len(server.requests) == 6


def test_answer_without_commit_is_no_hub(server, home):
    server.faults = [lambda request: send(request, 200, {"Content-Length": 5}, b"<html")]
    with pytest.raises(OSError, match="no X-Repo-Commit"):
        fetch_weights()
    assert everything(home) == []


@pytest.mark.parametrize("name, value", [("X-Repo-Commit", "../../../evil"), ("X-Linked-Etag", '"../../../evil"')])
def test_words_of_the_server_do_not_become_paths(server, home, name, value):
    server.faults = [header(name, value)]
    if name == "X-Repo-Commit":
        with pytest.raises(OSError, match="X-Repo-Commit"):
            fetch_weights()
    else:
        assert fetch_weights() == WEIGHTS and (home / "hub/models--user--model/blobs" / sha256(WEIGHTS)).is_file()
    assert not list(home.parent.rglob("evil"))


# --- redirects and the token ----------------------------------------------------------------------------------------

def test_token_stays_with_the_endpoint(server, storage_host, monkeypatch):
    """The redirect has commit, size and hash, the storage host's are its own; a cut resumes through both hosts."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = f"/user/model/resolve/{COMMIT}/model.safetensors"
    storage_host.faults = [cut(20_000), cut(None, ETag='"storage"', **{"X-Repo-Commit": OTHER})]
    server.faults = [redirect(storage_host.address + path, WEIGHTS)] * 2
    folder = resolve_model("user/model", ("model.safetensors",))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS and folder.name == COMMIT
    assert os.readlink(folder / "model.safetensors").endswith(sha256(WEIGHTS))
    assert server.tokens() == ["Bearer hf_secret"] * 2 and storage_host.tokens() == [None, None]
    assert storage_host.ranges() == [None, "bytes=20000-"]


def test_token_does_not_come_back_through_another_host(server, storage_host, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = f"/user/model/resolve/{COMMIT}/model.safetensors"
    server.faults = [redirect(storage_host.address + path, WEIGHTS)]
    storage_host.faults = [redirect(server.address + path)]
    fetch_weights()
    assert server.tokens() == ["Bearer hf_secret", None]


def test_renamed_repo_is_followed_with_the_token(server, home, monkeypatch):
    home.mkdir()
    (home / "token").write_text("hf_sto\nred\n")     # a stray line break must not show the token in an error
    server.faults = [redirect(f"/user/model/resolve/{COMMIT}/model.safetensors", WEIGHTS, code=307)]
    assert (resolve_model("old-name", ("model.safetensors",)) / "model.safetensors").read_bytes() == WEIGHTS
    assert server.tokens() == ["Bearer hf_stored"] * 2
    monkeypatch.setenv("HF_TOKEN", "hf_set")
    fetch_weights()
    assert server.tokens()[2] == "Bearer hf_set"


@pytest.mark.parametrize("to, requests", [("file:///etc/hosts", 1), ("ftp://127.0.0.1/x", 1), ("/again", 10)])
def test_redirects_that_lead_nowhere(server, home, to, requests):
    server.faults = [redirect(to)] * 99
    with pytest.raises(OSError, match="status 302"):
        fetch_weights()
    assert len(server.requests) == requests and everything(home) == []


# --- the cache ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("repo, commit, ref, snapshots", [
    ("gpt2", COMMIT, COMMIT, 2), ("openai-community/gpt2", COMMIT, COMMIT, 2),
    ("gpt2", COMMIT, COMMIT + "\n", 2),                                 # written by hand
    ("gpt2", hub.PUBLIC_MODELS["gpt2"].revision, None, 2),              # the pinned revision, fetched by its hash
    ("openai-community/gpt2", COMMIT, None, 1),                         # one snapshot: no doubt
    ("gpt2", COMMIT, OTHER, 1),                                         # main moved on, its snapshot was deleted
])
@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_cached_public_model_is_found_under_both_names(home, cached_bytes, name, repo, commit, ref, snapshots):
    folder = cached(home, repo, commit, ref=ref)
    (folder.parent / ".DS_Store").touch()       # a file that is no snapshot
    if snapshots == 2:
        cached(home, repo, "1" * 40)
    assert resolve_model(name, FILES) == folder


def test_ref_chooses_among_snapshots_and_an_incomplete_one_does_not_count(home, cached_bytes):
    cached(home, "user/model", "1" * 40, ("config.json",), ref=COMMIT)
    wanted = cached(home, "user/model", COMMIT)
    cached(home, "user/model", "c" * 40)
    assert resolve_model("user/model", FILES) == wanted
    # pytorch_model.bin alone, as an old transformers left it under the first name, sends the search to the second
    cached(home, "openai-community/gpt2", COMMIT, ("config.json", "pytorch_model.bin"), ref=COMMIT)
    wanted = cached(home, "gpt2", OTHER, ref=OTHER)
    assert resolve_model("gpt2", FILES) == wanted


def test_a_cached_file_of_other_bytes_is_not_the_public_model(server, home, monkeypatch):
    """One snapshot, but its weights have another size, or its config.json another hash: the pinned revision is fetched."""
    known = {"config.json": (14, sha256(CONFIG)), "model.safetensors": (51_200, sha256(WEIGHTS))}
    monkeypatch.setitem(hub.PUBLIC_MODELS, "gpt2", HubModel("openai-community/gpt2", OTHER, known))
    for name, body in zip(FILES, (CONFIG, WEIGHTS)):
        server.files[f"/openai-community/gpt2/resolve/{OTHER}/{name}"] = body
    monkeypatch.setattr(hub, "SMALL", 100)                      # the weights are known by their size alone
    theirs = cached(home, "gpt2", COMMIT, ref=COMMIT)
    (theirs / "config.json").write_bytes(CONFIG)
    (theirs / "model.safetensors").write_bytes(WEIGHTS + b"!")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="has another model.safetensors than the published one"):
        resolve_model("gpt2", FILES)
    (theirs / "model.safetensors").write_bytes(WEIGHTS)
    assert resolve_model("gpt2", FILES) == theirs
    (theirs / "config.json").write_bytes(CONFIG.replace(b"2", b"3"))
    with pytest.raises(FileNotFoundError, match="has another config.json than the published one"):
        resolve_model("gpt2", FILES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    folder = resolve_model("gpt2", FILES)
    assert folder.name == OTHER and [(folder / name).read_bytes() for name in FILES] == [CONFIG, WEIGHTS]


def test_a_damaged_file_of_the_pinned_revision_is_fetched_anew(server, home, monkeypatch):
    known = {"config.json": (14, sha256(CONFIG)), "model.safetensors": (51_200, sha256(WEIGHTS))}
    monkeypatch.setitem(hub.PUBLIC_MODELS, "tiny", HubModel("user/model", COMMIT, known))
    folder = cached(home, "user/model", COMMIT, ref=COMMIT)
    (folder / "config.json").write_bytes(CONFIG)
    assert resolve_model("tiny", FILES) == folder and (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert server.asked() == ["model.safetensors"]


def test_incomplete_snapshot_is_completed(server, home):
    folder = cached(home, "user/model", COMMIT, ("config.json",), ref=COMMIT)
    assert resolve_model("user/model", ("model.safetensors", "config.json")) == folder
    assert server.asked() == ["model.safetensors"] and (folder / "config.json").read_bytes() == b"cached"


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_with_nothing_cached_is_one_clear_line(server, home, monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(FileNotFoundError) as error:
        resolve_model("gpt2", FILES)
    message = str(error.value)
    assert "\n" not in message and variable in message and "model.safetensors" in message
    assert all(f"{home}/hub/models--{name} holds no snapshot" in message for name in ("gpt2", "openai-community--gpt2"))
    assert server.requests == []


def test_offline_takes_the_cache_and_asks_for_no_optional_file(server, home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = cached(home, "user/model", COMMIT, ref=COMMIT)
    assert resolve_model("user/model", FILES, optional=("vocab.json",)) == folder and server.requests == []


def test_offline_message_lists_snapshots_and_what_they_lack(home, cached_bytes, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for commit in (COMMIT, OTHER):
        cached(home, "gpt2", commit)
    lacking = cached(home, "openai-community/gpt2", COMMIT, ("config.json",), ref=COMMIT)
    with pytest.raises(FileNotFoundError) as error:
        resolve_model("gpt2", FILES)
    snapshots = home / "hub" / "models--gpt2" / "snapshots"
    assert f"{snapshots.parent} holds no snapshot that refs/main names, of ['{COMMIT}', '{OTHER}']" in str(error.value)
    assert f"{lacking} lacks model.safetensors" in str(error.value)


@pytest.mark.parametrize("target", ["../../blobs/gone", "model.safetensors"])
def test_broken_and_looping_links_are_named_offline_and_mended_online(server, home, monkeypatch, target):
    folder = cached(home, "user/model", COMMIT, ("config.json",), ref=COMMIT)
    (folder / "model.safetensors").symlink_to(target)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("user/model", folder):
        with pytest.raises(FileNotFoundError) as error:
            resolve_model(name, FILES)
        assert f"{folder} lacks model.safetensors (a broken link to {target})" in str(error.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert (resolve_model("user/model", FILES) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("settings, cache", [
    ({"HF_HUB_CACHE": "$BASE/a", "HUGGINGFACE_HUB_CACHE": "$BASE/b", "HF_HOME": "$BASE/c"}, "a"),
    ({"HUGGINGFACE_HUB_CACHE": "$BASE/b", "HF_HOME": "$BASE/c"}, "b"),
    ({"HF_HOME": "$BASE/c", "XDG_CACHE_HOME": "$BASE/d"}, "c/hub"),
    ({"HF_HOME": "~/c"}, "c/hub"),
    ({"XDG_CACHE_HOME": "$BASE/d"}, "d/huggingface/hub"),
    ({"HF_HUB_CACHE": ""}, ".cache/huggingface/hub"),
])
def test_where_the_cache_is(home, tmp_path, monkeypatch, settings, cache):
    monkeypatch.delenv("HF_HOME")
    for name, value in {"HOME": str(tmp_path), "BASE": str(tmp_path), **settings}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / cache / "models--user--model" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(CONFIG)
    assert resolve_model("user/model", ("config.json",)) == folder


def test_two_processes_fetch_one_file(server, home):
    """Neither is answered before both have asked; both succeed, and one copy remains."""
    both = threading.Barrier(2, timeout=20)

    def together(request):
        both.wait()
        serve(request)

    server.faults = [together, together]
    # without the package around it: hub.py stands on atomic.py alone, and torch would cost two seconds
    code = "from files import hub; print(hub.resolve_model('user/model', ('model.safetensors',)))"
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "minippo", text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE) for _ in range(2)]
    results = [run.communicate(timeout=30) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], results
    storage = home / "hub" / "models--user--model"
    assert {out.strip() for out, _ in results} == {str(storage / "snapshots" / COMMIT)}
    assert everything(storage) == [f"blobs/{sha256(WEIGHTS)}", "refs/main", f"snapshots/{COMMIT}/model.safetensors"]
    assert (storage / "snapshots" / COMMIT / "model.safetensors").read_bytes() == WEIGHTS


# --- folders and names ----------------------------------------------------------------------------------------------

def test_local_folder_comes_first_and_must_hold_the_files(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_bytes(CONFIG)
    assert resolve_model("gpt2", ("config.json",), optional=("vocab.json",)) == Path("gpt2")
    assert resolve_model(tmp_path / "gpt2", ("config.json",)) == tmp_path / "gpt2"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/gpt2", ("config.json",)) == tmp_path / "gpt2"
    with pytest.raises(FileNotFoundError, match="gpt2 lacks model.safetensors: expected a folder with config.json, model"):
        resolve_model("gpt2", FILES)


@pytest.mark.parametrize("name", ["/no/such", "./model", "../model", "~/no-such-model", "runs/first/checkpoint-000003",
                                  Path("model"), Path("runs/model")])
def test_what_looks_like_a_path_is_said_to_be_a_missing_folder(home, name):
    with pytest.raises(FileNotFoundError, match="does not exist or is no folder: expected a folder with config.json, model"):
        resolve_model(name, FILES)


def test_a_home_that_is_not_there(home, monkeypatch):
    """~nosuchuser, and a process without HOME whose user the system does not know."""
    with pytest.raises(FileNotFoundError, match="~nosuchuser/model does not exist"):
        resolve_model("~nosuchuser/model", FILES)
    for name in ("HF_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="user/model is not cached"):
        resolve_model("user/model", FILES)


def test_file_or_broken_link_in_place_of_a_folder(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("model.safetensors", "link"):
        for path in (name, tmp_path / name):
            with pytest.raises(FileNotFoundError, match=f"{name} does not exist or is no folder: expected a folder"):
                resolve_model(path, FILES)


@pytest.mark.parametrize("name", ["", "user/", "a--b", "a..b", "-a", "a.", "user/model.git", "user/mo del", "a:b",
                                  "a\\b", "x" * 97, "modèle", "user/mo?del"])
def test_repo_id_rule(home, name):
    with pytest.raises(ValueError, match="is not a repo id .nor a folder that exists."):
        resolve_model(name, FILES)
    with pytest.raises(ValueError, match="is not a repo id"):
        hub.push_folder(".", name, None, False, "")


@pytest.mark.parametrize("name", ["a", "user/model-1.5_b", "user/" + "x" * 96])
def test_repo_ids_that_are_allowed(name):
    hub.check_repo_id(name)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "", "a\\..\\b", "c:config.json"])
def test_file_names_stay_inside_the_folder(home, tmp_path, name):
    for files, optional in (((name,), ()), ((), (name,))):
        with pytest.raises(ValueError, match="expected a plain name"):
            resolve_model(tmp_path, files, optional)


def test_endpoint_without_a_scheme(home, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    with pytest.raises(ValueError, match="HF_ENDPOINT is 'huggingface.co'"):
        resolve_model("user/model", FILES)


def test_table_of_public_models():
    assert sorted(hub.PUBLIC_MODELS) == ["distilgpt2", "gpt2", "gpt2-large", "gpt2-medium", "gpt2-xl"]
    for model in hub.PUBLIC_MODELS.values():
        hub.check_repo_id(model.repo)
        assert re.fullmatch("[0-9a-f]{40}", model.revision) and {*FILES, "vocab.json", "merges.txt"} <= set(model.files)
        assert all(digest is None or re.fullmatch("[0-9a-f]{64}", digest) for _, digest in model.files.values())
    assert hub.PUBLIC_MODELS["gpt2"].files["model.safetensors"] == (
        548_105_171, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707")


@pytest.mark.skipif(not TIKTOKEN_CACHE.is_dir(), reason="needs ../shared/tiktoken-cache, GPT-2's own BPE files")
def test_table_has_the_vocabulary_that_tiktoken_has():
    files = {path.name: path.read_bytes() for path in TIKTOKEN_CACHE.iterdir()}
    vocab, merges = files["6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"], files["6d1cbeee0f20b3d9449abfede4726ed8212e3aee"]
    assert hub.COMMON["vocab.json"] == (len(vocab), sha256(vocab))
    assert hub.COMMON["merges.txt"] == (len(merges), sha256(merges))


# --- sharing: what needs no huggingface_hub; the rest is in tests/peers/test_push_to_hub.py -------------------------

def test_push_without_the_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        hub.push_folder(tmp_path, "user/model", None, False, "")
