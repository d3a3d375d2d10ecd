"""A small hub on this machine, for the real client."""

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """What a small upload and a download ask for, as the hub answers it; keeps what it is sent, and gives it to who may."""

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def file(self, body: bool):
        """/user/teddy/resolve/REVISION/NAME, of a private repository."""
        _, _, _, _, revision, name = self.path.split("/", 5)
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.send_response(401)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return
        if revision not in ("main", "v1") or name not in self.server.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if revision not in ("main", "v1") else "EntryNotFound")
            self.end_headers()
            return
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT if revision == "main" else "b" * 40)
        self.send_header("ETag", f'"{name}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self):
        self.file(body=False)

    def do_GET(self):
        if "/resolve/" in self.path:
            return self.file(body=True)
        self.answer({"name": "user", "id": "user/teddy", "sha": COMMIT, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.send_error(401, "who are you")
        elif self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)
            self.answer({"url": f"{self.server.url}/user/teddy", "id": "user/teddy", "name": "user/teddy"})
        elif "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(body)["files"]]
            self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            for line in filter(None, body.splitlines()):
                item = json.loads(line)
                if item["key"] == "file":
                    self.server.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            self.answer({"commitOid": COMMIT, "commitUrl": f"{self.server.url}/user/teddy/commit/{COMMIT}"})
        else:
            self.answer({})

    def log_message(self, *args):
        pass


def hub_server() -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.files, server.asked, server.created = f"http://127.0.0.1:{server.server_port}", {}, [], None
    return server
