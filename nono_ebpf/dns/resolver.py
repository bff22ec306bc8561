"""What a name means to this host: pinned addresses, localhost, /etc/hosts, then its nameservers.

Knows dnspython, resolv.conf(5) and this host's own addresses. Must not know policy: it is asked only for
names that the policy has already let through, and its answers are judged by whoever asked.
Search lists are never applied: every name is absolute.

The process that runs this has usually given up the right to read its own installation, so nothing may be
imported after `preload()`.
"""

from __future__ import annotations

import asyncio
import encodings.idna
import encodings.punycode
import io
import ipaddress
import socket
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.resolver

from nono_ebpf.authority import canonical_host, host_address
from nono_ebpf.dns.hosts import Reread, parse_hosts
from nono_ebpf.dns.limits import Limits
from nono_ebpf.errors import UpstreamError
from nono_ebpf.model import IPAddress, ResolvedAddress
from nono_ebpf.policy.address import embedded_ipv4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nono_ebpf.model import Endpoint

# RFC 6761 §6.3: the addresses of the name itself, whatever the interface carries.
_LOCALHOST: tuple[IPAddress, ...] = (ipaddress.IPv6Address("::1"), ipaddress.IPv4Address("127.0.0.1"))
_BOTH = (dns.rdatatype.AAAA, dns.rdatatype.A)
_VERSION_OF = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}
# Class E (RFC 1112 §4): nobody's address, so only a host that may bind foreign addresses can bind it.
_NOBODY_V4 = ipaddress.IPv4Address("240.0.0.1")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the host's resolution says about one name and type.

    `rcode` is NOERROR or NXDOMAIN; NOERROR without addresses is NODATA (RFC 2308 §2.2).
    `cnames` are the targets of the alias chain, in order, as absolute names without the last dot.
    """

    rcode: dns.rcode.Rcode
    addresses: tuple[ResolvedAddress, ...] = ()
    ttl_s: int = 0
    cnames: tuple[str, ...] = ()


def preload() -> None:
    """Import everything that a lookup or a DNS message could need later.

    dnspython imports record types on first sight, codecs and its asyncio backend on first use.
    """
    dns.rdata.load_all_types(disable_dynamic_load=True)  # type: ignore[no-untyped-call]  # unannotated there
    dns.asyncbackend.set_default_backend("asyncio")
    # Unicode tables load with the first name that needs them, codecs with their first lookup.
    canonical_host("b\u00fccher.example")
    for codec in (encodings.idna, encodings.punycode):
        codec.getregentry()
    "a.b".encode("idna")


class HostResolver:
    """Resolves as this host does. Belongs to one event loop; `aclose()` ends what is still under way.

    `pinned`: canonical names whose addresses the operator wrote; nothing else is asked for them.
    `nameservers` replaces those of `resolv_conf`, and `clock` (seconds) the monotonic clock, for tests.
    """

    def __init__(
        self,
        pinned: Mapping[str, tuple[IPAddress, ...]] | None = None,
        *,
        hosts: Path = Path("/etc/hosts"),
        resolv_conf: Path = Path("/etc/resolv.conf"),
        nameservers: Sequence[Endpoint] | None = None,
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
    ) -> None:
        self._pinned = dict(pinned or {})
        self._hosts = Reread(hosts, parse_hosts)
        self._stub = Reread(resolv_conf, lambda text: _stub(text, nameservers))
        self._limits = limits or Limits()
        self._cache = _Cache(clock, self._limits.cached_answers)
        self._under_way: dict[tuple[str, dns.rdatatype.RdataType], asyncio.Task[Answer | UpstreamError]] = {}

    async def lookup(self, host: str) -> tuple[ResolvedAddress, ...]:
        """Every address of the canonical `host`, IPv6 first; () when it has none.

        One family may fail as long as the other gives addresses.
        Raises UpstreamError: no such name, or no usable answer.
        """
        if (local := self._local(host)) is not None:
            return tuple(sorted(dict.fromkeys(local), key=lambda each: each.address.version, reverse=True))
        cached = [answer for each in _BOTH if (answer := self._cache.get((host, each))) is not None]
        if len(cached) == len(_BOTH):
            return _combined(host, cached)
        return _combined(
            host, await asyncio.gather(*(self.resolve(host, each) for each in _BOTH), return_exceptions=True)
        )

    async def resolve(self, host: str, rdtype: dns.rdatatype.RdataType) -> Answer:
        """The answer for the canonical `host` and A or AAAA. Raises UpstreamError when there is none."""
        if (local := self._local(host)) is not None:
            return _of_family(local, _VERSION_OF[rdtype], self._limits.local_ttl_s)
        if (cached := self._cache.get((host, rdtype))) is not None:
            return cached
        # Shielded: the task belongs to everyone who waits for it, and the first to come may go first.
        answer = await asyncio.shield(self._shared(host, rdtype))
        if isinstance(answer, UpstreamError):
            raise UpstreamError(answer.phase, answer.target, answer.problem)
        return answer

    def search_list(self) -> tuple[str, ...]:
        """The domains that this host's clients append to names; () when there are none to be read."""
        try:
            stub = self._stub.get()
        except (OSError, ValueError, dns.exception.DNSException):
            return ()
        return tuple(_text(domain) for domain in stub.search if domain != dns.name.root)

    async def aclose(self) -> None:
        """End every lookup that is under way; who still waits for one is cancelled."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _local(self, host: str) -> tuple[ResolvedAddress, ...] | None:
        """What is known without asking anybody; None when a nameserver has to be asked."""
        try:
            if (literal := host_address(host)) is not None:
                return (resolved(literal, pinned=True),)
            if host in self._pinned:
                return tuple(resolved(address, pinned=True) for address in self._pinned[host])
            if is_localhost(host):
                return tuple(resolved(address) for address in _LOCALHOST)
            listed = self._listed(host)
            return None if listed is None else tuple(map(resolved, listed))
        except OSError as error:  # no descriptor is left for the question whether an address is this host's own
            raise UpstreamError("resolve", host, error.strerror or type(error).__name__) from error

    def _listed(self, host: str) -> tuple[IPAddress, ...] | None:
        try:
            return self._hosts.get().get(host)
        except OSError as error:
            raise UpstreamError("resolve", host, f"cannot read the hosts file: {error.strerror}") from error

    def _shared(self, host: str, rdtype: dns.rdatatype.RdataType) -> asyncio.Task[Answer | UpstreamError]:
        key = host, rdtype
        if (task := self._under_way.get(key)) is None:
            if len(self._under_way) >= self._limits.outstanding_lookups:
                raise UpstreamError("resolve", host, "too many lookups are under way")
            task = self._under_way[key] = asyncio.create_task(self._ask(host, rdtype))
            task.add_done_callback(lambda _: self._under_way.pop(key))
        return task

    async def _ask(self, host: str, rdtype: dns.rdatatype.RdataType) -> Answer | UpstreamError:
        """Ask the nameservers. An error is returned, since nobody may be left to whom it could be raised."""
        try:
            found = await self._query(dns.name.from_text(host), rdtype)
        except dns.resolver.LifetimeTimeout:
            return UpstreamError("resolve", host, "no nameserver answered in time")
        except (dns.exception.DNSException, OSError, ValueError) as error:
            return UpstreamError("resolve", host, str(error) or type(error).__name__)
        answer = _bounded(found, self._limits)
        self._cache.put((host, rdtype), answer)
        return answer

    async def _query(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> Answer:
        try:
            answer = await self._stub.get().resolve(
                name, rdtype, raise_on_no_answer=False, search=False, lifetime=self._limits.lookup_s
            )
        except dns.resolver.NXDOMAIN as error:
            response = error.response(name)  # type: ignore[no-untyped-call]  # unannotated there
            return Answer(dns.rcode.NXDOMAIN, ttl_s=response.resolve_chaining().minimum_ttl)
        chain = answer.chaining_result
        return Answer(
            dns.rcode.NOERROR,
            tuple(resolved(ipaddress.ip_address(rdata.address)) for rdata in islice(answer, self._limits.addresses)),
            chain.minimum_ttl,
            tuple(_text(alias[0].target) for alias in chain.cnames),
        )


class _Cache:
    """Answers until their TTL has passed, the oldest leaving first. TTLs count down (RFC 1034 §4.3.1)."""

    def __init__(self, clock: Callable[[], float], limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._held: OrderedDict[object, tuple[float, Answer]] = OrderedDict()

    def get(self, key: object) -> Answer | None:
        until, answer = self._held.get(key, (0.0, None))
        left_s = until - self._clock()
        if answer is None or left_s <= 0:
            return None
        return replace(answer, ttl_s=int(left_s))

    def put(self, key: object, answer: Answer) -> None:
        if answer.ttl_s <= 0:
            return
        self._held[key] = (self._clock() + answer.ttl_s, answer)
        self._held.move_to_end(key)
        if len(self._held) > self._limit:
            self._held.popitem(last=False)


def is_localhost(host: str) -> bool:
    """Whether a canonical host is `localhost` or below it (RFC 6761 §6.3): never a matter for DNS."""
    return host == "localhost" or host.endswith(".localhost")


def resolved(address: IPAddress, *, pinned: bool = False) -> ResolvedAddress:
    """`address` with the facts that it is judged by; an IPv4-mapped address becomes the IPv4 one."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    real = mapped or address
    return ResolvedAddress(real, own=is_own_address(real), pinned=pinned)


def is_own_address(address: IPAddress) -> bool:
    """Whether `address` is loopback or assigned to this host. An unroutable one is not ours.

    No packet is sent: connecting a UDP socket only looks the route up. For a destination on this host the
    kernel takes the destination itself as source (RFC 6724 §5 rule 1; for IPv4 ip_route_output_key), for
    any other it cannot. IPv4 has one exception, a further address of a subnet, whose local route prefers the
    subnet's first address: binding tells those, unless this host may bind addresses it does not have
    (net.ipv4.ip_nonlocal_bind).
    """
    if address.is_loopback:
        return True
    if address.version == 6 and any(is_own_address(embedded) for embedded in embedded_ipv4(address)):
        return True
    if _source_for(address) == address:
        return True
    return address.version == 4 and _can_bind(address) and not _can_bind(_NOBODY_V4)


def _source_for(address: IPAddress) -> IPAddress | None:
    with socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            # Any port will do; 9 is discard (RFC 863).
            probe.connect((str(address), 9))
        except OSError:
            return None
        return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])


def _can_bind(address: IPAddress) -> bool:
    with socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
        return True


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _stub(text: str, nameservers: Sequence[Endpoint] | None) -> dns.asyncresolver.Resolver:
    """A stub resolver for the resolv.conf `text`. Raises DNSException or ValueError if it has no server."""
    stub = dns.asyncresolver.Resolver(configure=False)
    stub.cache = None
    try:
        stub.read_resolv_conf(io.StringIO(text))
    except dns.resolver.NoResolverConfiguration:
        if nameservers is None:
            raise
    if nameservers is not None:
        stub.nameservers = [dns.nameserver.Do53Nameserver(str(each.address), each.port) for each in nameservers]
    # DNS flag day 2020: 1232 octets cross every path unfragmented, and a longer answer comes over TCP.
    stub.use_edns(0, 0, 1232)
    return stub


def _combined(host: str, answers: Iterable[Answer | BaseException]) -> tuple[ResolvedAddress, ...]:
    addresses: list[ResolvedAddress] = []
    failures: list[BaseException] = []
    missing = False
    for answer in answers:
        if isinstance(answer, BaseException):
            failures.append(answer)
        else:
            addresses.extend(answer.addresses)
            missing = missing or answer.rcode == dns.rcode.NXDOMAIN
    # A CancelledError or a fault of ours is never outweighed by an address.
    if failures and not (addresses and all(isinstance(each, UpstreamError) for each in failures)):
        raise failures[0]
    if missing and not addresses:
        raise UpstreamError("resolve", host, "no such name")
    return tuple(dict.fromkeys(addresses))


def _of_family(addresses: Iterable[ResolvedAddress], version: int, ttl_s: int) -> Answer:
    chosen = tuple(each for each in addresses if each.address.version == version)
    return Answer(dns.rcode.NOERROR, chosen, ttl_s)


def _bounded(answer: Answer, limits: Limits) -> Answer:
    limit_s = limits.ttl_s if answer.addresses else limits.negative_ttl_s
    return replace(answer, ttl_s=min(max(answer.ttl_s, limits.least_ttl_s), limit_s))


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True)
