"""A small Hub on loopback: what huggingface_hub asks for when it pushes, pulls and lists models.

It keeps everything in memory, speaks the regular and the LFS way of uploading, and breaks down where a test asks it
to.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class HubError(Exception):
    """An answer that is an error."""

    def __init__(self, status, code=None, message="", body=None):
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


@dataclass
class Blob:
    content: bytes
    is_lfs: bool

    @property
    def oid(self):
        if self.is_lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    owner: str
    private: bool
    trees: dict = field(default_factory=dict)
    messages: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {}, "initial commit")

    def commit(self, branch, files, message):
        parent = self.branches.get(branch, "")
        state = json.dumps([parent, message, {path: blob.oid for path, blob in files.items()}], sort_keys=True)
        oid = hashlib.sha1(state.encode()).hexdigest()
        self.trees[oid], self.messages[oid], self.branches[branch] = dict(files), message, oid
        return oid

    def resolve(self, revision):
        for names in (self.branches, self.tags):
            if revision in names:
                return names[revision]
        if revision in self.trees:
            return revision
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class Hub(ThreadingHTTPServer):
    """The server. Tests look at `repositories` and `log`, and set `uploads_by_lfs` and `faults`."""

    daemon_threads = True
    users = {"hf_alice": "alice", "hf_mallory": "mallory"}

    def __init__(self, socket=None):
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=socket is None)
        if socket is not None:
            self.socket.close()
            self.socket, self.server_address = socket, socket.getsockname()
            self.server_name, self.server_port = self.server_address
            self.server_activate()
        self.lock = threading.Lock()
        self.reset()

    def reset(self):
        self.repositories, self.lfs, self.log = {}, {}, []
        self.uploads_by_lfs = True
        # "put": LFS uploads fail; "commit": commits fail; "cut": downloads of LFS files end after so many bytes, once;
        # "flip": downloads of LFS files have a byte changed.
        self.faults = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Say nothing: tests break connections on purpose."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        """Say nothing."""

    # -- Dispatch ---------------------------------------------------------------------------------------------------

    def handle_method(self):
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.read_chunked() if self.headers.get("Transfer-Encoding") else self.rfile.read(length)
        self.server.log.append((self.command, path))
        try:
            with self.server.lock:
                for method, pattern, answer in ROUTES:
                    match = re.fullmatch(pattern, path)
                    if match and self.command in method.split():
                        return answer(self, **match.groupdict())
            raise HubError(404, message=f"no such address: {self.command} {path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message or "error"}
            if error.code:
                headers["X-Error-Code"] = error.code
            self.reply(error.body or {"error": error.message}, error.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_method

    def read_chunked(self):
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def reply(self, content, status=200, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(data),
            **(headers or {}),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # -- Who may do what --------------------------------------------------------------------------------------------

    def user(self):
        header = self.headers.get("Authorization", "")
        if not header:
            return None
        name = self.server.users.get(header.removeprefix("Bearer "))
        if name is None:
            raise HubError(401, message="Invalid credentials in Authorization header")
        return name

    def repository(self, repo, write=False):
        user, found = self.user(), self.server.repositories.get(repo)
        if found is None or (found.private and found.owner != user):
            raise HubError(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write and found.owner != user:
            raise HubError(401 if user is None else 403, message="You have no write access to this repository")
        return found

    # -- Accounts and repositories ----------------------------------------------------------------------------------

    def whoami(self):
        user = self.user()
        if user is None:
            raise HubError(401, message="Invalid username or password.")
        self.reply({"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self):
        user, asked = self.user(), json.loads(self.body)
        if user is None:
            raise HubError(401, message="Invalid username or password.")
        owner = asked.get("organization") or user
        repo = f"{owner}/{asked['name']}"
        if owner != user:
            raise HubError(403, message=f"You have no rights in the namespace {owner}")
        url = f"{self.server.url}/{repo}"
        if repo in self.server.repositories:
            raise HubError(409, message="You already created this model repo", body={"url": url})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.repositories[repo] = Repository(owner, private)
        self.reply({"url": url, "name": repo, "id": repo})

    def delete(self):
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or self.user()}/{asked['name']}"
        self.repository(repo, write=True)
        del self.server.repositories[repo]
        self.reply({})

    def validate_yaml(self):
        text = json.loads(self.body)["content"]
        errors = [] if text.startswith("---\n") else [{"message": "no metadata"}]
        for name in re.findall(r"^base_model: (.*)$", text, flags=re.MULTILINE):
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
                errors.append({"message": f'"base_model" with value "{name}" is not valid.'})
        self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)

    def info(self, repo, revision="main"):
        found = self.repository(repo)
        oid = found.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(found.trees[oid])]
        self.reply(
            {"id": repo, "sha": oid, "private": found.private, "tags": [], "downloads": 0, "siblings": siblings}
        )

    def listing(self):
        author, user = self.query.get("author", [None])[0], self.user()
        shown = [
            {"id": name, "private": found.private, "tags": [], "downloads": 0}
            for name, found in self.server.repositories.items()
            if author in (None, found.owner) and (not found.private or found.owner == user)
        ]
        self.reply(shown)

    def tree(self, repo, revision, folder=""):
        found = self.repository(repo)
        folder = f"{folder.strip('/')}/" if folder else ""
        entries, folders = [], set()
        for path, blob in sorted(found.trees[found.resolve(revision)].items()):
            if not path.startswith(folder):
                continue
            parents = path[len(folder) :].split("/")[:-1]
            if parents and "recursive" not in str(self.query):
                parents, path = parents[:1], None
            folders |= {folder + "/".join(parents[: depth + 1]) for depth in range(len(parents))}
            if path is not None:
                entries.append({"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid})
        self.reply(entries + [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)])

    def refs(self, repo):
        found = self.repository(repo)

        def rows(kind, names):
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in names.items()]

        self.reply({"branches": rows("heads", found.branches), "tags": rows("tags", found.tags), "converts": []})

    def make_ref(self, repo, kind, name):
        found, asked = self.repository(repo, write=True), json.loads(self.body or b"{}")
        if kind == "tag":
            # The revision is in the address, the tag in the body.
            names, revision, name = found.tags, name, asked["tag"]
        else:
            names, revision = found.branches, asked.get("startingPoint", "main")
        if name in names:
            raise HubError(409, message=f"Reference {name} exists already")
        names[name] = found.resolve(revision)
        self.reply({})

    # -- Pushing ----------------------------------------------------------------------------------------------------

    def preupload(self, repo, revision):
        found = self.repository(repo, write=True)
        tree = found.trees[found.resolve(revision)]
        files = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            by_lfs = self.server.uploads_by_lfs and path.endswith(".safetensors")
            oid = tree[path].oid if path in tree else None
            mode = "lfs" if by_lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": files})

    def lfs_batch(self, repo):
        self.repository(repo, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.lfs:
                upload = {"href": f"{self.server.url}/lfs/{asked['oid']}"}
                entry["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{self.server.url}/{repo}.git/info/lfs/verify"},
                }
            objects.append(entry)
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if self.server.faults.get("put"):
            raise HubError(403, message="the storage is out of order")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, message="the content does not have this sha256")
        self.server.lfs[oid] = self.body
        self.reply(b"")

    def lfs_verify(self, repo):
        self.repository(repo, write=True)
        asked = json.loads(self.body)
        if len(self.server.lfs.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(404, message="the object is not there")
        self.reply({})

    def commit(self, repo, revision):
        found = self.repository(repo, write=True)
        if self.server.faults.get("commit"):
            raise HubError(403, message="commits are out of order")
        parent = found.resolve(revision)
        files, header = dict(found.trees[parent]), {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "header":
                header = value
            elif kind == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif kind == "lfsFile":
                if value["oid"] not in self.server.lfs:
                    raise HubError(400, message=f"{value['path']} was not uploaded")
                files[value["path"]] = Blob(self.server.lfs[value["oid"]], True)
            elif kind == "deletedFile":
                files.pop(value["path"])
        if header.get("parentCommit", parent) != parent:
            raise HubError(412, message="A commit has happened since. Please refresh and try again.")
        oid = found.commit(revision, files, header["summary"])
        self.reply({"commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "success": True})

    def xet_token(self, repo, revision):
        self.repository(repo)
        names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
        headers = dict(zip(names, (self.server.url, "token", "9999999999"), strict=True))
        self.reply({"casUrl": self.server.url, "accessToken": "token", "exp": 9999999999}, headers=headers)

    # -- Pulling ----------------------------------------------------------------------------------------------------

    def file(self, repo, revision, path):
        found = self.repository(repo)
        oid = found.resolve(revision)
        headers = {"X-Repo-Commit": oid, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if path not in found.trees[oid]:
            raise HubError(404, "EntryNotFound", "Entry not found")
        blob = found.trees[oid][path]
        content, faults = blob.content, self.server.faults
        headers["ETag"] = f'"{blob.oid}"'
        if blob.is_lfs:
            headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": len(content)}
        if self.command == "HEAD":
            self.send_response(200)
            for name, value in {**headers, "Content-Length": len(content)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            return
        if path.endswith(".safetensors") and "flip" in faults:
            content = content[:-5] + bytes([content[-5] ^ 255]) + content[-4:]
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        data = content[start:]
        if path.endswith(".safetensors") and "cut" in faults:
            kept = data[: faults.pop("cut")]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(data)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(kept)
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.reply(data, status, headers)


MODEL = rf"/api/models/{REPO}"
REVISION = r"(?P<revision>[^/]+|refs/[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("DELETE", r"/api/repos/delete", Handler.delete),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("GET", r"/api/models", Handler.listing),
    ("GET", MODEL, Handler.info),
    ("GET", rf"{MODEL}/revision/{REVISION}", Handler.info),
    ("GET", rf"{MODEL}/tree/{REVISION}(?P<folder>/.*)?", Handler.tree),
    ("GET", rf"{MODEL}/refs", Handler.refs),
    ("POST", rf"{MODEL}/(?P<kind>tag|branch)/(?P<name>.+)", Handler.make_ref),
    ("POST", rf"{MODEL}/preupload/{REVISION}", Handler.preupload),
    ("POST", rf"{MODEL}/commit/{REVISION}", Handler.commit),
    ("GET", rf"{MODEL}/xet-(?:read|write)-token/{REVISION}", Handler.xet_token),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", rf"/{REPO}\.git/info/lfs/verify", Handler.lfs_verify),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("GET HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.file),
]


def run_in_background(socket=None):
    """Start a Hub on loopback, at a socket that is bound already or at any; stop it with its `shutdown`."""
    hub = Hub(socket)
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return hub
