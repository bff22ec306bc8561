"""Bitwarden's real program `bw`, which npm installs once into the checkout's `build`, and a server that it believes.

The server has one account, and knows as much as a login, a synchronisation and what `bw` asks by itself need. The
account is one of today: the master key by PBKDF2, stretched by HKDF, encrypts the user's key, which encrypts the fields
of items (type 2: AES-256-CBC, and HMAC-SHA-256 of what that made). bw talks to nobody but over TLS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import trustme
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from kit.account import AS_NOBODY, finish, with_file
from kit.expect import missing, require
from kit.machine import ROOT

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from kit.machine import Machine

VERSION = "2026.9.0"
EMAIL, MASTER_PASSWORD = "kit@example.com", "a master password"
_NODE = 20  # the first with Web Crypto for everybody
_ITERATIONS = 600_000
_THEN = "2026-01-01T00:00:00.000Z"
_LOGIN, _HIDDEN = 1, 1


def node() -> str:
    """The path of one that is new enough for bw; without it the running test fails or is skipped."""
    program = require("node")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < _NODE:
        missing("bw", f"bw needs Node {_NODE}, here is {version.strip()}")
    return program


def installed() -> Path:
    """The directory that the package is installed in; without it the running test fails or is skipped."""
    place = ROOT / "build" / f"bitwarden-{VERSION}"
    if not place.exists():
        _install(place)
    return place


def _install(place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place.parent))
    made.chmod(0o755)
    (made / "package.json").write_text(json.dumps({"private": True, "dependencies": {"@bitwarden/cli": VERSION}}))
    install = [require("npm"), "install", "--silent", "--no-audit", "--no-fund", "--prefer-offline", "--prefix"]
    done = subprocess.run([*install, str(made)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(made)
        missing("bw", f"npm cannot install Bitwarden's program {VERSION}: {done.stderr[-300:]}")
    try:
        made.rename(place)
    except OSError:  # somebody else was faster
        shutil.rmtree(made)


@dataclass(frozen=True, slots=True)
class Item:
    """A login in the vault. `fields` are its own."""

    name: str
    password: str
    username: str | None = None
    uri: str | None = None
    totp: str | None = None
    notes: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


class BitwardenServer:
    """At `url`, from construction on, for the account that has `items`. `ca_file`, in `work`, vouches for it."""

    def __init__(self, listener: socket.socket, work: Path, items: Sequence[Item]) -> None:
        authority = trustme.CA()
        self.ca_file = work / "bitwarden-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        self.url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        account = _Account(items)
        self._server = ThreadingHTTPServer(listener.getsockname(), _handler(account), bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = tls.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(account: _Account) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, told = account.answer(self.path.partition("?")[0], body)
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer  # noqa: N815  # the library's names

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class _Account:
    """What the server has of it: ciphertext, and a hash that shows that somebody knows the master password."""

    def __init__(self, items: Sequence[Item]) -> None:
        salt, password = EMAIL.encode(), MASTER_PASSWORD.encode()
        master = hashlib.pbkdf2_hmac("sha256", password, salt, _ITERATIONS)
        self._hash = _text(hashlib.pbkdf2_hmac("sha256", master, password, 1))
        stretched = b"".join(HKDFExpand(hashes.SHA256(), 32, info).derive(master) for info in (b"enc", b"mac"))
        self._key, self._id, self._refresh = os.urandom(64), str(uuid.uuid4()), os.urandom(16).hex()
        self._wrapped = _encrypted(stretched, self._key)
        pair = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private = pair.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        public = pair.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self._private = _encrypted(self._key, private)
        self._keys = {
            "publicKeyEncryptionKeyPair": {"wrappedPrivateKey": self._private, "publicKey": _text(public)},
            "signatureKeyPair": None,
            "securityState": None,
        }
        self._kdf = {"kdfType": 0, "iterations": _ITERATIONS}
        self._unlock = {"kdf": self._kdf, "masterKeyEncryptedUserKey": self._wrapped, "salt": EMAIL}
        self._ciphers = [self._cipher(each) for each in items]

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the JSON."""
        match path:
            case "/identity/accounts/prelogin/password":
                return 200, {"kdf": 0, "kdfIterations": _ITERATIONS, "kdfSettings": self._kdf, "salt": EMAIL}
            case "/identity/connect/token":
                asked = parse_qs(body.decode())
                if asked.get("password") == [self._hash] or asked.get("refresh_token") == [self._refresh]:
                    return 200, self._token()
                return 400, {"error": "invalid_grant"}
            case "/api/sync":
                return 200, self._everything()
            case "/api/config":
                return 200, {"object": "config", "version": VERSION, "environment": {}, "featureStates": {}}
            case "/api/accounts/revision-date":
                return 200, int(time.time() * 1000)
            case "/api/accounts/key-management/user-key-id":
                return 200, {}
        return 404, {"message": f"{path} is nothing here"}

    def _token(self) -> Any:
        now = int(time.time())
        claims = {"sub": self._id, "email": EMAIL, "email_verified": True, "premium": True, "exp": now + 3600}
        parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, claims)]
        return {
            "access_token": b".".join([*parts, b"x"]).decode(),
            "expires_in": 3600,
            "token_type": "Bearer",
            "refresh_token": self._refresh,
            "Key": self._wrapped,
            "PrivateKey": self._private,
            "AccountKeys": self._keys,
            "Kdf": 0,
            "KdfIterations": _ITERATIONS,
            "UserDecryptionOptions": {"HasMasterPassword": True, "MasterPasswordUnlock": self._unlock},
        }

    def _everything(self) -> Any:
        profile = {
            "id": self._id,
            "email": EMAIL,
            "emailVerified": True,
            "premium": True,
            "key": self._wrapped,
            "privateKey": self._private,
            "accountKeys": self._keys,
            "securityStamp": "stamp",
            "creationDate": _THEN,
        }
        unlock = {"masterPasswordUnlock": self._unlock}
        return {"object": "sync", "profile": profile, "ciphers": self._ciphers, "userDecryption": unlock}

    def _cipher(self, item: Item) -> Any:
        login = {name: self._sealed(getattr(item, name)) for name in ("password", "username", "totp")}
        return {
            "id": item.id,
            "type": _LOGIN,
            "name": self._sealed(item.name),
            "notes": self._sealed(item.notes),
            "edit": True,
            "viewPassword": True,
            "reprompt": 0,
            "revisionDate": _THEN,
            "creationDate": _THEN,
            "fields": [
                {"type": _HIDDEN, "name": self._sealed(name), "value": self._sealed(value)}
                for name, value in item.fields.items()
            ],
            "login": login | {"uris": [{"uri": self._sealed(item.uri)}] if item.uri else None},
        }

    def _sealed(self, text: str | None) -> str | None:
        return None if text is None else _encrypted(self._key, text.encode())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _encrypted(key: bytes, data: bytes) -> str:
    """As type 2, by a key of 64 bytes."""
    padder, start = padding.PKCS7(128).padder(), os.urandom(16)
    encryptor = Cipher(algorithms.AES(key[:32]), modes.CBC(start)).encryptor()
    sealed = encryptor.update(padder.update(data) + padder.finalize()) + encryptor.finalize()
    return f"2.{_text(start)}|{_text(sealed)}|{_text(hmac.digest(key[32:], start + sealed, 'sha256'))}"


class Program:
    """`bw` as an account of `machine` has it, where only root can write, and its data, empty at first.

    `work` is root's and everybody's to enter, `home` the account's. `asked` has the arguments of every call.
    """

    def __init__(self, machine: Machine, server: BitwardenServer, work: Path, home: Path) -> None:
        self._machine, self._server, self._package, self._home = machine, server, work / "package", home
        self._package.mkdir()
        self._log = work / "asked"
        self._log.touch()
        self._log.chmod(0o666)
        self._path = work / "bin"
        self._path.mkdir()
        script = self._package / "node_modules/@bitwarden/cli/build/bw.js"
        program = self._path / "bw"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {self._log}\nexec {node()} {script} "$@"\n')
        for each in (self._path, program):
            each.chmod(0o755)

    @property
    def asked(self) -> str:
        """A line for each."""
        return self._log.read_text()

    @property
    def data(self) -> Path:
        """Where it keeps its own."""
        return self._home / ".config/Bitwarden CLI"

    def command(self, words: Sequence[str]) -> list[str]:
        """`words`, to be started where it is installed."""
        return self._machine.enter([*with_file(installed(), str(self._package)), *words])

    def environment(self, **more: str) -> dict[str, str]:
        """For whoever calls it."""
        found = {"PATH": f"{self._path}:/usr/bin:/bin", "HOME": str(self._home), "LANG": "C.UTF-8"}
        return found | {"NODE_EXTRA_CA_CERTS": str(self._server.ca_file)} | more

    def log_in(self) -> str:
        """Log in and unlock the vault; the session."""
        self.call("config", "server", self._server.url)
        self.call("login", EMAIL, "--passwordenv", "KIT_PASSWORD", "--raw")
        return self.call("unlock", "--passwordenv", "KIT_PASSWORD", "--raw")

    def call(self, *words: str) -> str:
        """What it writes, run by the account itself."""
        environment = self.environment(KIT_PASSWORD=MASTER_PASSWORD, BW_NOINTERACTION="true")
        done = finish(self.command([*AS_NOBODY, "bw", *words]), env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout
