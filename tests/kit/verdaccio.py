"""Verdaccio, a package registry for npm, which npm installs once into the checkout's `build`, and a handler before it.

It listens on a unix socket; everything that it has is for users who show a token, and made by the test.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from kit.children import Child
from kit.expect import missing, require
from kit.machine import ROOT
from kit.patience import patient
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = "6.5.2"
# It asks for node-fetch by a tag, which not every registry has.
_PACKAGE = {"private": True, "dependencies": {"verdaccio": VERSION}, "overrides": {"node-fetch": "2.6.7"}}
_USER = "org.couchdb.user:kit"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


def installed() -> Path:
    """The directory of the package; without it the running test fails or is skipped."""
    place = ROOT / "build" / f"verdaccio-{VERSION}"
    if not place.exists():
        _install(place)
    return place / "node_modules" / "verdaccio"


def _install(place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place.parent))
    (made / "package.json").write_text(json.dumps(_PACKAGE))
    install = [require("npm"), "install", "--silent", "--no-audit", "--no-fund", "--prefer-offline", "--prefix"]
    done = subprocess.run([*install, str(made)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(made)
        missing("verdaccio", f"npm cannot install verdaccio {VERSION}: {done.stderr[-300:]}")
    try:
        made.rename(place)
    except OSError:  # somebody else was faster
        shutil.rmtree(made)


class Verdaccio:
    """A registry with no package, which thinks that its address is `url`; `token` is a user's. Needs root."""

    def __init__(self, netns: str, work: Path, url: str) -> None:
        program = installed() / "bin" / "verdaccio"
        self._socket, config = work / "verdaccio.sock", work / "verdaccio.yaml"
        config.write_text(json.dumps(_configuration(work)))
        named = ["env", f"VERDACCIO_PUBLIC_URL={url}", require("node"), str(program)]
        listen = ["--config", str(config), "--listen", f"unix:{self._socket}"]
        self._child = Child(netns, "root", [*named, *listen], "http address")
        self.token = self._new_user()

    def _new_user(self) -> str:
        connection = HTTPConnection("verdaccio", timeout=patient(90))
        connection.sock = _connected(self._socket)
        body = json.dumps({"_id": _USER, "name": "kit", "password": "kit-password", "type": "user", "roles": []})
        connection.request("PUT", f"/-/user/{_USER}", body, {"Content-Type": "application/json"})
        token: str = json.loads(connection.getresponse().read())["token"]
        connection.close()
        return token

    async def handle(self, request: web.Request) -> web.Response:
        """A request to it, as it came, and its response."""
        fields = _end_to_end(request.headers)
        connector = aiohttp.UnixConnector(str(self._socket))
        target = URL(f"http://verdaccio{request.raw_path}", encoded=True)
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            session.request(request.method, target, headers=fields, data=await request.read()) as response,
        ):
            body = await response.read()
            return web.Response(status=response.status, headers=_end_to_end(response.headers), body=body)

    def close(self) -> None:
        """End it."""
        self._child.close()


def _configuration(work: Path) -> Mapping[str, Any]:
    """YAML is a superset of JSON."""
    ours = {"access": "$authenticated", "publish": "$authenticated"}
    return {
        "storage": str(work / "storage"),
        "auth": {"htpasswd": {"file": str(work / "htpasswd")}},
        "uplinks": {},
        "packages": {"@*/*": ours, "**": ours},
        "publish": {"allow_offline": True},
        "web": {"enable": False},
        "log": {"type": "stdout", "format": "pretty", "level": "warn"},
    }


def _connected(path: Path) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX)
    opened.settimeout(patient(90))
    opened.connect(str(path))
    return opened


def _end_to_end(fields: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if name.lower() not in _HOP_BY_HOP}
