"""Test hosts for the demo: a network namespace with real servers on documentation addresses (RFC 5737, RFC 3849)."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
import ssl
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pyroute2 import IPRoute

from nono_ebpf.kernel import libc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MACHINE_V4, MACHINE_V6 = "203.0.113.1", "2001:db8::1"
SHARED = ("203.0.113.10", "2001:db8::10")  # api and other live on one address
ELSEWHERE = "203.0.113.11"
HOSTS = {"api.demo.test": SHARED, "other.demo.test": SHARED, "mail.demo.test": SHARED[:1]}
_BANNER = b"220 mail.demo.test ready\r\n"


def build(directory: Path) -> int:
    """Make this process the machine of the demo: its own namespaces, joined to the world's. Returns the world's pid.

    Writes ca.pem to `directory`. The world dies with this process.
    """
    libc.unshare(libc.CLONE_NEWNET | libc.CLONE_NEWNS)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    certificates = _Certificates(directory)
    separated, unplugged = os.pipe(), os.pipe()
    world = os.fork()
    if world == 0:
        _live(certificates, separated[1], unplugged[0])
    os.read(separated[0], 1)
    _plug(world)
    os.write(unplugged[1], b"x")
    os.read(separated[0], 1)
    return world


def _plug(world: int) -> None:
    with IPRoute() as route:
        route.link("add", ifname="demo0", kind="veth", peer={"ifname": "demo1", "net_ns_pid": world})
        for name, v4, v6 in (("lo", None, None), ("demo0", MACHINE_V4, MACHINE_V6)):
            _bring_up(route, name, [v4] if v4 else [], [v6] if v6 else [])


def _bring_up(route: IPRoute, name: str, v4: list[str], v6: list[str]) -> None:
    index = route.link_lookup(ifname=name)[0]
    for address in v4:
        route.addr("add", index=index, address=address, prefixlen=24)
    for address in v6:
        # No duplicate address detection: the address is usable at once.
        route.addr("add", index=index, address=address, prefixlen=64, flags=0x02)
    route.link("set", index=index, state="up")


def _live(certificates: _Certificates, separated: int, plugged: int) -> None:
    """The world's whole life."""
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.unshare(libc.CLONE_NEWNET)
        os.write(separated, b"x")
        os.read(plugged, 1)
        with IPRoute() as route:
            _bring_up(route, "demo1", [SHARED[0], ELSEWHERE], [SHARED[1]])
        asyncio.run(_serve(certificates, lambda: os.write(separated, b"x")))
    finally:
        os._exit(0)


async def _serve(certificates: _Certificates, ready: Callable[[], object]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.chain)
    for address in (*SHARED, ELSEWHERE):
        await asyncio.start_server(_http, address, 443, ssl=context)
        await asyncio.start_server(_http, address, 80)
    await asyncio.start_server(_speak_first, SHARED[0], 25)
    ready()
    await asyncio.Event().wait()


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    host = next((line[5:].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"host:")), b"?")
    body = b"hello from " + host + b"\n"
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    writer.close()


async def _speak_first(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_BANNER)
    await writer.drain()
    writer.close()


class _Certificates:
    """A CA in `directory`/ca.pem and one server certificate of it for every host, valid for a day."""

    def __init__(self, directory: Path) -> None:
        self.ca, self.chain = directory / "ca.pem", directory / "server.pem"
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = _name("nono-ebpf demo CA")
        ca = _builder(issuer, issuer, ca_key.public_key())
        ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.ca.write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        names = [x509.DNSName(host) for host in HOSTS]
        leaf = _builder(_name("demo.test"), issuer, key.public_key()).add_extension(
            x509.SubjectAlternativeName([*names, x509.IPAddress(ip_address(ELSEWHERE))]), critical=False
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.chain.write_bytes(private + leaf.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
    )
