"""How TLS is spoken: whom we believe, who we say we are, and that no key passes through a file."""

from __future__ import annotations

import gc
import os
import re
import ssl
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as load_key
from kit.expect import require
from kit.patience import patient

from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.tls.authority import CertificateAuthority
from nono_ebpf.tls.contexts import MemoryFile, ServerContexts, ServiceTls, UpstreamContexts, context_for

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Clock:
    """A time that a test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@cache
def somebody() -> trustme.CA:
    return trustme.CA()


@cache
def ours() -> tuple[bytes, bytes]:
    """A certificate by which a service could know us, and its key."""
    issued = somebody().issue_cert("client.test")
    return issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes()


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends once they agree. Raises ssl.SSLError, of whoever does not."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True))
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for each in ends:
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                continue
            done.add(each)
    return ends


# --- memory with a path


def test_memory_has_a_path_while_it_is_needed() -> None:
    """What was there is gone afterwards, also when something longer was there before, or when its use failed."""
    memory = MemoryFile()
    with memory.holding(b"a longer secret") as path:
        assert Path(path).read_bytes() == b"a longer secret"
    assert not Path(path).read_bytes().strip()
    with pytest.raises(ZeroDivisionError), memory.holding(b"secret"):
        raise ZeroDivisionError
    assert not Path(path).read_bytes().strip()
    with memory.holding(b"secret"):
        assert Path(path).read_bytes().rstrip() == b"secret"
    assert Path(path).readlink().as_posix().startswith("/memfd:")
    memory.close()
    assert not Path(path).exists()


# --- to upstreams


def test_services_share_what_is_the_same() -> None:
    """Reading the system's roots takes long, so it is done once for all that need nothing more."""
    own = somebody().cert_pem.bytes()
    contexts = UpstreamContexts(
        None,
        {"plain": ServiceTls(), "own": ServiceTls(own), "same": ServiceTls(own), "with key": ServiceTls(own, *ours())},
    )
    assert contexts("plain") is contexts(None) is contexts("unknown")
    assert contexts("own") is contexts("same")
    assert len({contexts(name) for name in (None, "own", "with key")}) == 3


def test_what_a_service_trusts_is_its_own() -> None:
    """Its CA is trusted for it, --upstream-ca for everybody, and nothing is taken away by either."""
    second = trustme.CA()
    contexts = UpstreamContexts(second.cert_pem.bytes(), {"own": ServiceTls(somebody().cert_pem.bytes())})
    for issuer, believers in ((somebody(), {"own"}), (second, {"own", None})):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issuer.issue_cert("api.test").configure_cert(server)
        believing = set()
        for name in ("own", None):
            try:
                shake_hands(contexts(name), server, "api.test")
            except ssl.SSLCertVerificationError as error:
                assert error.verify_message in {  # noqa: PT017
                    "unable to get local issuer certificate",
                    "self-signed certificate in certificate chain",
                }
            else:
                believing.add(name)
        assert believing == believers
    for name in ("own", None):
        context = contexts(name)
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.cert_store_stats()["x509_ca"] > context_for(None).cert_store_stats()["x509_ca"]


@pytest.mark.parametrize("chain", [False, True], ids=["alone", "with its issuer"])
def test_a_service_may_want_to_know_us(chain: bool) -> None:
    """It is shown the certificate, whose key never was in a file of any file system."""
    certificate, key = ours()
    if chain:
        certificate += somebody().cert_pem.bytes()
    own = ServiceTls(somebody().cert_pem.bytes(), certificate, key)
    contexts = UpstreamContexts(None, {"mutual": own, "other": ServiceTls(own.ca)})
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    somebody().issue_cert("api.test").configure_cert(server)
    somebody().configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    server.maximum_version = ssl.TLSVersion.TLSv1_2  # in which the handshake does not end before it is seen
    _, accepted = shake_hands(contexts("mutual"), server, "api.test")
    assert (accepted.getpeercert() or {})["subjectAltName"] == (("DNS", "client.test"),)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(contexts("other"), server, "api.test")


def encrypted_key() -> bytes:
    key = load_key(ours()[1], None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (lambda: ServiceTls(b"# empty\n"), r"^svc: no certificates in PEM"),
        (lambda: ServiceTls(b""), r"^svc: no certificates in PEM"),
        (lambda: ServiceTls(None, ours()[0]), r"^svc: the client certificate and its key cannot be used"),
        (lambda: ServiceTls(None, b"", ours()[1]), r"^svc: the client certificate and its key cannot be used"),
        (
            lambda: ServiceTls(None, ours()[0], somebody().issue_cert("x.test").private_key_pem.bytes()),
            r"^svc: the client certificate and its key cannot be used: key values mismatch",
        ),
        (lambda: ServiceTls(None, ours()[0], encrypted_key()), r"^svc: .*key is encrypted"),
    ],
    ids=["no CA", "nothing", "no key", "no certificate", "another's key", "encrypted"],
)
def test_what_cannot_be_used_is_told(wanted: Callable[[], ServiceTls], problem: str) -> None:
    """With the service's name, and without a question to anybody's terminal."""
    with pytest.raises(ValueError, match=problem) as caught:
        UpstreamContexts(None, {"svc": wanted()})
    assert "\n" not in str(caught.value)


def test_a_bad_upstream_ca_is_told() -> None:
    """As it may be when a caller has not looked."""
    with pytest.raises(ValueError, match="no certificates in PEM"):
        context_for(b"x")


def test_a_key_is_not_shown() -> None:
    """By whoever prints what holds it."""
    assert "PRIVATE" not in repr(ServiceTls(None, *ours()))


# --- to clients


def test_a_host_has_one_context() -> None:
    """Made when it is asked for, and kept; the least recently asked for goes when there are too many."""
    contexts = ServerContexts(CertificateAuthority(["*.a.test"]), capacity=2)
    one, two = contexts.context_for("one.a.test"), contexts.context_for("two.a.test")
    assert contexts.context_for("one.a.test") is one
    contexts.context_for("three.a.test")
    assert contexts.context_for("one.a.test") is one
    assert contexts.context_for("two.a.test") is not two


def test_a_flood_of_names_is_bounded() -> None:
    """However many names are asked for, so many contexts are kept, and one piece of memory with a path serves all."""
    contexts = ServerContexts(CertificateAuthority(["*.a.test"]), capacity=16)
    contexts.context_for("first.a.test")
    gc.collect()  # what earlier tests left is closed by now, not on the way
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in range(100):
        contexts.context_for(f"h{number}.a.test")
    assert len(contexts._made) == 16
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_contexts_are_renewed_in_time() -> None:
    """A leaf is made anew before it ends; one that lasts as long as the authority is used to the end, and no longer."""
    clock = Clock()
    contexts = ServerContexts(CertificateAuthority(["a.test"], timedelta(hours=36), now=clock), now=clock)
    first = contexts.context_for("a.test")
    clock.now = NOW + 22 * HOUR
    assert contexts.context_for("a.test") is first
    clock.now = NOW + 23 * HOUR
    second = contexts.context_for("a.test")
    assert second is not first
    clock.now = NOW + 36 * HOUR - timedelta(seconds=1)
    assert contexts.context_for("a.test") is second
    clock.now = NOW + 36 * HOUR
    with pytest.raises(ClientProtocolError, match="expired at 2026-03-03 00:00 UTC"):
        contexts.context_for("a.test")


def test_short_lives_are_renewed_in_time_too() -> None:
    """Not for every client: a leaf is used for most of its life."""
    clock = Clock()
    contexts = ServerContexts(CertificateAuthority(["a.test"], leaf_valid_for=HOUR, now=clock), now=clock)
    first = contexts.context_for("a.test")
    clock.now = NOW + timedelta(minutes=44)
    assert contexts.context_for("a.test") is first
    clock.now = NOW + timedelta(minutes=45)
    assert contexts.context_for("a.test") is not first


def test_sessions_of_clients_are_bounded() -> None:
    """A client of TLS 1.2 that takes no tickets has its session kept by OpenSSL: not twenty thousand of them."""
    authority = CertificateAuthority(["a.test"])
    contexts = ServerContexts(authority)
    client = context_for(authority.certificate_pem)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.options |= ssl.OP_NO_TICKET
    first = contexts.context_for("a.test")
    for _ in range(200):
        _, accepted = shake_hands(client, contexts.context_for("a.test"), "a.test")
        with suppress(ssl.SSLWantReadError):  # a session of a connection that did not end in order is not kept
            accepted.unwrap()
    assert contexts.context_for("a.test") is not first
    assert 100 < first.session_stats()["number"] < 150


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_client_is_shown_the_host(version: ssl.TLSVersion) -> None:
    """By a certificate for it, by either version, and HTTP/1.1 whatever else it offers."""
    authority = CertificateAuthority(["*.a.test", "203.0.113.7"])
    contexts = ServerContexts(authority)
    client = context_for(authority.certificate_pem)
    client.minimum_version = client.maximum_version = version
    client.set_alpn_protocols(["h2", "http/1.1"])
    for host in ("x.a.test", "203.0.113.7"):
        end, _ = shake_hands(client, contexts.context_for(host), host)
        assert end.selected_alpn_protocol() == "http/1.1"


def test_old_versions_are_refused() -> None:
    """RFC 8996: TLS 1.1 is no more."""
    authority = CertificateAuthority(["a.test"])
    client = context_for(authority.certificate_pem)
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        shake_hands(client, ServerContexts(authority).context_for("a.test"), "a.test")


_MADE = """
import sys
from nono_ebpf.tls.authority import CertificateAuthority
from nono_ebpf.tls.contexts import ServerContexts, ServiceTls, UpstreamContexts
certificate, key = (open(path, "rb").read() for path in sys.argv[1:])
UpstreamContexts(certificate, {"svc": ServiceTls(certificate, certificate, key)})
contexts = ServerContexts(CertificateAuthority(["*.a.test"]))
for number in range(3):
    contexts.context_for(f"h{number}.a.test")
sys.stderr.write("done")
"""


def test_no_file_is_written(tmp_path: Path) -> None:
    """Nothing of all this opens a file for writing, makes one, or asks for a temporary one."""
    (tmp_path / "certificate.pem").write_bytes(ours()[0])
    (tmp_path / "key.pem").write_bytes(ours()[1])
    (tmp_path / "make.py").write_text(_MADE)
    trace = tmp_path / "trace"
    calls = "open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"
    python = [sys.executable, "-I", "-B", tmp_path / "make.py", tmp_path / "certificate.pem", tmp_path / "key.pem"]
    done = subprocess.run(
        [require("strace"), "-f", "-o", trace, "-e", f"trace={calls}", *python],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(120),
    )
    assert done.stderr == "done"
    made = trace.read_text().splitlines()
    assert any("/proc/self/fd/" in call and "O_RDONLY" in call for call in made)
    writing = r"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE|^\d+ +(creat|mkdir|rename|link|symlink)"
    assert [call for call in made if re.search(writing, call)] == []
