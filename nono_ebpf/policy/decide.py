"""The decision: may this flow, or this request, go where it wants to go?

`decide()` is pure and the only maker of a `Permit`. Names are judged before anything is resolved, addresses
after; whoever asked resolves in between and asks again. A host whose requests are judged one by one is never
reached by a tunnel, in which they could not be. What goes through an upstream proxy is not resolved here.
Hosts arrive in the form of `nono_ebpf.authority` and are not checked again. Must not know sockets, DNS or how a
refusal is answered.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv6Address
from itertools import chain
from typing import TYPE_CHECKING

from nono_ebpf.authority import host_address, join_host_port
from nono_ebpf.model import Endpoint, Identity, ResolvedAddress
from nono_ebpf.policy.address import ALWAYS_DENIED_NAMES, always_denied, embedded_ipv4
from nono_ebpf.policy.endpoints import Path, glob_of, parse_path, permits
from nono_ebpf.policy.rules import WEB_PORTS, Policy, Rule

if TYPE_CHECKING:
    from nono_ebpf.model import IPAddress
    from nono_ebpf.policy.endpoints import Request
    from nono_ebpf.policy.services import Judgement, Service
    from nono_ebpf.policy.upstream_proxy import UpstreamProxy

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_IS_PROXY = "it is the upstream proxy itself, which could be asked for any host"
_NO_PATH = "its path is too long or has escapes that no rule can be about"
_REMEDY_MAX = 160  # characters: what is longer is cut where it is shown


@dataclass(frozen=True, slots=True)
class Ask:
    """A question. `host` is what will be reached; `also` is every other host that the same flow claims.

    `port` None: a name is about to be looked up, for whatever port. `addresses` None: not resolved yet; the same for
    those of the upstream proxy. `request` None: this is about a connection. `service`: the client named it, rather than
    the host.
    """

    host: str
    port: int | None
    identity: Identity
    also: tuple[str, ...] = ()
    addresses: tuple[ResolvedAddress, ...] | None = None
    request: Request | None = None
    proxy_addresses: tuple[ResolvedAddress, ...] | None = None
    service: str | None = None

    def answered(self, question: Resolve, addresses: tuple[ResolvedAddress, ...]) -> Ask:
        """The same, with the answer to what `decide` wanted to know."""
        if question.of_proxy:
            return replace(self, proxy_addresses=addresses)
        return replace(self, addresses=addresses)


@dataclass(frozen=True, slots=True)
class Permit:
    """The flow may go to these endpoints and nowhere else, in this order; port 0 when none was asked for.

    `via`: the endpoints are this proxy's, which is to be asked for `host` and `port`. `target`: what to send instead
    of the request's target, when that was judged; None leaves it as it is. `service`: its credential belongs into the
    request.
    """

    host: str
    port: int | None
    endpoints: tuple[Endpoint, ...]
    rule: Rule
    via: UpstreamProxy | None = None
    target: str | None = None
    service: Service | None = None


class DenialCategory(StrEnum):
    """Kinds of denial, in nono's audit vocabulary."""

    HOST_DENIED = "host_denied"
    ENDPOINT_POLICY = "endpoint_policy"
    CONNECT_BYPASSES_L7 = "connect_bypasses_l7"
    MANAGED_CREDENTIAL_UNAVAILABLE = "managed_credential_unavailable"


@dataclass(frozen=True, slots=True)
class Denial:
    """The flow may not go on. `host` is the name or address that was refused, `reason` a clause for a person.

    `rule` is the deny rule, if one decided. `remedy` is the option that would permit it; None: nothing would,
    or only the removal of a rule.
    """

    category: DenialCategory
    host: str
    port: int | None
    reason: str
    rule: Rule | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Resolve:
    """The rules allow it so far: look up every address of `host` and ask again.

    `host` may be a literal: then the question is whether the address is this machine's own. `of_proxy`: it is the
    upstream proxy's host.
    """

    host: str
    of_proxy: bool = False


def decide(policy: Policy, ask: Ask) -> Permit | Denial | Resolve:
    """Judge `ask`. Every host it names is judged before any address is."""
    rule = _judge_names(policy, ask)
    if isinstance(rule, Denial):
        return rule
    judged = _judge_request(policy, ask)
    if isinstance(judged, Denial):
        return judged
    verdict = _judge_road(policy, ask, rule)
    if isinstance(verdict, Permit) and judged is not None:
        endpoints = verdict.endpoints if judged.service is None or judged.service.tls else _one_of(verdict.endpoints)
        rule = judged.rule or rule
        return replace(verdict, rule=rule, endpoints=endpoints, target=judged.target, service=judged.service)
    return verdict


def _judge_names(policy: Policy, ask: Ask) -> Rule | Denial:
    """The rule that allows `ask.host`, when all that the flow names is allowed."""
    names = (ask.host, *ask.also)
    for name in names:
        if why := _never_reachable(name):
            return _denied(ask, name, f"it is {why}")
        if (via := policy.upstream_proxy) and (name, ask.port) == (via.host, via.port):
            return _denied(ask, name, _IS_PROXY)
    for name in names:
        if rule := _denying(policy, name, ask.port):
            return _denied_by(ask, name, rule)
    allowing = [_allowing(policy, name, ask.port) for name in names]
    for name, allowed in zip(names, allowing, strict=True):
        if allowed is None:
            return _not_allowed(policy, ask, name)
    # The first is the rule for ask.host, and none of them is None any more.
    return next(filter(None, allowing))


@dataclass(frozen=True, slots=True)
class _Judged:
    """A request that is permitted: how it is to be sent, with which credential, and by which rule with endpoints."""

    target: str
    rule: Rule | None = None
    service: Service | None = None


def _judge_request(policy: Policy, ask: Ask) -> _Judged | Denial | None:
    """What is said about the requests to the hosts of `ask`, if anything is."""
    if ask.port is None:
        return None
    judged = _judge_by_rules(policy, ask) if policy.allow.has_endpoints else None
    if isinstance(judged, Denial):
        return judged
    service = _judge_services(policy, ask) if policy.managed.rules else None
    if isinstance(service, Denial):
        return service
    if service is not None:
        return service if judged is None else replace(service, rule=judged.rule)
    if ask.request is None and policy.allow.intercepts:
        return _intercepted(policy, ask)
    return judged


def _judge_by_rules(policy: Policy, ask: Ask) -> _Judged | Denial | None:
    judged: _Judged | None = None
    path = parse_path(ask.request.target) if ask.request else None
    for name in (ask.host, *ask.also):
        spelled = [policy.allow.with_endpoints(each, ask.port or 0) for each in _spellings(name)]
        if rules := list(chain.from_iterable(spelled)):
            found = _judge_endpoints(ask, name, rules, path)
            if isinstance(found, Denial):
                return found
            judged = judged or found
    return judged


def _intercepted(policy: Policy, ask: Ask) -> Denial | None:
    """In a tunnel nothing could be looked at."""
    for name in (ask.host, *ask.also):
        for each in _spellings(name):
            if rule := policy.allow.intercepting(each, ask.port or 0):
                reason = f"every request to it is to be looked at ({rule.source}), and in a tunnel none can be"
                text = _in_context(ask, name, reason)
                return Denial(DenialCategory.CONNECT_BYPASSES_L7, name, ask.port, text, rule, None)
    return None


def _judge_endpoints(ask: Ask, name: str, rules: list[Rule], path: Path | None) -> _Judged | Denial:
    first = rules[0]
    if ask.request is None:
        reason = f"only certain requests to it are allowed ({first.source}), and in a tunnel none can be judged"
        return Denial(DenialCategory.CONNECT_BYPASSES_L7, name, ask.port, _in_context(ask, name, reason), first, None)
    if path is None:
        return Denial(DenialCategory.ENDPOINT_POLICY, name, ask.port, _NO_PATH, first, None)
    method = ask.request.method
    if permits([each for rule in rules for each in rule.endpoints], method, path.readings):
        alone = (rule for rule in rules[1:] if permits(rule.endpoints, method, path.readings))
        return _Judged(path.target, next(alone, first) if len(rules) > 1 else first)
    reason = f"no endpoint rule allows {method} {' alias '.join(path.readings)}"
    remedy = _endpoint_remedy(ask.request, _with_port(name, ask.port), path)
    return Denial(DenialCategory.ENDPOINT_POLICY, name, ask.port, _in_context(ask, name, reason), first, remedy)


def _endpoint_remedy(request: Request, authority: str, path: Path) -> str | None:
    """An option for this path alone, as a shell takes it. None where one rule would not be enough."""
    scheme, port = ("https", ":443") if request.tls else ("http", ":80")
    if (glob := _alone(path)) is None:
        return None
    return f"--allow-domain {shlex.quote(f'{scheme}://{authority.removesuffix(port)}{glob}')}"


def _alone(path: Path) -> str | None:
    glob = glob_of(path.target)
    return None if len(path.readings) > 1 or len(glob) > _REMEDY_MAX else glob


# ------------------------------------------------------------ services


def _judge_services(policy: Policy, ask: Ask) -> _Judged | Denial | None:
    """Whose credential a request needs. A tunnel to such a host is denied: nothing could be put into it."""
    by_name = {name: _managed(policy, name, ask.port) for name in (ask.host, *ask.also)}
    managed = by_name[ask.host]
    for name, services in by_name.items():
        if denial := _unusable(ask, name, [each for each in services if ask.service in {None, each.name}]):
            return denial
        if services != managed:
            reason = "it is one of two hosts that the request names, and one of them has a credential"
            return _no_service(DenialCategory.ENDPOINT_POLICY, ask, name, reason)
    if not managed or ask.request is None:
        return None
    if not policy.managed.most_specific(ask.host, ask.port or 0):
        only = managed[0]
        reason = f"it is another name of {only.host.pattern}, and the credential {only.name} is for that one alone"
        return _no_service(DenialCategory.ENDPOINT_POLICY, ask, ask.host, reason, only)
    return _choose_service(ask, ask.request, managed)


def _unusable(ask: Ask, name: str, services: list[Service]) -> Denial | None:
    """Why nothing can be sent to a host of `services` whatever it asks for; None when that depends."""
    tunnel = ask.request is None
    if missing := next((each for each in services if each.unsupported), None):
        category = DenialCategory.CONNECT_BYPASSES_L7 if tunnel else DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE
        reason = f"requests to it need the credential {missing.name}: {missing.unsupported}"
        return _no_service(category, ask, name, reason, missing)
    if tunnel and services:
        reason = f"the credential {services[0].name} is for requests to it, and in a tunnel none can be judged"
        return _no_service(DenialCategory.CONNECT_BYPASSES_L7, ask, name, reason, services[0])
    return None


def _no_service(category: DenialCategory, ask: Ask, name: str, reason: str, service: Service | None = None) -> Denial:
    return Denial(category, name, ask.port, _in_context(ask, name, reason), service.host if service else None, None)


def _choose_service(ask: Ask, request: Request, services: list[Service]) -> _Judged | Denial:
    """The one service that a request is for. One that no rule of theirs allows goes nowhere, also not without.

    Who names a service means no other, but what one of them denies stays denied.
    """
    path = parse_path(request.target)
    if path is None:
        return _not_for(ask, services[0], _NO_PATH)
    judged = [(each, each.judge(request.method, path.readings)) for each in services]
    for service, judgement in judged:
        if judgement.final and judgement.action != "allow":
            return _not_for(ask, service, _refusing(request, path, service, judgement))
    if ask.service is not None:
        judged = [each for each in judged if each[0].name == ask.service]
    allowing = [service for service, judgement in judged if judgement.action == "allow"]
    if len(allowing) > 1:
        names = " and ".join(each.name for each in allowing)
        return _not_for(ask, allowing[0], f"it is ambiguous: the credentials {names} are both for such requests")
    if not allowing:
        service, judgement = judged[0]
        glob = _alone(path)
        remedy = None if glob is None or service.endpoint_policy else f"{service.name}:{request.method}:{glob}"
        return _not_for(ask, service, _refusing(request, path, service, judgement), remedy)
    (service,) = allowing
    if request.tls != service.tls:
        return _not_for(ask, service, f"the credential {service.name} is sent over TLS only, and this is plain HTTP")
    return _Judged(path.target, service=service)


def _refusing(request: Request, path: Path, service: Service, judgement: Judgement) -> str:
    asked = f"{request.method} {' alias '.join(path.readings)}"
    if judgement.action == "approve":
        return f"{asked} needs an approval ({judgement.rule} of {service.name}), and nobody can be asked for it"
    if not judgement.final:
        return f"no endpoint rule of the service {service.name} allows {asked}"
    said = f": {judgement.reason}" if judgement.reason else ""
    return f"the endpoint policy of the service {service.name} denies {asked} ({judgement.rule}){said}"


def _not_for(ask: Ask, service: Service, reason: str, endpoint: str | None = None) -> Denial:
    remedy = None if endpoint is None else f"--allow-endpoint {shlex.quote(endpoint)}"
    return Denial(DenialCategory.ENDPOINT_POLICY, ask.host, ask.port, reason, service.host, remedy)


def _one_of(endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """The one that a service in clear is at: on the other of localhost's two anybody else may listen."""
    return tuple(sorted(endpoints, key=lambda each: each.address.version))[:1]


def _managed(policy: Policy, name: str, port: int | None) -> list[Service]:
    """The services of `name`, most specific first."""
    return [policy.services[rule.text] for rule in _managed_on(policy, name, port or 0)]


def _managed_on(policy: Policy, name: str, port: int) -> list[Rule]:
    if not policy.managed.rules:
        return []
    found = [policy.managed.most_specific(each, port) for each in _spellings(name)]
    return list(dict.fromkeys(chain.from_iterable(found)))


def _judge_road(policy: Policy, ask: Ask, rule: Rule) -> Permit | Denial | Resolve:
    """Which addresses may be dialled, now that what is named is allowed."""
    via = policy.upstream_proxy
    if via and ask.port == via.port and ask.proxy_addresses is None:
        return Resolve(via.host, of_proxy=True)
    if via is None or not via.carries(ask.host):
        addresses = ask.addresses if ask.addresses is not None else _literal(policy, ask, rule)
        if addresses is None:
            return Resolve("localhost" if _is_localhost(ask.host) else ask.host)
        return _judge_addresses(policy, ask, rule, addresses)
    if host_address(ask.host):
        addresses = ask.addresses if ask.addresses is not None else _literal(policy, ask, rule)
        if addresses is None:
            return Resolve(ask.host)
        direct = _judge_addresses(policy, ask, rule, addresses)
        if isinstance(direct, Denial):
            return direct
        rule = direct.rule
    return _through(policy, via, ask, rule)


def _through(policy: Policy, via: UpstreamProxy, ask: Ask, rule: Rule) -> Permit | Denial | Resolve:
    if ask.port is None:
        return Permit(ask.host, None, (), rule, via)
    if ask.proxy_addresses is None:
        return Resolve(via.host, of_proxy=True)
    for each in ask.proxy_addresses:
        if why := always_denied(each.address):
            return _denied(ask, ask.host, f"{each.address}, an address of the upstream proxy {via}, is {why}")
    return Permit(ask.host, ask.port, _proxy_endpoints(policy, ask), rule, via)


def _judge_addresses(policy: Policy, ask: Ask, rule: Rule, addresses: tuple[ResolvedAddress, ...]) -> Permit | Denial:
    if not addresses:
        return _denied(ask, ask.host, "it has no address")
    if any(each.own or each.address.is_loopback for each in addresses):
        rule = _with_written_port(policy, ask, rule)
    for each in addresses:
        if denial := _judge_address(policy, ask, rule, each):
            return denial
    endpoints = tuple([Endpoint(each.address, ask.port or 0) for each in addresses])
    if any(each in _proxy_endpoints(policy, ask) for each in endpoints):
        return _denied(ask, ask.host, _IS_PROXY)
    return Permit(ask.host, ask.port, endpoints, rule)


def _proxy_endpoints(policy: Policy, ask: Ask) -> tuple[Endpoint, ...]:
    via = policy.upstream_proxy
    return tuple([Endpoint(each.address, via.port) for each in ask.proxy_addresses or ()]) if via else ()


def _judge_address(policy: Policy, ask: Ask, rule: Rule, resolved: ResolvedAddress) -> Denial | None:
    address = resolved.address
    if why := always_denied(address):
        return _denied(ask, ask.host, f"its address {address} is {why}")
    if policy.deny.lists_addresses and (deny := _denying_address(policy, address, ask.port)):
        return _denied_by(ask, ask.host, deny, f"its address {address}")
    if not (resolved.own or address.is_loopback):
        return None
    if not _names_own(ask.host, resolved):
        return _denied(ask, ask.host, f"its address {address} is this machine's own, and only DNS says so")
    if not _names_own_port(rule):
        reason = f"{address} is this machine's own, and only a rule with a port allows that"
        return _denied(ask, ask.host, reason, f"--allow-domain {_with_port(ask.host, ask.port)}")
    return None


def _names_own(host: str, resolved: ResolvedAddress) -> bool:
    """Whether `host` may stand for an address of this machine: rebinding is when any name can."""
    if resolved.pinned or host_address(host) == resolved.address:
        return True
    return resolved.address.is_loopback and _is_localhost(host)


def _never_reachable(name: str) -> str | None:
    if name in ALWAYS_DENIED_NAMES:
        return "a cloud metadata service"
    literal = host_address(name)
    return always_denied(literal) if literal else None


def _spellings(name: str) -> tuple[str, ...]:
    """Every host that is the same one: what narrows for one of loopback's names narrows for all of them."""
    address = host_address(name)
    own = address.is_loopback if address else _is_localhost(name)
    return tuple(dict.fromkeys((name, *_LOOPBACK))) if own else (name,)


def _denying(policy: Policy, name: str, port: int | None) -> Rule | None:
    """The deny rule for `name`. A lookup is denied when no allowed port is left to use its answer for."""
    if port is not None:
        return next(filter(None, [policy.deny.match(each, port) for each in _spellings(name)]), None)
    if rule := next(filter(None, map(policy.deny.match_every_port, _spellings(name))), None):
        return rule
    if _open_rules(policy, name):
        return None
    if policy.allow.match(name, None) is None:
        return None
    return next(filter(None, [policy.deny.match(each, None) for each in _spellings(name)]), None)


def _denying_address(policy: Policy, address: IPAddress, port: int | None) -> Rule | None:
    spellings = (address, *embedded_ipv4(address)) if isinstance(address, IPv6Address) else (address,)
    for each in spellings:
        host = str(each)
        rule = policy.deny.match_every_port(host) if port is None else policy.deny.match(host, port)
        if rule:
            return rule
    return None


def _allowing(policy: Policy, name: str, port: int | None) -> Rule | None:
    if port is not None:
        return policy.allow.match(name, port) or next(iter(_managed_on(policy, name, port)), None)
    # Which port will follow is not known: prefer the rule that may reach this machine's own addresses.
    open_rule = max(_open_rules(policy, name), key=lambda rule: rule.names_port, default=None)
    # The connection will be refused, and say why.
    return open_rule or policy.managed.match(name, None)


def _names_own_port(rule: Rule) -> bool:
    """Whether it may open a port of this machine itself. Who writes "every host" does not think of this one."""
    return rule.names_port and rule.pattern != "*"


def _with_written_port(policy: Policy, ask: Ask, rule: Rule) -> Rule:
    """A rule that writes the port out, if there is one: a bare, more specific `rule` must not hide it."""
    if _names_own_port(rule) or ask.port is None:
        return rule
    written = (each for each in policy.allow.matching(ask.host) if _names_own_port(each))
    return next((each for each in written if ask.port in (each.ports or ())), rule)


def _open_rules(policy: Policy, name: str) -> list[Rule]:
    """The allow rules for `name` that have a port which no deny rule takes away, most specific first."""
    return [
        rule
        for rule in policy.allow.matching(name)
        if rule.ports is None or any(_denying(policy, name, port) is None for port in rule.ports)
    ]


def _literal(policy: Policy, ask: Ask, rule: Rule) -> tuple[ResolvedAddress, ...] | None:
    """The address that the host is, unless it has to be known first whether it is this machine's own.

    With a written port that makes no difference, because a literal names its own address.
    """
    address = host_address(ask.host)
    if address is None:
        return None
    if not (address.is_loopback or _names_own_port(_with_written_port(policy, ask, rule))):
        return None
    return (ResolvedAddress(address, own=address.is_loopback, pinned=True),)


def _is_localhost(host: str) -> bool:
    """RFC 6761 §6.3: these names are loopback and no matter of DNS."""
    return host == "localhost" or host.endswith(".localhost")


def _not_allowed(policy: Policy, ask: Ask, name: str) -> Denial:
    listed = {port for rule in policy.allow.matching(name) for port in rule.ports or ()}
    if listed:
        reason = f"no rule allows port {ask.port} of it, only {', '.join(map(str, sorted(listed)))}"
    elif ask.identity is Identity.ADDRESS and name == ask.host:
        reason = "no rule allows this address, and nothing names a host for it"
    else:
        reason = "no rule allows it"
    return _denied(ask, name, reason, f"--allow-domain {_spelled(name, ask.port)}")


def _denied_by(ask: Ask, name: str, rule: Rule, what: str = "it") -> Denial:
    reason = _in_context(ask, name, f"the deny rule {rule.text} ({rule.source}) matches {what}")
    return Denial(DenialCategory.HOST_DENIED, name, ask.port, reason, rule, None)


def _denied(ask: Ask, name: str, reason: str, remedy: str | None = None) -> Denial:
    text = _in_context(ask, name, reason)
    return Denial(DenialCategory.HOST_DENIED, name, ask.port, text, None, remedy)


def _in_context(ask: Ask, name: str, reason: str) -> str:
    return reason if name == ask.host else f"{reason}, and a connection to {ask.host} names it too"


def _with_port(name: str, port: int | None) -> str:
    return f"{name}:PORT" if port is None else join_host_port(name, port)


def _spelled(name: str, port: int | None) -> str:
    """The shortest rule that allows `name` on `port`."""
    address = host_address(name)
    own = address.is_loopback if address else _is_localhost(name)
    if own or not (port is None or port in WEB_PORTS):
        return _with_port(name, port)
    return f"[{name}]" if ":" in name else name
