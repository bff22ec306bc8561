"""What somebody who wrote a profile should know about it: what allows very much, or nothing, or has no effect yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from nono_ebpf.config.kinds import parse_duration
from nono_ebpf.config.schema import AllowDomain
from nono_ebpf.config.settings import CA_SHORTEST_S
from nono_ebpf.tls.constraints import can_be_constrained

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from nono_ebpf.config.merge import Merged, Sourced
    from nono_ebpf.config.routes import Route
    from nono_ebpf.config.schema import CustomCredential
    from nono_ebpf.config.settings import Settings
    from nono_ebpf.config.validate import Document
    from nono_ebpf.policy.rules import Policy


def warnings(merged: Merged, documents: Collection[Document], found: Settings) -> Iterator[str]:
    """One line each, with the place in front."""
    yield from found.policy.warnings()
    for document in documents:
        yield from _of_document(document)
    yield from _without_effect(merged)
    if not can_be_constrained(found.tls_intercept.hosts):
        much = "to every host" if "*" in found.tls_intercept.hosts else "to more hosts than a certificate can list"
        yield f"TLS {much} may be intercepted, so the CA of this run is good for every host"
    policy = found.policy
    for route in found.routes:
        yield from _of_route(route, policy)
    used = {route.name for route in found.routes}
    for name, definition in merged.custom_credentials.items():
        if name in used:
            yield from _of_definition(name, definition)
    if policy.upstream_proxy and policy.upstream_proxy.bypass.everything:
        yield f"nothing goes through the upstream proxy {policy.upstream_proxy}: * is to be reached without it"
    if merged.block and policy.allow.rules:
        yield f"{merged.block.source}: what is listed is allowed all the same, as in nono; --block-net allows nothing"
    if documents and not (policy.allow.rules or policy.deny.rules or policy.services or merged.block):
        yield "nothing is reachable: no host is allowed (nono would allow every one)"


def _of_document(document: Document) -> Iterator[str]:
    for index, entry in enumerate(document.profile.network.allow_domain):
        if isinstance(entry, AllowDomain) and not (entry.endpoints or entry.paths or entry.intercept == "always"):
            place = document.place("network", "allow_domain", index)
            yield f"{place}: it lists no endpoints, so any connection to {entry.domain} is allowed"
    if document.profile.command_policies is not UNSET:
        yield f"{document.path}: command_policies: ignored; what `network` says holds for every command alike"


def _without_effect(merged: Merged) -> Iterator[str]:
    if http2 := merged.allow_http2:
        yield f"{http2.source}: no effect yet: where TLS is intercepted HTTP/1.1 is spoken, in tunnels any version"
    if (said := merged.tls_intercept) is None:
        return
    if said.value.ca_lifecycle == "trusted":
        yield f"{said.source}.ca_lifecycle: no effect: every run has a CA of its own, which only its command trusts"
    if (short := said.value.ca_validity) and parse_duration(short, said.source) < CA_SHORTEST_S:
        yield f"{said.source}.ca_validity: an hour is the least that a CA is valid"


def _of_route(route: Route, policy: Policy) -> Iterator[str]:
    host = route.service.host
    place = f"{route.source}: the service {route.name}"
    if route.unsupported:
        yield f"{place}: {route.unsupported}; requests to {host.pattern} are refused"
    sample = host.pattern.replace("*", "any")
    denying = [policy.deny.match(sample, port) for port in host.ports or ()]
    if deny := next(filter(None, denying), None):
        yield f"{place}: nothing reaches it: the deny rule {deny.text} ({deny.source}) matches {host.pattern}"


def _of_definition(name: str, definition: Sourced[CustomCredential]) -> Iterator[str]:
    found, place = definition.value, definition.source
    policy = found.endpoint_policy
    if policy and found.endpoint_rules:
        yield f"{place}.endpoint_rules: no effect: endpoint_policy takes their place"
    if policy and (policy.approve or policy.default.decision == "approve"):
        yield f"{place}.endpoint_policy: nobody can be asked yet: a request to {name} that needs an approval is denied"
    if found.upgrades:
        yield f"{place}.upgrades: no effect yet: a WebSocket to a service is refused"
