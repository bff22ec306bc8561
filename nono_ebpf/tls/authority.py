"""Certificates for the hosts whose TLS ends here, signed by an authority that only one sandbox trusts.

Knows X.509 (RFC 5280). Must not know sockets, files or who connects.

    root (an operator's, or made for the session) ── authority of the session ── leaf, one for each host

The authority is made in the process that uses it, and its key is never anywhere else. Name constraints (§4.2.1.10)
bound what that key is worth to a thief: clients take no certificate of it for any other host. Some clients, Java's for
one, do not look for constraints in what they trust, so there is a root above it, whose key signs once and is gone. A
constraint to a name is one to the names below it as well; X.509 has no other kind.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nono_ebpf.authority import host_address
from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.tls.constraints import can_be_constrained

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

SHORTEST: Final = timedelta(hours=1)
LONGEST: Final = timedelta(days=365)
# Ours: that much may a client's clock be behind, as in a guest that slept.
_BACKDATED: Final = timedelta(hours=1)
_LEAF_LIFE: Final = timedelta(hours=24)
_MAX_COMMON_NAME: Final = 64  # RFC 5280, appendix A: ub-common-name
_MIN_RSA_BITS: Final = 2048  # what OpenSSL and Java take without being told to
# What no server can have: RFC 6761 §6.4, RFC 919 §7, RFC 4291 §2.7.
_NOBODYS_NAME: Final = x509.DNSName("invalid")
_NOBODYS_ADDRESS: Final = (IPv4Address(0xFFFF_FFFF), IPv6Address((1 << 128) - 1))
_PRODUCT: Final = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nono-ebpf")

_Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Parent:
    """An operator's authority that may sign others: its certificate first, then those above it, if any."""

    certificates: tuple[x509.Certificate, ...]
    key: _Key = field(repr=False)


def parse_parent(certificates_pem: bytes, key_pem: bytes, now: Callable[[], datetime] = _now) -> Parent:
    """Raises ValueError, a clause for a person: these are no authority that could sign one of ours now."""
    key = _parse_key(key_pem)
    certificates = _parse_certificates(certificates_pem)
    _check_parent(certificates, key, now())
    return Parent(certificates, key)


def _parse_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ValueError("there is no certificate in PEM")
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem))
        for each in certificates:
            # Both are parsed when they are asked for.
            each.public_key(), each.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, UnsupportedAlgorithm) as error:
        raise ValueError("its certificate cannot be read: damaged, or of a kind that is not known here") from error
    return certificates


def preload() -> None:
    """Have Python load what it takes to read and to sign certificates, while its own files can be read."""
    leaf = CertificateAuthority(["localhost"]).leaf("localhost")
    x509.load_pem_x509_certificates(leaf.chain_pem)
    _parse_key(leaf.key_pem)


def _parse_key(pem: bytes) -> _Key:
    try:
        key = load_pem_private_key(pem, None)
    except TypeError as error:
        raise ValueError("its key is encrypted: nobody could be asked for the passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("its key is no private key in PEM") from error
    if not isinstance(key, _Key):
        raise ValueError("its key is of a kind that TLS clients do not take: use ECDSA, RSA or Ed25519")  # noqa: TRY004
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _MIN_RSA_BITS:
        raise ValueError(f"its RSA key has {key.key_size} bits, clients want {_MIN_RSA_BITS}")
    return key


def _check_parent(certificates: tuple[x509.Certificate, ...], key: _Key, now: datetime) -> None:
    signing, extensions = certificates[0], certificates[0].extensions
    if _public_bytes(signing.public_key()) != _public_bytes(key.public_key()):
        raise ValueError("its key is not that of its (first) certificate")
    try:
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        basic = x509.BasicConstraints(ca=False, path_length=None)
    if not basic.ca:
        raise ValueError("its certificate is not an authority's (CA:TRUE is missing)")
    if basic.path_length == 0:
        raise ValueError("it may not sign other authorities (its path length is 0), and the session's would be one")
    if (usage := _key_usage(extensions)) is not None and not usage.key_cert_sign:
        raise ValueError("its certificate is not for signing certificates (key usage)")
    if now < signing.not_valid_before_utc:
        raise ValueError(f"it is not valid before {_shown(signing.not_valid_before_utc)}")
    for each in certificates:
        if now >= each.not_valid_after_utc:
            raise ValueError(f"it has expired: {_shown(each.not_valid_after_utc)}")
    for lower, upper in pairwise(certificates):
        try:
            lower.verify_directly_issued_by(upper)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ValueError("its certificates are no chain: each has to be signed by the next") from error


def _key_usage(extensions: x509.Extensions) -> x509.KeyUsage | None:
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate for one host with what a server sends along, and the key of it, all in PEM."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    expires: datetime


class CertificateAuthority:
    """Signs for `hosts`: canonical names and addresses, `*.` and a name for all below it, `*` for every host.

    `certificate_pem` is what clients have to trust: the topmost of `parent`, or a root made for the purpose. The key of
    neither is kept. Clients believe it about no other hosts, where it `can_be_constrained` to them.

    Raises ValueError: `valid_for` is not within SHORTEST and LONGEST, or there are no hosts.
    """

    def __init__(
        self,
        hosts: Collection[str],
        valid_for: timedelta = timedelta(hours=24),
        parent: Parent | None = None,
        leaf_valid_for: timedelta = _LEAF_LIFE,
        now: Callable[[], datetime] = _now,
    ) -> None:
        if not SHORTEST <= valid_for <= LONGEST:
            raise ValueError("an authority is valid for 1 hour to 365 days")
        if not hosts:
            raise ValueError("an authority for no hosts")
        self._now, self._leaf_valid_for = now, leaf_valid_for
        self._names = frozenset(host.removeprefix("*.") for host in hosts)
        self._any = "*" in self._names
        constraints = _constraints(self._names) if can_be_constrained(hosts) else None
        if parent is None:
            parent = _make_root(constraints, now(), now() + valid_for)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _sign_authority(parent, self._key, constraints, now(), now() + valid_for)
        self.expires = self._certificate.not_valid_after_utc
        # One for all leaves: whoever reads it has read the authority's as well.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaf_key_pem = self._leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.certificate_pem = _pem(parent.certificates[-1])
        # A root that a client trusts it need not be sent (RFC 8446 §4.4.2).
        sent = [self._certificate, *(each for each in parent.certificates if each.subject != each.issuer)]
        self._intermediates_pem = b"".join(map(_pem, sent))

    def leaf(self, host: str) -> Leaf:
        """A certificate for the canonical `host`.

        Raises:
            ClientProtocolError: the authority has expired. ValueError: it is for other hosts.
        """
        if not self._covers(host):
            raise ValueError(f"the session's authority is not for {host}")
        now = self._now()
        if now >= self.expires:
            problem = f"this sandbox's certificate authority expired at {_shown(self.expires)}: start a new session"
            raise ClientProtocolError(problem, status=503)
        expires = min(now + self._leaf_valid_for, self.expires)
        return Leaf(_pem(self._sign_leaf(host, now, expires)) + self._intermediates_pem, self._leaf_key_pem, expires)

    def _covers(self, host: str) -> bool:
        if self._any or host in self._names:
            return True
        return host_address(host) is None and any(host.endswith(f".{name}") for name in self._names)

    def _sign_leaf(self, host: str, now: datetime, expires: datetime) -> x509.Certificate:
        address = host_address(host)
        general_name = x509.DNSName(host) if address is None else x509.IPAddress(address)
        subject = [_PRODUCT]
        # Clients take a common name for a host name, and then an address would break the constraints.
        if address is None and len(host) <= _MAX_COMMON_NAME:
            subject.append(x509.NameAttribute(NameOID.COMMON_NAME, host))
        public_key = self._leaf_key.public_key()
        builder = (
            x509.CertificateBuilder(self._certificate.subject, x509.Name(subject), public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(expires)
            .add_extension(x509.SubjectAlternativeName([general_name]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(_key_id(self._key), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def _make_root(constraints: x509.NameConstraints | None, now: datetime, expires: datetime) -> Parent:
    """An authority for one signature."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _new_name("root")
    builder = _authority(name, name, key, constraints, now, expires, path_length=1)
    builder = builder.add_extension(_key_id(key), critical=False)
    return Parent((builder.sign(key, hashes.SHA256()),), key)


def _sign_authority(
    parent: Parent,
    key: ec.EllipticCurvePrivateKey,
    constraints: x509.NameConstraints | None,
    now: datetime,
    expires: datetime,
) -> x509.Certificate:
    """The authority of the session; as long as nothing above it expires."""
    expires = min(expires, *(each.not_valid_after_utc for each in parent.certificates))
    issuer = parent.certificates[0]
    builder = _authority(issuer.subject, _new_name("CA"), key, constraints, now, expires, path_length=0)
    try:
        known = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        key_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)
    except x509.ExtensionNotFound:
        key_id = _key_id(parent.key)
    signed_with = None if isinstance(parent.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.add_extension(key_id, critical=False).sign(parent.key, signed_with)


def _authority(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    constraints: x509.NameConstraints | None,
    now: datetime,
    expires: datetime,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(expires)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder if constraints is None else builder.add_extension(constraints, critical=True)


def _new_name(role: str) -> x509.Name:
    """One that nothing else has: two with one name and different keys confuse whoever trusts both."""
    common_name = f"nono-ebpf session {role} {secrets.token_hex(8)}"
    return x509.Name([_PRODUCT, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _constraints(names: Collection[str]) -> x509.NameConstraints:
    """To `names` and addresses. A kind of name that no constraint is about would be permitted, so each has one.

    By what is permitted alone: of what is excluded, GnuTLS 3.7 and Java 17 make something else where kinds are mixed.
    """
    addresses = [address for name in names if (address := host_address(name))]
    hosts = [x509.DNSName(name) for name in sorted(names) if host_address(name) is None]
    networks = []
    for nobody in _NOBODYS_ADDRESS:
        same_kind = sorted((each for each in addresses if each.version == nobody.version), key=int)
        networks += [x509.IPAddress(ip_network(each)) for each in same_kind or [nobody]]
    return x509.NameConstraints([*(hosts or [_NOBODYS_NAME]), *networks], None)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id(key: _Key) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _public_bytes(key: object) -> bytes:
    # Of every kind of key that a certificate may have.
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
