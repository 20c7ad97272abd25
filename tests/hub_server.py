"""A small Hub on loopback: as much of its HTTP API as downloads and uploads need, kept in memory.

Repositories are `{path: bytes}` for each commit. As on the Hub, safetensors go by LFS; writing
needs the token, a private or gated repository needs it for reading.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test_server"
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        text = repr((branch, len(self.commits), sorted(files.items())))
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name], self.refs[branch] = files, name
        self.messages.append(message)
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs.get(revision, revision)]


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []  # "GET /…", in order
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, folder, **options) -> Repository:
        """A repository with a folder's files."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        repository = self.repositories[name] = Repository(**options)
        repository.commit(files)
        return repository

    def environment(self, cache, token: str | None = TOKEN, **more: str) -> dict[str, str]:
        """The environment variables of a process that uses this Hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **more,
        }


@contextmanager
def running_hub():
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def answer(self, value=None, status=200, headers=None, body=None):
        content = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        kind = "application/json" if body is None else "application/octet-stream"
        for name, text in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, code, message):
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.answer({"error": message}, status, {k: v for k, v in headers.items() if v})

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        self.body = self.chunks() if chunked else self.rfile.read(length)
        self.trusted = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        for command, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in command.split():
                return action(self, **found.groupdict())
        self.refuse(404, "", f"no route for {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def chunks(self):
        data = b""
        while size := int(self.rfile.readline().strip(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def repository(self, repo, revision=None, contents=True):
        """The repository, if this request may see it; None after a refusal was sent."""
        found = self.server.repositories.get(repo)
        if found is None or (found.private and not self.trusted):
            status = 404 if self.trusted else 401
            return self.refuse(status, "RepoNotFound", "Repository not found")
        if found.gated and contents and not self.trusted:
            return self.refuse(401, "GatedRepo", f"Access to model {repo} is restricted.")
        if revision not in (None, *found.refs, *found.commits):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def writing(self):
        if not self.trusted:
            self.refuse(401, "", "Invalid username or password.")
        return self.trusted

    def info(self, repo, revision="main"):
        if found := self.repository(repo, revision, contents=False):
            siblings = [{"rfilename": name} for name in found.files(revision)]
            sha = found.refs.get(revision, revision)
            self.answer({"id": repo, "modelId": repo, "sha": sha, "siblings": siblings})

    def tree(self, repo, revision):
        if found := self.repository(repo, revision, contents=False):
            files = found.files(revision).items()
            self.answer([entry(name, content) for name, content in files])

    def resolve(self, repo, revision, file):
        if not (found := self.repository(repo, revision)):
            return None
        content = found.files(revision).get(file)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        commit = found.refs.get(revision, revision)
        headers = {"ETag": f'"{oid(file, content)}"', "X-Repo-Commit": commit}
        return self.answer(headers=headers, body=content)

    def create(self):
        asked = json.loads(self.body)
        if self.writing():
            name = f"{asked['organization']}/{asked['name']}"
            if not name.startswith("somebody/"):
                return self.refuse(403, "", "You don't have the rights to create a model here")
            url = {"url": f"{self.server.url}/{name}"}
            if name in self.server.repositories:
                return self.answer({"error": "You already created this model repo", **url}, 409)
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            made = self.server.repositories[name] = Repository(private=private)
            made.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
            self.answer(url)
        return None

    def branch(self, repo, branch):
        if self.writing() and (found := self.repository(repo)):
            if branch in found.refs:
                return self.refuse(409, "", "Reference already exists")
            found.refs[branch] = found.refs["main"]
            self.answer({})
        return None

    def validate(self):
        self.answer({"errors": [], "warnings": []})

    def preupload(self, repo, revision):
        if self.writing() and (found := self.repository(repo, revision)):
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            old = found.files(revision)
            files = [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": oid(path, old[path]) if path in old else None,
                }
                for path in paths
            ]
            self.answer({"files": files})

    def lfs(self, repo):
        if self.writing() and self.repository(repo):
            objects = json.loads(self.body)["objects"]
            for one in objects:
                href = f"{self.server.url}/lfs/{one['oid']}"
                one["actions"] = {"upload": {"href": href, "header": {}}}
            self.answer({"transfer": "basic", "objects": objects})

    def put(self, blob):
        assert hashlib.sha256(self.body).hexdigest() == blob
        self.server.blobs[blob] = self.body
        self.answer({})

    def commit(self, repo, revision):
        if not (self.writing() and (found := self.repository(repo, revision))):
            return
        files, message = dict(found.files(revision)), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        commit = found.commit(files, revision, message)
        url = f"{self.server.url}/{repo}/commit/{commit}"
        self.answer({"commitUrl": url, "commitOid": commit, "success": True})


def oid(name, content):
    """As git and LFS name a file's content."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name, content):
    found = {"type": "file", "path": name, "size": len(content), "oid": oid(name, content)}
    if name.endswith(".safetensors"):
        found["lfs"] = {"oid": oid(name, content), "size": len(content), "pointerSize": 130}
        found["oid"] = hashlib.sha1(content).hexdigest()
    return found


ROUTES = [
    ("GET", rf"/api/models/{REPO}", Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/(?P<revision>.+)", Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)/?", Handler.tree),
    ("GET HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.resolve),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", rf"/api/models/{REPO}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs),
    ("PUT", r"/lfs/(?P<blob>[0-9a-f]+)", Handler.put),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>.+)", Handler.commit),
]
