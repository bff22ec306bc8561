"""Certificates that come last are found by whatever reads the system's, with no variable set.

The bundle is made at the start; the certificate of the sandbox's own authority is known only when everything else is
ready, and pid 1, which by then is nobody special, adds it. Clients talk to a server inside, over its loopback.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from kit import viewing
from kit.account import PYTHON, TIMEOUT_S, place  # noqa: F401  # a fixture
from kit.expect import require

from nono_ebpf.sandbox import view

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.root, pytest.mark.kernel]

_SERVE = """
import http.server, socketserver, ssl, subprocess, sys
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"reached\\n\\n")
    def log_message(self, *_):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    def handle_error(self, *_):
        pass
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
server = Server(("127.0.0.1", 0), Ok)
server.socket = context.wrap_socket(server.socket, server_side=True)
import threading
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"localhost:{server.server_port}"
sys.exit(subprocess.run([each.replace("HOST", url) for each in sys.argv[2:]], timeout=60).returncode)
"""
_PYTHON_CLIENT = "import urllib.request as r; print(r.urlopen('https://HOST/').read().decode())"
_RUBY_CLIENT = "require 'open-uri'; puts URI.open('https://HOST/').read"
_REQUEST = r"printf 'GET / HTTP/1.0\r\n\r\n'"
CLIENTS = {
    "curl": ["curl", "-sS", "https://HOST/"],
    "wget": ["wget", "-qO-", "https://HOST/"],
    "openssl": ["sh", "-c", f"{_REQUEST} | openssl s_client -quiet -verify_return_error -connect HOST"],
    "python3": [PYTHON, "-I", "-c", _PYTHON_CLIENT],
    "ruby": ["ruby", "-e", _RUBY_CLIENT],
}
_NO_FILE_OF_OPENSSLS = """
work=$0; mount -t tmpfs -o mode=755 tmpfs "$work"
for each in /usr/lib/ssl/*; do [ "${each##*/}" = cert.pem ] || cp -a "$each" "$work"; done
mount --bind "$work" /usr/lib/ssl
"""
_NO_CERTIFICATES = _NO_FILE_OF_OPENSSLS + "mount -t tmpfs -o mode=755 tmpfs /etc/ssl/certs\n"
# As Fedora and Alpine have them.
_FEDORA = """
work=$0; mount -t tmpfs -o mode=755 tmpfs "$work"; mkdir "$work/upper" "$work/work"
mkdir -p "$work/upper/pki/tls/certs" "$work/upper/pki/ca-trust/extracted/pem"
echo system >"$work/upper/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"
ln -s /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem "$work/upper/pki/tls/certs/ca-bundle.crt"
mount -t overlay -o "lowerdir=/etc,upperdir=$work/upper,workdir=$work/work" overlay /etc
mount -t tmpfs -o mode=755 tmpfs /etc/ssl
"""
_ALPINE = """
mount -t tmpfs -o mode=755 tmpfs /etc/ssl; mkdir /etc/ssl/certs
echo system >/etc/ssl/certs/ca-certificates.crt; ln -s certs/ca-certificates.crt /etc/ssl/cert.pem
"""
LAYOUTS = {
    "as it is": ("", ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/usr/lib/ssl/cert.pem")),
    "no file of OpenSSL's": (_NO_FILE_OF_OPENSSLS, ("/etc/ssl/certs/ca-certificates.crt", "/usr/lib/ssl/cert.pem")),
    "no certificates": (_NO_CERTIFICATES, ("/etc/ssl/certs/ca-certificates.crt", "/usr/lib/ssl/cert.pem")),
    "Fedora's": (
        _FEDORA,
        (
            *("/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),
            *("/etc/pki/tls/cert.pem", "/etc/ssl/cert.pem"),
        ),
    ),
    "Alpine's": (_ALPINE, ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem")),
}


class Authority:
    """One that nobody knows, with a server's certificate."""

    def __init__(self, directory: Path) -> None:
        self.work = directory / "work"
        self.work.mkdir()
        authority = trustme.CA()
        self.certificate = directory / "late.pem"
        self.certificate.write_bytes(authority.cert_pem.bytes())
        self.server = directory / "server.pem"
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(self.server))
        self.server.chmod(0o644)
        self.system = directory / "system.pem"
        system = Path("/etc/ssl/certs/ca-certificates.crt")
        self.system.write_bytes(system.read_bytes().rstrip() if system.exists() else b"")


@pytest.fixture
def authority(place: Path) -> Authority:  # noqa: F811
    return Authority(place)


def _in_view(
    authority: Authority, *command: str, layout: str = "", late: Path | None = None
) -> subprocess.CompletedProcess[str]:
    start = viewing.command(*command, ca_bundle=authority.system, certificates=late)
    return _finish(
        ["unshare", "--mount", "--propagation=private", "sh", "-ec", f'{layout}\nexec "$@"', authority.work, *start]
    )


def _finish(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True}
    return subprocess.run(command, text=True, cwd="/", timeout=TIMEOUT_S, check=False, **streams)


@pytest.mark.parametrize("layout", ["as it is", "no file of OpenSSL's", "no certificates"])
@pytest.mark.parametrize("client", CLIENTS)
def test_clients_trust_it_without_being_told(authority: Authority, client: str, layout: str) -> None:
    """Whether they read a bundle or OpenSSL's defaults; without the certificate the same client refuses."""
    require(client)
    command = [PYTHON, "-I", "-c", _SERVE, str(authority.server), *CLIENTS[client]]
    done = _in_view(authority, *command, layout=LAYOUTS[layout][0], late=authority.certificate)
    assert "reached" in done.stdout, done.stderr
    assert "reached" not in _in_view(authority, *command, layout=LAYOUTS[layout][0]).stdout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_name_of_the_bundle_has_it(authority: Authority, layout: str) -> None:
    """The host's own certificates first, then what came late; as other distributions lay them out, too."""
    script, paths = LAYOUTS[layout]
    authority.certificate.write_text("late\n")
    authority.system.write_text("first\nsecond")
    done = _in_view(authority, "cat", *paths, layout=script, late=authority.certificate)
    assert (done.stdout, done.stderr) == ("first\nsecond\nlate\n" * len(paths), "")


def test_what_else_lies_beside_the_bundle_stays(authority: Authority) -> None:
    """Where a name had to be added, the others are what they were: links, files, directories and what is below."""
    look = ("find", "/etc/ssl", "/usr/lib/ssl/", "-not", "-name", "cert.pem", "-printf", r"%p %y %l %m %U\n")
    inside, outside = _in_view(authority, *look).stdout, _finish(look).stdout
    skipped = ("/etc/ssl/private", "/etc/ssl ", "/usr/lib/ssl/ ", "/etc/ssl/certs/ca-certificates.crt")
    kept = [sorted(line for line in text.split("\n") if not line.startswith(skipped)) for text in (inside, outside)]
    assert kept[0] == kept[1]


def test_the_command_cannot_write_it(authority: Authority) -> None:
    """By no name, and through no descriptor that is left open."""
    script = (
        f"for each in {view.CA_BUNDLE} /etc/ssl/cert.pem /proc/1/fd/*; do echo mine >>$each; done; ls /proc/self/fd"
    )
    done = _in_view(authority, "sh", "-c", script, late=authority.certificate)
    assert done.stdout.split() == ["0", "1", "2", "3"]  # 3: ls reading the directory
    assert done.stderr.lower().count("permission denied") >= 3
    mode = _in_view(authority, "stat", "-c", "%a %U", str(view.CA_BUNDLE), late=authority.certificate)
    assert mode.stdout == "644 root\n"


def test_it_may_be_larger_than_a_packet(authority: Authority) -> None:
    """Nothing is cut off."""
    authority.certificate.write_text("x" * 3_000_000 + "\n")
    done = _in_view(authority, "tail", "-c", "3000001", str(view.CA_BUNDLE), late=authority.certificate)
    assert done.stdout == authority.certificate.read_text()


def test_without_a_bundle_nothing_can_be_added(authority: Authority) -> None:
    """The command is not started with certificates missing that it was to have."""
    done = _finish(viewing.command("echo", "started", certificates=authority.certificate))
    assert (done.stdout, done.returncode) == ("", 125)
