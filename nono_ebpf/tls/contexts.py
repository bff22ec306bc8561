"""How TLS is spoken: to upstreams, which are always verified, and to clients, as a host that they ask for.

Knows OpenSSL's contexts, by Python's ssl. Must not know connections.

Certificates of the system are read from files while that is possible: all contexts for upstreams are made before the
process is confined. Those for clients are made later, as hosts are asked for; ssl takes keys from files only, so they
pass through memory that has a path.
"""

from __future__ import annotations

import os
import re
import ssl
from collections import OrderedDict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nono_ebpf.tls.authority import CertificateAuthority, Leaf

_PROTOCOLS: Final = ("http/1.1",)
# openssl-verification-options(1): codes of a chain that ends with nobody we trust.
_VERSION_OF_ALERT: Final = re.compile("^(?:ssl|tls)v[0-9]+ (?=alert)")  # of OpenSSL's naming, not of the connection
_ISSUER_UNKNOWN: Final = frozenset((2, 18, 19, 20, 21))
# Ours. A context takes 22 KiB, and a new one 0.7 ms.
_MAX_CONTEXTS: Final = 512
# OpenSSL keeps the sessions of clients of TLS 1.2 that take no tickets, 20480 for each context if it is let.
_MAX_SESSIONS: Final = 128
_RENEWED_BEFORE: Final = timedelta(hours=1)


def context_for(ca: bytes | None) -> ssl.SSLContext:
    """How to verify an upstream: the system's roots, and those in `ca` (PEM). TLS 1.2 at least.

    To be called while files can still be read: nothing is looked for later. Raises ValueError: `ca` has no certificate.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python's default makes no difference between a FIN and a close_notify.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    # It would have to write when only reading is due, and nobody needs it (RFC 9325 §3.5).
    context.options |= ssl.OP_NO_RENEGOTIATION
    if not context.cert_store_stats()["x509_ca"]:
        _load_hashed(context)
    if ca is not None:
        _trust(context, ca)
    # The codec of host names is loaded by the first one.
    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    return context


def _load_hashed(context: ssl.SSLContext) -> None:
    """Load what OpenSSL would otherwise look for, by the hash of a name, when it meets a certificate."""
    directory = ssl.get_default_verify_paths().capath
    for certificate in Path(directory).glob("????????.[0-9]") if directory else ():
        with suppress(OSError):  # ssl.SSLError is one; OpenSSL goes on, too
            context.load_verify_locations(cafile=certificate)


def _trust(context: ssl.SSLContext, ca: bytes) -> None:
    try:
        # Bundles have comments, and those have any characters.
        context.load_verify_locations(cadata=ca.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"no certificates in PEM: {why(error)}") from error


def why(error: Exception) -> str:
    """What OpenSSL says, in words, and what would help."""
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "; --upstream-ca names a private CA" if error.verify_code in _ISSUER_UNKNOWN else ""
        return error.verify_message.removesuffix(".") + hint
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    if reason == "WRONG_VERSION_NUMBER":
        return "what it answers is not TLS"
    if reason is not None and reason.endswith("ALERT_CERTIFICATE_REQUIRED"):
        return "it wants a client certificate, which only a service can have (tls_client_cert, tls_client_key)"
    return _VERSION_OF_ALERT.sub("", (reason or str(error)).lower().replace("_", " "))


class MemoryFile:
    """Memory with a path, for interfaces that take nothing else. To be made before system calls are taken away.

    It is used again for everything: making another one takes a call that a confined process has not got.
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("nono-ebpf", os.MFD_CLOEXEC)
        self._size = 0

    def close(self) -> None:
        """No path after this."""
        os.close(self._fd)

    @contextmanager
    def holding(self, data: bytes) -> Iterator[str]:
        """The path at which `data` can be read, behind it perhaps empty lines; wiped in the end."""
        self._size = max(self._size, len(data))
        self._write(data.ljust(self._size, b"\n"))
        try:
            yield f"/proc/self/fd/{self._fd}"
        finally:
            self._write(b"\n" * self._size)

    def _write(self, data: bytes) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]


@dataclass(frozen=True, slots=True)
class ServiceTls:
    """What one service's TLS needs besides the system's roots, all in PEM: roots of its own, a certificate of ours."""

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


class UpstreamContexts:
    """How to verify the origin servers of requests that are sent on; by service, whose context may have more.

    To be made while files can still be read, and not as root: OpenSSL reads what the operator wrote.

    Raises ValueError, a clause for a person that begins with the service's name: there is something else in the PEM.
    """

    def __init__(self, upstream_ca: bytes | None = None, services: Mapping[str, ServiceTls] | None = None) -> None:
        self._upstream_ca = upstream_ca
        self._default = self._make(ServiceTls())
        self._by_service: dict[str, ssl.SSLContext] = {}
        made: dict[ServiceTls, ssl.SSLContext] = {ServiceTls(): self._default}
        for name, wanted in (services or {}).items():
            try:
                made[wanted] = made.get(wanted) or self._make(wanted)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            self._by_service[name] = made[wanted]

    def __call__(self, service: str | None) -> ssl.SSLContext:
        """That of the service, or of hosts that are nobody's."""
        return self._by_service.get(service or "", self._default)

    def _make(self, wanted: ServiceTls) -> ssl.SSLContext:
        context = context_for(self._upstream_ca)
        context.set_alpn_protocols(list(_PROTOCOLS))
        if wanted.ca is not None:
            _trust(context, wanted.ca)
        if wanted.certificate is not None:
            _identify(context, wanted.certificate, wanted.key or b"")
        return context


def _identify(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    memory = MemoryFile()
    try:
        with memory.holding(key + b"\n" + certificate) as path:
            context.load_cert_chain(path, password=_no_passphrase)
    except ssl.SSLError as error:
        raise ValueError(f"the client certificate and its key cannot be used: {why(error)}") from error
    finally:
        memory.close()


def _no_passphrase() -> str:
    raise ValueError("the client certificate's key is encrypted: nobody could be asked for the passphrase")


@dataclass(frozen=True, slots=True)
class _Shown:
    """A context, and until when its certificate is shown."""

    context: ssl.SSLContext
    until: datetime


class ServerContexts:
    """How clients are spoken to in the name of a host. The last few hundred hosts are kept.

    To be made before system calls are taken away.
    """

    def __init__(
        self,
        authority: CertificateAuthority,
        capacity: int = _MAX_CONTEXTS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._authority, self._capacity, self._now = authority, capacity, now
        self._memory = MemoryFile()
        self._made: OrderedDict[str, _Shown] = OrderedDict()

    def context_for(self, host: str) -> ssl.SSLContext:
        """That for the canonical `host`.

        Raises:
            ClientProtocolError: the authority has expired. ValueError: it is for other hosts.
        """
        shown = self._made.get(host)
        if shown is None or not self._is_good(shown):
            self._made.pop(host, None)
            leaf = self._authority.leaf(host)
            shown = self._made[host] = _Shown(self._make(leaf), self._until(leaf))
            while len(self._made) > self._capacity:
                self._made.popitem(last=False)
        self._made.move_to_end(host)
        return shown.context

    def _is_good(self, shown: _Shown) -> bool:
        if shown.context.session_stats()["number"] > _MAX_SESSIONS:
            return False
        return self._now() < shown.until

    def _until(self, leaf: Leaf) -> datetime:
        if leaf.expires == self._authority.expires:
            return leaf.expires  # no other would last longer
        return leaf.expires - min(_RENEWED_BEFORE, (leaf.expires - self._now()) / 4)

    def _make(self, leaf: Leaf) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(list(_PROTOCOLS))
        with self._memory.holding(leaf.key_pem + leaf.chain_pem) as path:
            context.load_cert_chain(path)
        return context
