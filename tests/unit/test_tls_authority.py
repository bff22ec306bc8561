"""Certificates of the sandbox's own: for whom, for how long, and who believes them."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import subprocess
import threading
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kit.expect import require
from kit.patience import patient

from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.tls.authority import LONGEST, SHORTEST, CertificateAuthority, Parent, parse_parent
from nono_ebpf.tls.constraints import can_be_constrained
from nono_ebpf.tls.contexts import ServerContexts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
LONGEST_NAME = ("a" * 60 + ".") * 4 + "wide1.com"
PATIENCE_S = patient(90)
HOSTS = ("api.test", "*.wide.test", "203.0.113.7", "2001:db8::7")


class Clock:
    """A time that a test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def chain_of(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def extension(certificate: x509.Certificate, kind: Any) -> Any:
    return certificate.extensions.get_extension_for_class(kind).value


# --- what is signed


def test_the_root_signs_the_authority_which_signs_the_leaf() -> None:
    """By name, by key and by key identifier; the chain that is sent ends below what is trusted."""
    authority = CertificateAuthority(HOSTS)
    (root,) = chain_of(authority.certificate_pem)
    leaf, signing = chain_of(authority.leaf("api.test").chain_pem)
    for lower, upper in ((leaf, signing), (signing, root), (root, root)):
        lower.verify_directly_issued_by(upper)
        known = extension(lower, x509.AuthorityKeyIdentifier).key_identifier
        assert known == extension(upper, x509.SubjectKeyIdentifier).digest


def test_what_each_may_do() -> None:
    """The root may sign one level, the authority leaves only, a leaf nothing; all of it for servers alone."""
    authority = CertificateAuthority(HOSTS)
    leaf, signing = chain_of(authority.leaf("api.test").chain_pem)
    (root,) = chain_of(authority.certificate_pem)
    for certificate, ca, depth in ((root, True, 1), (signing, True, 0), (leaf, False, None)):
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (basic.critical, basic.value) == (True, x509.BasicConstraints(ca=ca, path_length=depth))
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, ca, not ca)
        assert list(extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_serials_and_names_are_not_used_twice() -> None:
    """Two sandboxes' authorities, and two leaves, can be told apart by whoever trusts both."""
    one, two = CertificateAuthority(["api.test"]), CertificateAuthority(["api.test"])
    chains = [chain_of(each.leaf("api.test").chain_pem + each.certificate_pem) for each in (one, one, two)]
    assert len({chain[0].serial_number for chain in chains}) == 3
    for level in (1, 2):
        assert chains[0][level].subject != chains[2][level].subject


@pytest.mark.parametrize(
    ("hosts", "names", "networks"),
    [
        (["api.test"], ["api.test"], ["255.255.255.255/32", f"{ip_address((1 << 128) - 1)}/128"]),
        (["*.a.test", "a.test"], ["a.test"], ["255.255.255.255/32", f"{ip_address((1 << 128) - 1)}/128"]),
        (["203.0.113.7"], ["invalid"], ["203.0.113.7/32", f"{ip_address((1 << 128) - 1)}/128"]),
        (["2001:db8::7", "b.test"], ["b.test"], ["255.255.255.255/32", "2001:db8::7/128"]),
    ],
)
def test_names_are_constrained(hosts: list[str], names: list[str], networks: list[str]) -> None:
    """Critically, to exactly the hosts; a kind of name that no host has is constrained to what nobody has."""
    authority = CertificateAuthority(hosts)
    for certificate in chain_of(authority.leaf(hosts[0].replace("*", "x")).chain_pem + authority.certificate_pem)[1:]:
        found = certificate.extensions.get_extension_for_class(x509.NameConstraints)
        permitted = [*map(x509.DNSName, names), *(x509.IPAddress(ip_network(each)) for each in networks)]
        assert (found.critical, found.value) == (True, x509.NameConstraints(permitted, None))


def test_every_host_is_no_constraint() -> None:
    """And that is said, for whoever has to warn."""
    assert not can_be_constrained(["*", "api.test"])
    authority = CertificateAuthority(["*", "api.test"])
    for certificate in chain_of(authority.leaf("other.test").chain_pem):
        with pytest.raises(x509.ExtensionNotFound):
            extension(certificate, x509.NameConstraints)


def test_too_many_hosts_are_no_constraint() -> None:
    """The names of all are in every handshake, and clients take so much there and not more."""
    few, many = ([f"h{number}.a.test" for number in range(count)] for count in (900, 2000))
    assert can_be_constrained(few)
    assert not can_be_constrained(many)
    assert extension(chain_of(CertificateAuthority(few).certificate_pem)[0], x509.NameConstraints)
    authority = CertificateAuthority(many)
    with pytest.raises(x509.ExtensionNotFound):
        extension(chain_of(authority.certificate_pem)[0], x509.NameConstraints)
    with pytest.raises(ValueError, match=r"not for other\.test"):
        authority.leaf("other.test")


@pytest.mark.parametrize("host", ["api.test", "x.y.wide.test", "203.0.113.7", "2001:db8::7", "under_score.api.test"])
def test_a_leaf_names_its_host(host: str) -> None:
    """As a name or as an address, and as nothing else; a name in the subject as well, for people."""
    (leaf, *_) = chain_of(CertificateAuthority(HOSTS).leaf(host).chain_pem)
    is_address = host in HOSTS[2:]
    expected = x509.IPAddress(ip_address(host)) if is_address else x509.DNSName(host)
    assert list(extension(leaf, x509.SubjectAlternativeName)) == [expected]
    common_names = [each.value for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    assert common_names == ([] if is_address else [host])


def test_the_longest_name_has_a_leaf() -> None:
    """Of 253 characters, where a subject has room for 64."""
    assert len(LONGEST_NAME) == 253
    (leaf, *_) = chain_of(CertificateAuthority([LONGEST_NAME]).leaf(LONGEST_NAME).chain_pem)
    assert list(extension(leaf, x509.SubjectAlternativeName)) == [x509.DNSName(LONGEST_NAME)]
    assert not leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)


@pytest.mark.parametrize("host", ["other.test", "test", "xapi.test", "xwide.test", "203.0.113.70", "2001:db8::8"])
def test_no_leaf_for_other_hosts(host: str) -> None:
    """Nobody would believe it, so whoever asks has made a mistake."""
    with pytest.raises(ValueError, match="authority is not for"):
        CertificateAuthority(HOSTS).leaf(host)


# --- for how long


def test_a_leaf_does_not_outlive_its_authority() -> None:
    """It begins a little earlier than now, since clocks differ, and ends after a day or with the authority."""
    clock = Clock()
    authority = CertificateAuthority(["api.test"], 2 * DAY, now=clock)
    assert authority.expires == NOW + 2 * DAY
    for after, ends in ((timedelta(), DAY), (DAY, 2 * DAY), (1.5 * DAY, 2 * DAY)):
        clock.now = NOW + after
        made = authority.leaf("api.test")
        leaf, signing = chain_of(made.chain_pem)
        assert leaf.not_valid_before_utc == clock.now - timedelta(hours=1)
        assert (leaf.not_valid_after_utc, made.expires) == (NOW + ends, NOW + ends)
        assert signing.not_valid_after_utc == NOW + 2 * DAY


def test_an_expired_authority_says_so() -> None:
    """Instead of signing what no client would take."""
    clock = Clock()
    authority = CertificateAuthority(["api.test"], now=clock)
    clock.now = NOW + DAY
    with pytest.raises(ClientProtocolError, match=r"expired at 2026-03-02 12:00 UTC: start a new session$"):
        authority.leaf("api.test")


@pytest.mark.parametrize("valid_for", [SHORTEST - timedelta(seconds=1), LONGEST + timedelta(seconds=1)])
def test_how_long_has_bounds(valid_for: timedelta) -> None:
    """An hour to a year."""
    with pytest.raises(ValueError, match="1 hour to 365 days"):
        CertificateAuthority(["api.test"], valid_for)
    CertificateAuthority(["api.test"], SHORTEST)
    CertificateAuthority(["api.test"], LONGEST)


# --- an operator's authority above it

Key = Any


@cache
def new_key(kind: str) -> Key:
    made: dict[str, Callable[[], Key]] = {
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "small RSA": lambda: rsa.generate_private_key(65537, 1024),
        "Ed448": ed448.Ed448PrivateKey.generate,
        "other": lambda: ec.generate_private_key(ec.SECP256R1()),
    }
    return made[kind]()


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(
    name: str,
    key: Key,
    issuer: tuple[str, Key] | None = None,
    *,
    ca: bool | None = True,
    path_length: int | None = None,
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + 400 * DAY,
    usage: bool | None = None,
    key_id: bool = True,
) -> x509.Certificate:
    issuer_name, issuer_key = issuer or (name, key)
    builder = x509.CertificateBuilder(named(issuer_name), named(name), key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(begins).not_valid_after(ends)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    if key_id:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if usage is not None:
        builder = builder.add_extension(
            x509.KeyUsage(not usage, False, False, False, False, usage, usage, False, False), critical=True
        )
    edwards = isinstance(issuer_key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(issuer_key, None if edwards else hashes.SHA256())


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def key_pem(key: Key, encryption: Any = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def at_now() -> datetime:
    return NOW


def parent(kind: str = "P-256", **more: Any) -> Parent:
    key = new_key(kind)
    return parse_parent(pem(certificate("operator", key, **more)), key_pem(key), at_now)


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA", "Ed25519"])
@pytest.mark.parametrize("more", [{}, {"path_length": 1}, {"usage": True}, {"key_id": False}], ids=str)
def test_an_operators_authority_signs_ours(kind: str, more: dict[str, Any]) -> None:
    """What is trusted is the operator's, and what is sent ends below it."""
    above = parent(kind, **more)
    authority = CertificateAuthority(HOSTS, parent=above, now=at_now)
    assert authority.certificate_pem == pem(*above.certificates)
    leaf, signing = chain_of(authority.leaf("api.test").chain_pem)
    leaf.verify_directly_issued_by(signing)
    signing.verify_directly_issued_by(above.certificates[0])
    assert extension(signing, x509.NameConstraints)
    assert extension(signing, x509.BasicConstraints).path_length == 0


def test_the_parents_key_is_not_kept() -> None:
    """Nor is that of a root of our own: each has signed what it was for."""
    above = parent("Ed25519")
    authority = CertificateAuthority(HOSTS, parent=above, now=at_now)
    key = above.key
    del above
    new_key.cache_clear()
    reachable = [authority]
    seen: set[int] = set()
    while reachable:
        each = reachable.pop()
        if id(each) not in seen and not isinstance(each, type) and not callable(each):
            seen.add(id(each))
            reachable += gc.get_referents(each)
            assert each is not key
    kept = [each for each in vars(CertificateAuthority(HOSTS)).values() if isinstance(each, ec.EllipticCurvePrivateKey)]
    assert len(kept) == 2  # the authority's, and that of the leaves


def test_what_is_above_an_intermediate_is_sent_and_trusted() -> None:
    """The operator's file may go on to the root; without it, the intermediate itself is trusted."""
    root_key, key = new_key("RSA"), new_key("P-256")
    root = certificate("root", root_key)
    middle = certificate("middle", key, ("root", root_key), ends=NOW + timedelta(hours=3))
    whole = CertificateAuthority(HOSTS, parent=parse_parent(pem(middle, root), key_pem(key), at_now), now=at_now)
    assert whole.certificate_pem == pem(root)
    leaf, signing, *above = chain_of(whole.leaf("api.test").chain_pem)
    assert above == [middle]
    alone = CertificateAuthority(HOSTS, parent=parse_parent(pem(middle), key_pem(key), at_now), now=at_now)
    assert alone.certificate_pem == pem(middle)
    assert chain_of(alone.leaf("api.test").chain_pem)[2:] == [middle]
    # Nobody outlives who is above.
    assert whole.expires == signing.not_valid_after_utc == leaf.not_valid_after_utc == NOW + timedelta(hours=3)


def bad_parents() -> dict[str, tuple[Callable[[], tuple[bytes, bytes]], str]]:
    def made(kind: str = "P-256", **more: Any) -> Callable[[], tuple[bytes, bytes]]:
        return lambda: (pem(certificate("operator", new_key(kind), **more)), key_pem(new_key(kind)))

    def strangers() -> tuple[bytes, bytes]:
        first, second = certificate("one", new_key("P-256")), certificate("two", new_key("other"))
        return pem(first, second), key_pem(new_key("P-256"))

    def others_key() -> tuple[bytes, bytes]:
        return pem(certificate("operator", new_key("P-256"))), key_pem(new_key("other"))

    def encrypted() -> tuple[bytes, bytes]:
        key = new_key("P-256")
        return pem(certificate("operator", key)), key_pem(key, BestAvailableEncryption(b"secret"))

    return {
        "no authority": (made(ca=False), "not an authority's (CA:TRUE is missing)"),
        "says nothing": (made(ca=None), "not an authority's (CA:TRUE is missing)"),
        "no room below": (made(path_length=0), "its path length is 0"),
        "other usage": (made(usage=False), "not for signing certificates (key usage)"),
        "too early": (made(begins=NOW + DAY), "not valid before 2026-03-02 12:00 UTC"),
        "too late": (made(ends=NOW), "has expired: 2026-03-01 12:00 UTC"),
        "small key": (made("small RSA"), "has 1024 bits"),
        "odd key": (made("Ed448"), "of a kind that TLS clients do not take"),
        "no chain": (strangers, "no chain: each has to be signed by the next"),
        "another's key": (others_key, "not that of its (first) certificate"),
        "encrypted": (encrypted, "its key is encrypted"),
        "no key": (lambda: (made()()[0], b"x"), "no private key in PEM"),
        "no certificate": (lambda: (b"# nothing\n", made()()[1]), "no certificate in PEM"),
        "nonsense": (
            lambda: (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", made()()[1]),
            "its certificate cannot be read",
        ),
    }


@pytest.mark.parametrize("case", bad_parents())
def test_who_cannot_be_above(case: str) -> None:
    """Each mistake is told as what it is, in one line, and without the key."""
    make, problem = bad_parents()[case]
    certificates_pem, secret_pem = make()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_parent(certificates_pem, secret_pem, at_now)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "PRIVATE" not in str(caught.value)


def test_keys_are_not_shown() -> None:
    """By whoever prints what holds them."""
    above = parent()
    leaf = CertificateAuthority(HOSTS, parent=above, now=at_now).leaf("api.test")
    assert "PRIVATE" not in repr(leaf)
    assert "key=" not in repr(above)


# --- who believes it


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    """A server that shakes hands, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                connection.settimeout(PATIENCE_S)
                try:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        secured.recv(1)
                except OSError:
                    pass
                finally:
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def output(*command: str) -> str:
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=2 * PATIENCE_S)
    return done.stdout + done.stderr


def ask_python(host: str, port: int, trusted: Path) -> str:
    context = ssl.create_default_context(cafile=str(trusted))
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return "believed"
    except ssl.SSLCertVerificationError as error:
        return error.verify_message


def ask_openssl(host: str, port: int, trusted: Path) -> str:
    verified = ["-verify_ip", host] if host[-1].isdigit() else ["-verify_hostname", host]
    told = output(
        *(require("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(trusted), *verified),
        "-verify_return_error",
    )
    return "believed" if "Verification: OK" in told else told


def ask_curl(host: str, port: int, trusted: Path) -> str:
    authority = f"[{host}]" if ":" in host else host
    told = output(
        *(require("curl"), "-sS", "--max-time", str(PATIENCE_S), "--cacert", str(trusted)),
        *("--connect-to", f"::127.0.0.1:{port}", f"https://{authority}/"),
    )
    return told if "certificate" in told else "believed"  # the server has nothing to say


_JAVA = """
import java.io.*; import java.net.*; import java.security.*; import java.security.cert.CertificateFactory;
import javax.net.ssl.*;
public class Believes {
    public static void main(String[] given) throws Exception {
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null);
        trusted.setCertificateEntry("root",
            CertificateFactory.getInstance("X.509").generateCertificate(new FileInputStream(given[0])));
        TrustManagerFactory managers = TrustManagerFactory.getInstance("PKIX");
        managers.init(trusted);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        for (int at = 1; at < given.length; at += 2) {
            int port = Integer.parseInt(given[at + 1]);
            SSLSocket socket = (SSLSocket) context.getSocketFactory()
                .createSocket(new Socket("127.0.0.1", port), given[at], port, true);
            SSLParameters parameters = socket.getSSLParameters();
            parameters.setEndpointIdentificationAlgorithm("HTTPS");
            socket.setSSLParameters(parameters);
            try { socket.startHandshake(); System.out.println("believed"); }
            catch (SSLException error) { System.out.println(error.getMessage()); }
        }
    }
}
"""

_GO = """
package main
import ("crypto/tls"; "crypto/x509"; "fmt"; "os")
func main() {
	trusted := x509.NewCertPool()
	pem, _ := os.ReadFile(os.Args[1])
	trusted.AppendCertsFromPEM(pem)
	for at := 2; at < len(os.Args); at += 2 {
		connection, err := tls.Dial("tcp", "127.0.0.1:"+os.Args[at+1],
			&tls.Config{RootCAs: trusted, ServerName: os.Args[at]})
		if err != nil { fmt.Println(err); continue }
		connection.Close()
		fmt.Println("believed")
	}
}
"""


Ran = subprocess.CompletedProcess[str]


def run_java(trusted: Path, asked: list[str], tmp_path: Path) -> Ran:
    (tmp_path / "Believes.java").write_text(_JAVA)
    java = [require("java"), str(tmp_path / "Believes.java"), str(trusted), *asked]
    return subprocess.run(java, capture_output=True, text=True, check=False, timeout=patient(300))


def run_go(trusted: Path, asked: list[str], tmp_path: Path) -> Ran:
    source = tmp_path / "believes.go"
    source.write_text(_GO)
    made = {"HOME": str(tmp_path), "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off", "PATH": os.environ["PATH"]}
    go = [require("go"), "run", str(source), str(trusted), *asked]
    return subprocess.run(go, capture_output=True, text=True, check=False, timeout=patient(300), env=made)


KINDS = {
    "names": (["api.test", "*.wide.test", LONGEST_NAME], ["api.test", "x.y.wide.test", LONGEST_NAME]),
    "addresses": (["203.0.113.7", "2001:db8::7"], ["203.0.113.7", "2001:db8::7"]),
    "both": (["api.test", "203.0.113.7"], ["api.test", "203.0.113.7"]),
    "all": (["*"], ["other.test", "203.0.113.8"]),
}
FOREIGN = ["other.test", "xapi.test", "203.0.113.8", "2001:db8::8"]


def stolen(hosts: list[str]) -> CertificateAuthority:
    """An authority whose key is in the hands of somebody who signs what he likes."""
    authority = CertificateAuthority(hosts)
    authority._any = True
    return authority


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ask", [ask_python, ask_openssl, ask_curl], ids=["python", "openssl", "curl"])
def test_clients_believe_it_for_its_hosts_alone(
    ask: Callable[[str, int, Path], str], kind: str, tmp_path: Path
) -> None:
    """What a stolen key signs for another host is refused by OpenSSL and by curl, and what we sign is not."""
    hosts, own = KINDS[kind]
    authority = stolen(hosts)
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate_pem)
    contexts = ServerContexts(authority)
    for host in own:
        with serving(contexts.context_for(host)) as port:
            assert ask(host, port, trusted) == "believed"
    for host in () if kind == "all" else FOREIGN:
        with serving(contexts.context_for(host)) as port:
            assert "permitted subtree violation" in ask(host, port, trusted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [run_java, run_go], ids=["java", "go"])
def test_strict_clients_agree(run: Callable[[Path, list[str], Path], Ran], kind: str, tmp_path: Path) -> None:
    """Java and Go, each with a path validation of its own; Java's does not look at what it trusts, only below it."""
    hosts, own = KINDS[kind]
    authority = stolen(hosts)
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate_pem)
    contexts = ServerContexts(authority)
    foreign = [] if kind == "all" else FOREIGN
    servers = [serving(contexts.context_for(host)) for host in (*own, *foreign)]
    ports = [each.__enter__() for each in servers]
    asked = [text for host, port in zip((*own, *foreign), ports, strict=True) for text in (host, str(port))]
    try:
        ran = run(trusted, asked, tmp_path)
    finally:
        for each in servers:
            each.__exit__(None, None, None)
    said = ran.stdout.splitlines()
    assert said[: len(own)] == ["believed"] * len(own), ran
    assert len(said) == len(own) + len(foreign), ran
    assert "believed" not in said[len(own) :]


def test_a_parent_is_believed(tmp_path: Path) -> None:
    """With no more than the operator's certificate, by a client that wants every link."""
    key = ec.generate_private_key(ec.SECP256R1())
    begins, ends = datetime.now(UTC) - DAY, datetime.now(UTC) + DAY
    root = certificate("operator", key, begins=begins, ends=ends, usage=True)
    authority = CertificateAuthority(HOSTS, parent=parse_parent(pem(root), key_pem(key)))
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate_pem)
    with serving(ServerContexts(authority).context_for("api.test")) as port:
        assert ask_openssl("api.test", port, trusted) == "believed"
        assert ask_curl("api.test", port, trusted) == "believed"


def test_serving_ends() -> None:
    """The server of these tests is gone when its block ends, or they would hang instead of failing."""
    with serving(ServerContexts(CertificateAuthority(["api.test"])).context_for("api.test")) as port:
        pass
    with closing(socket.socket()) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(("127.0.0.1", port))
