"""What package managers fetch, made here and served on every address of the world, over HTTPS and in the clear.

    /simple/kit/   an index for pip, with one wheel       /npm/kit   one package for npm
    /maven/…       a parent and an extension, which a project needs before any plugin of Maven's own

One thread takes connections, one each serves them; all end with `close`. They know nothing of nono-ebpf.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable
    from pathlib import Path

HTTP_PORT, HTTPS_PORT = 8080, 8443
NAME, VERSION = "kit", "1.0.0"
WHEEL = f"{NAME}-{VERSION}-py3-none-any.whl"
TARBALL = f"{NAME}-{VERSION}.tgz"
GROUP, PARENT, EXTENSION = "com.example.kit", "parent", "extension"
# Maven adds it to whatever each plugin and extension needs.
IMPLIED = ("org.codehaus.plexus", "plexus-utils", "1.1")
Artifact = tuple[str, str, str]  # group, name, version
_LISTED = f'<!DOCTYPE html><title>{NAME}</title><a href="../../files/{WHEEL}#sha256={{digest}}">{WHEEL}</a>'


def project() -> str:
    """A Maven project that needs the parent and the extension, and no plugin."""
    return _pom(
        (GROUP, "project", VERSION),
        "pom",
        parent=_coordinates((GROUP, PARENT, VERSION)),
        build=f"<extensions><extension>{_coordinates((GROUP, EXTENSION, VERSION))}</extension></extensions>",
    )


def make(directory: Path) -> None:
    """Lay everything out below `directory`."""
    wheel = _wheel()
    _write(directory / "files" / WHEEL, wheel)
    index = _LISTED.format(digest=hashlib.sha256(wheel).hexdigest())
    _write(directory / "simple" / NAME / "index.html", index.encode())
    _write(directory / "npm" / TARBALL, _TARBALL)
    _artifact(directory, (GROUP, PARENT, VERSION), "pom")
    _artifact(directory, (GROUP, EXTENSION, VERSION), "jar")
    _artifact(directory, IMPLIED, "jar")


class Packages:
    """The servers, up on construction; `listen` opens a port of the world.

    `seen` has "Host/path" of each request, `callers` its Host and the address that it came from.
    """

    def __init__(self, directory: Path, listen: Callable[[int], socket.socket], tls: ssl.SSLContext) -> None:
        self.seen: list[str] = []
        self.callers: list[tuple[str, str]] = []
        handler = partial(_Handler, seen=self.seen, callers=self.callers, directory=str(directory))
        secure = tls.wrap_socket(listen(HTTPS_PORT), server_side=True, do_handshake_on_connect=False)
        self._servers = [_Server(listen(HTTP_PORT), handler, "http"), _Server(secure, handler, "https")]
        self._threads = [threading.Thread(target=server.serve_forever) for server in self._servers]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End them."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    def __init__(self, listener: socket.socket, handler: Any, scheme: str) -> None:
        super().__init__(listener.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.scheme = listener, scheme

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or does not trust us, is nothing to report."""


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def __init__(self, *arguments: Any, seen: list[str], callers: list[tuple[str, str]], **more: Any) -> None:
        self._seen, self._callers = seen, callers
        super().__init__(*arguments, **more)

    def do_GET(self) -> None:  # the name is http.server's
        if self.path == f"/npm/{NAME}":
            self._send_npm_document()
        else:
            super().do_GET()

    def _send_npm_document(self) -> None:
        host = self.headers["Host"]
        body = json.dumps(_npm_document(f"{self.server.scheme}://{host}/npm/{TARBALL}")).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        self._seen.append(f"{self.headers['Host']}{self.path}")
        self._callers.append((self.headers["Host"], self.client_address[0].removeprefix("::ffff:")))

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


# ---------------------------------------------------------------- the packages


def _wheel() -> bytes:
    info = f"{NAME}-{VERSION}.dist-info"
    files = {
        f"{NAME}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: kit\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    return _zipped(files | {f"{info}/RECORD": "".join(f"{name},,\n" for name in files)})


def _tarball() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        body = json.dumps({"name": NAME, "version": VERSION}).encode()
        entry = tarfile.TarInfo("package/package.json")
        entry.size = len(body)
        tar.addfile(entry, io.BytesIO(body))
    return out.getvalue()


def _npm_document(tarball: str) -> dict[str, Any]:
    digest = base64.b64encode(hashlib.sha512(_TARBALL).digest()).decode()
    version = {"name": NAME, "version": VERSION, "dist": {"tarball": tarball, "integrity": f"sha512-{digest}"}}
    return {"name": NAME, "dist-tags": {"latest": VERSION}, "versions": {VERSION: version}}


def _coordinates(artifact: Artifact) -> str:
    group, name, version = artifact
    return f"<groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version>"


def _pom(artifact: Artifact, packaging: str, **parts: str) -> str:
    inner = "".join(f"<{name}>{text}</{name}>" for name, text in parts.items())
    head = f"<modelVersion>4.0.0</modelVersion>{_coordinates(artifact)}<packaging>{packaging}</packaging>"
    return f'<project xmlns="http://maven.apache.org/POM/4.0.0">{head}{inner}</project>'


def _artifact(directory: Path, artifact: Artifact, packaging: str) -> None:
    group, name, version = artifact
    place = directory / "maven" / group.replace(".", "/") / name / version
    files = {"pom": _pom(artifact, packaging).encode()}
    if packaging == "jar":
        files["jar"] = _zipped({"META-INF/MANIFEST.MF": "Manifest-Version: 1.0\n"})
    for kind, data in files.items():
        _write(place / f"{name}-{version}.{kind}", data)
        _write(place / f"{name}-{version}.{kind}.sha1", hashlib.sha1(data).hexdigest().encode())


def _zipped(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


_TARBALL = _tarball()
