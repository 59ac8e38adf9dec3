"""A Hub of this machine: repositories, branches, large files in parts, ranges, private repositories, and faults."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, USER = "hf_loopback", "me"
LARGE_SUFFIXES = (".safetensors", ".parquet")
PART_BYTES = 1 << 18


def digest(data: bytes, large: bool) -> str:
    """What git, or the storage of large files, calls these bytes."""
    return hashlib.sha256(data).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    data: bytes
    large: bool

    def listed(self, path: str) -> dict:
        """As the Hub lists it."""
        oid, size = digest(self.data, self.large), len(self.data)
        large = {"lfs": {"oid": oid, "sha256": oid, "size": size, "pointerSize": 134}} if self.large else {}
        return {"type": "file", "path": path, "rfilename": path, "size": size, "oid": oid, **large}


@dataclass
class Repository:
    """Commits by their names, and what the branches point at."""

    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def commit_of(self, revision: str) -> str | None:
        """The commit of a branch or of its own name."""
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class State:
    """What the server holds, counts and breaks.

    Attributes:
        received, served: bytes of large files, by digest.
        begun: the place of each large file in the order of arrival.
        cut_parts: parts whose connection is cut before the answer, so many of those to come.
        accept_objects: how many large files are taken, the others being refused; None takes all.
        cut_download_after: bytes after which the next download of a large file is cut.
        downloads_left: large files that are still given before downloads are refused; None gives all.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    received: Counter = field(default_factory=Counter)
    served: Counter = field(default_factory=Counter)
    begun: dict[str, int] = field(default_factory=dict)
    cut_parts: int = 0
    accept_objects: int | None = None
    cut_download_after: int | None = None
    downloads_left: int | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """The files of a revision."""
        repository = self.repositories[f"{kind}/{repo_id}"]
        return {path: file.data for path, file in repository.commits[repository.commit_of(revision)].items()}


class Handler(BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks."""

    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *args):
        """Keep the tests' output clean."""

    def answer(self, body=b"", status: int = 200, headers: dict | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def handle_request(self) -> None:
        path, data = unquote(urlsplit(self.path).path), self.body()
        for pattern, route in ROUTES:
            if found := re.fullmatch(pattern, path):
                with self.state.lock:
                    return route(self, data, **found.groupdict())
        return self.refuse(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    @property
    def url(self) -> str:
        return f"http://{self.headers['Host']}"

    def repository(self, kind: str | None, repo: str) -> Repository | None:
        """A repository that the caller may see."""
        found = self.state.repositories.get(f"{kind or 'model'}/{repo}")
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        return found if found is not None and (known or not found.private) else None

    def who(self, data: bytes) -> None:
        self.answer({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def validate(self, data: bytes) -> None:
        self.answer({"errors": [], "warnings": []})

    def create(self, data: bytes) -> None:
        asked = json.loads(data)
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        key = f"{asked.get('type') or 'model'}/{repo}"
        status = 409 if key in self.state.repositories else 200
        self.state.repositories.setdefault(key, Repository(private=asked.get("visibility") == "private"))
        self.answer({"url": f"{self.url}/{repo}", "name": repo, "id": repo}, status)

    def api(self, data: bytes, kind: str, repo: str, what: str | None, rest: str | None) -> None:
        repository = self.repository(kind, repo)
        if repository is None:
            return self.refuse(404, "RepoNotFound")
        what, rest = what or "revision", rest or "main"
        if what == "branch":
            if rest in repository.branches:
                return self.refuse(409, "Conflict")
            repository.branches[rest] = repository.branches["main"]
            return self.answer({}, 201)
        revision, _, below = rest.partition("/")
        commit = repository.commit_of(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if what == "revision":
            listed = [file.listed(path) for path, file in sorted(files.items())]
            about = {"id": repo, "modelId": repo, "sha": commit, "private": repository.private, "gated": False}
            return self.answer({**about, "disabled": False, "tags": [], "downloads": 0, "siblings": listed})
        if what == "tree":
            inside = {path: file for path, file in sorted(files.items()) if path.startswith(below)}
            return self.answer([file.listed(path) for path, file in inside.items()])
        if what == "paths-info":
            asked = json.loads(data)["paths"] if data[:1] == b"{" else parse_qs(data.decode()).get("paths", [])
            return self.answer([files[path].listed(path) for path in asked if path in files])
        if what == "preupload":
            asked = [each["path"] for each in json.loads(data)["files"]]
            modes = {path: "lfs" if path.endswith(LARGE_SUFFIXES) else "regular" for path in asked}
            kept = {path: {"oid": digest(files[path].data, files[path].large)} for path in asked if path in files}
            answers = [
                {"path": path, "uploadMode": mode, "shouldIgnore": False, **kept.get(path, {})}
                for path, mode in modes.items()
            ]
            return self.answer({"files": answers})
        page = f"{self.url}/{'' if kind == 'model' else kind + 's/'}{repo}"
        return self.commit(data, repository, revision, commit, page)

    def commit(self, data: bytes, repository: Repository, branch: str, parent: str, page: str) -> None:
        files = dict(repository.commits[parent])
        for line in data.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), large=False)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.state.objects:
                    return self.refuse(400, "MissingObject")
                files[value["path"]] = File(self.state.objects[value["oid"]], large=True)
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        name = hashlib.sha1(parent.encode() + data).hexdigest()
        repository.commits[name], repository.branches[branch] = files, name
        return self.answer({"success": True, "commitOid": name, "commitUrl": f"{page}/commit/{name}"})

    def batch(self, data: bytes, **repo) -> None:
        """Where the parts of each large file go; files that are there need nothing."""
        answers = []
        for wanted in json.loads(data)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            upload = {"href": f"{self.url}/complete/{oid}", "header": {"chunk_size": str(PART_BYTES)}}
            for part in range(-(-size // PART_BYTES)):
                upload["header"][f"{part + 1:05}"] = f"{self.url}/part/{oid}/{part + 1}"
            actions = {} if oid in self.state.objects else {"actions": {"upload": upload}}
            answers.append({"oid": oid, "size": size, "authenticated": True, **actions})
        self.answer({"transfer": "multipart", "objects": answers}, headers={"Content-Type": "application/json"})

    def part(self, data: bytes, oid: str, number: str) -> None:
        self.state.received[oid] += len(data)
        if self.state.cut_parts:
            self.state.cut_parts -= 1
            self.close_connection = True
            return None  # no answer at all
        self.state.begun.setdefault(oid, len(self.state.begun))
        if self.state.accept_objects is not None and self.state.begun[oid] >= self.state.accept_objects:
            return self.refuse(403, "Forbidden")
        self.state.parts.setdefault(oid, {})[int(number)] = data
        return self.answer(headers={"ETag": hashlib.md5(data).hexdigest()})

    def complete(self, data: bytes, oid: str) -> None:
        parts = self.state.parts.pop(oid)
        whole = b"".join(parts[entry["partNumber"]] for entry in json.loads(data)["parts"])
        if digest(whole, large=True) != oid:
            return self.refuse(400, "BadDigest")
        self.state.objects[oid] = whole
        return self.answer({})

    def resolve(self, data: bytes, kind: str | None, repo: str, revision: str, path: str) -> None:
        repository = self.repository(kind, repo)
        if repository is None:
            return self.refuse(404, "RepoNotFound")
        commit = repository.commit_of(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        file = repository.commits[commit].get(path)
        if file is None:
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return self.answer({"error": "Entry not found"}, 404, missing)
        oid, size = digest(file.data, file.large), len(file.data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        if file.large:
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(size)}
            if self.state.downloads_left == 0 and self.command == "GET":
                return self.refuse(403, "Forbidden")
            if self.state.downloads_left is not None and self.command == "GET":
                self.state.downloads_left -= 1
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(start[1]) if start else 0
        headers |= {"Content-Range": f"bytes {first}-{size - 1}/{size}"} if start else {}
        if file.large and self.command == "GET":
            return self.stream(file.data[first:], oid, 206 if start else 200, headers)
        return self.answer(file.data[first:], 206 if start else 200, headers)

    def stream(self, data: bytes, oid: str, status: int, headers: dict) -> None:
        sent = data
        if self.state.cut_download_after is not None:
            sent, self.state.cut_download_after = data[: self.state.cut_download_after], None
            self.close_connection = True
        self.state.served[oid] += len(sent)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    (r"/api/whoami-v2", Handler.who),
    (r"/api/validate-yaml", Handler.validate),
    (r"/api/repos/create", Handler.create),
    (rf"/api/(?P<kind>model|dataset)s/{REPO}(?:/(?P<what>[a-z-]+)(?:/(?P<rest>.+))?)?", Handler.api),
    (rf"/(?:(?P<kind>dataset)s/)?{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (r"/part/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)", Handler.part),
    (r"/complete/(?P<oid>[0-9a-f]{64})", Handler.complete),
    (rf"/(?:(?P<kind>dataset)s/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]


class LoopbackHub:
    """The server, on a free port of this machine, while the context lasts.

    Usage: `with LoopbackHub() as hub: hub.url, hub.state`
    """

    def __init__(self):
        self.state = State()
        handler = type("LoopbackHandler", (Handler,), {"state": self.state})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
