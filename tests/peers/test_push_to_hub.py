"""push_folder through the real huggingface_hub, to a Hub on this machine; and one cache for both of us.

    python -m pytest tests/peers/test_push_to_hub.py      # in an environment that has huggingface_hub (0.x, 1.x or 2.x)

The package reads its settings when it is imported, so every push runs in a process of its own. The small Hub answers
what the real one is asked for: create repo, validate README, preupload, LFS batch, upload, verify, commit, resolve.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
ROOT = Path(__file__).resolve().parents[2]
FILES = {"README.md": b"---\nlicense: mit\n---\n# A model\n", "config.json": b'{"model_type": "gpt2"}\n',
         "model.safetensors": bytes(range(256)) * 300, "value_head.safetensors": b"\x00\xffhead",
         "notes/.gitignore": b"*\n"}     # all of the folder goes up: .gitignore is not obeyed
COMMIT = "c" * 40
# the folder of hub.py alone: the package around it would cost each process the import of torch
LOAD_HUB = f"""
import json, os, sys
sys.path.insert(0, {str(ROOT / "minippo")!r})
from files import hub
"""
PUSH = LOAD_HUB + """
for repo_id in sys.argv[2:]:
    try:
        print(json.dumps(["url", hub.push_folder(sys.argv[1], repo_id, None, False, "Upload with minippo")]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""
ONE_CACHE = LOAD_HUB + """
import huggingface_hub
files, theirs = ("config.json", "model.safetensors"), sys.argv[1]
print(hub.resolve_model("user/model", files, optional=("vocab.json",)))
print(huggingface_hub.snapshot_download("user/model", allow_patterns=list(files), local_files_only=True))
print(huggingface_hub.try_to_load_from_cache("user/model", "vocab.json") is huggingface_hub._CACHED_NO_EXIST)
print(os.path.dirname([huggingface_hub.hf_hub_download("user/model", name, cache_dir=theirs) for name in files][0]))
os.environ |= {"HF_HUB_CACHE": theirs, "HF_HUB_OFFLINE": "1"}
print(hub.resolve_model("user/model", files))
"""


class SmallHub(ThreadingHTTPServer):
    """Endpoint or storage host: `uploads` by hash, `repos` as committed, and every request with its token."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.requests, self.uploads, self.repos, self.failures, self.storage = [], {}, {}, {}, self
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self):
        hub, path = self.server, self.path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append((self.command, path, self.headers.get("Authorization")))
        for pattern, status in hub.failures.items():
            if re.search(pattern, path) or pattern in body.decode("latin-1"):
                return self.send({"error": "the small Hub was told to fail"}, status)
        if self.command == "PUT":
            hub.uploads[hashlib.sha256(body).hexdigest()] = body
            return self.send({})
        if path == "/api/repos/create":
            request = json.loads(body)
            repo = f"{request.get('organization') or 'user'}/{request['name']}"
            known = repo in hub.repos
            hub.repos.setdefault(repo, {})
            return self.send({"url": f"{hub.address}/{repo}"}, 409 if known else 200)
        if path == "/api/validate-yaml":
            return self.send({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            stored = hub.repos[match[1]]
            return self.send({"files": [self.preupload(file["path"], stored) for file in json.loads(body)["files"]]})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.send({"transfer": "basic", "objects": [self.lfs(item) for item in json.loads(body)["objects"]]},
                             **{"Content-Type": "application/vnd.git-lfs+json"})
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.repos[match[1]][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.repos[match[1]][value["path"]] = hub.storage.uploads[value["oid"]]
            return self.send({"commitUrl": f"{hub.address}/{match[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        if match := re.fullmatch(r"/api/models/([^?]+?)(/revision/main)?(\?.*)?", path):
            return self.send({"id": match[1], "sha": COMMIT, "siblings": [], "tags": [], "private": False,
                              "downloads": 0, "likes": 0})
        if match := re.fullmatch(rf"/(user/model)/resolve/(?:main|{COMMIT})/(.+)", path):
            data = hub.repos[match[1]].get(match[2])
            facts = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_hash(data or b"")}"'}
            return self.send(data or {}, 404 if data is None else 200, **facts)
        self.send({}, 200 if path == "/verify" else 404)

    def preupload(self, path, stored):
        large = path.endswith(".safetensors")
        oid = None
        if path in stored:
            oid = hashlib.sha256(stored[path]).hexdigest() if large else git_hash(stored[path])
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def lfs(self, item):
        hub = self.server
        return {"oid": item["oid"], "size": item["size"], "actions": {
            "upload": {"href": f"{hub.storage.address}/{item['oid']}", "header": {}},
            "verify": {"href": f"{hub.address}/verify", "header": {}}}}

    def send(self, answer, status=200, **headers):
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    hub, storage = SmallHub(), SmallHub()
    hub.storage = storage
    yield hub
    hub.stop()
    storage.stop()


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "model" / ".git").mkdir()
    (tmp_path / "model" / ".git" / "config").write_text("[remote]")
    (tmp_path / "secret.txt").write_text("beside the folder")
    return tmp_path / "model"


def run(code, hub, home, *args):
    """The lines that `code` prints in a process of its own, whose Hub is `hub` and whose HF_HOME is `home`."""
    settings = ("HF_", "HUGGING", "TRANSFORMERS_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(settings)} | {
        "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_secret", "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def push(hub, folder, *repo_ids):
    """Push `folder` to each repo; returns ("url", url) or (the error's type, its message) for each."""
    return [tuple(json.loads(line)) for line in run(PUSH, hub, folder.parent / "home", folder, *repo_ids)]


def test_push_stores_the_folder_and_nothing_else(hub, folder):
    assert push(hub, folder, "user/model") == [("url", f"{hub.address}/user/model")]
    assert hub.repos == {"user/model": FILES}
    assert list(hub.storage.uploads.values()).count(FILES["model.safetensors"]) == 1 and not hub.uploads

    # the token goes to the endpoint alone: the storage host takes what the Hub signed
    assert {token for _, _, token in hub.storage.requests} == {None}
    tokens = {path: token for _, path, token in hub.requests}
    assert tokens["/api/repos/create"] == tokens["/api/models/user/model/commit/main"] == "Bearer hf_secret"


def test_second_push_changes_nothing(hub, folder):
    assert push(hub, folder, "user/model", "user/model") == [("url", f"{hub.address}/user/model")] * 2
    assert hub.repos == {"user/model": FILES}
    assert sum("/commit/" in path for _, path, _ in hub.requests) == 1


def test_name_without_a_user_goes_to_the_token_s_owner(hub, folder):
    assert push(hub, folder, "model") == [("url", f"{hub.address}/user/model")]
    assert hub.repos == {"user/model": FILES}


def test_errors_are_one_clear_line(hub, folder):
    """Each repo fails with the status in its name, while it is created or at the commit."""
    cases = {"create-401": ("PermissionError", "HF_TOKEN"), "create-403": ("PermissionError", "no access"),
             "create-500": ("OSError", "Server Error"), "commit-403": ("PermissionError", "no access"),
             "commit-409": ("OSError", "Conflict"),
             "commit-413": ("OSError", "Too Large")}
    for name in cases:
        step, status = name.split("-")
        hub.failures[f'"{name}"' if step == "create" else f"{name}/commit/"] = int(status)
        if status in ("401", "403"):      # the package then asks whether the repo is there already
            hub.failures[f"/api/models/user/{name}$"] = int(status)
    results = push(hub, folder, *(f"user/{name}" for name in cases))
    for (name, (kind, advice)), (found, message) in zip(cases.items(), results, strict=True):
        assert found == kind and "\n" not in message and "hf_secret" not in message, message
        assert message.startswith(f"pushing {folder} to user/{name} failed: status {name[-3:]}, ") and advice in message


def test_hub_that_is_not_there_and_a_bad_name(hub, folder):
    hub.stop()
    (kind, message), (bad, _) = push(hub, folder, "user/model", "user/model.git")
    assert kind == "OSError" and message.startswith(f"pushing {folder} to user/model failed: ") and "\n" not in message
    assert bad == "ValueError"


def test_one_cache_for_both(hub, tmp_path):
    """What resolve_model fetched, huggingface_hub finds without a request, also that a file is missing; and back."""
    hub.repos["user/model"] = FILES
    ours, found, absent, theirs, resolved = run(ONE_CACHE, hub, tmp_path / "home", tmp_path / "theirs")
    assert ours == found == str(tmp_path / "home" / "hub" / "models--user--model" / "snapshots" / COMMIT)
    assert absent == "True"
    assert resolved == theirs == str(tmp_path / "theirs" / "models--user--model" / "snapshots" / COMMIT)
    for snapshot in (ours, theirs):
        assert (Path(snapshot) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
