"""What somebody who wrote a profile should know about it: what allows very much, or nothing, or has no effect yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from nono_ebpf.config.schema import AllowDomain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from nono_ebpf.config.compile import Route
    from nono_ebpf.config.merge import Merged
    from nono_ebpf.config.settings import Settings
    from nono_ebpf.config.validate import Document


def warnings(merged: Merged, documents: Collection[Document], found: Settings) -> Iterator[str]:
    """One line each, with the place in front."""
    yield from found.policy.warnings()
    for document in documents:
        yield from _of_document(document)
    yield from _without_effect(merged)
    for route in found.routes:
        yield _of_route(route)
    for rule in found.policy.allow.rules:
        if rule.endpoints:
            yield f"{rule.source}: requests to {rule.text} are judged over plain HTTP only, and TLS to it is refused"
    policy = found.policy
    if policy.upstream_proxy and policy.upstream_proxy.bypass.everything:
        yield f"nothing goes through the upstream proxy {policy.upstream_proxy}: * is to be reached without it"
    if merged.block and policy.allow.rules:
        yield f"{merged.block.source}: what is listed is allowed all the same, as in nono; --block-net allows nothing"
    if documents and not (policy.allow.rules or policy.deny.rules or merged.block):
        yield "nothing is reachable: no host is allowed (nono would allow every one)"


def _of_document(document: Document) -> Iterator[str]:
    for index, entry in enumerate(document.profile.network.allow_domain):
        if isinstance(entry, AllowDomain) and not (entry.endpoints or entry.paths):
            place = document.place("network", "allow_domain", index)
            yield f"{place}: it lists no endpoints, so any connection to {entry.domain} is allowed"
    if document.profile.command_policies is not UNSET:
        yield f"{document.path}: command_policies: ignored; what `network` says holds for every command alike"


def _without_effect(merged: Merged) -> Iterator[str]:
    if merged.allow_http2:
        yield f"{merged.allow_http2.source}: no effect yet: in tunnels any version of HTTP is spoken, elsewhere HTTP/1"
    if merged.tls_intercept:
        yield f"{merged.tls_intercept.source}: no effect yet: no TLS is intercepted"


def _of_route(route: Route) -> str:
    hosts = ", ".join(each.pattern for each in route.hosts)
    return (
        f"{route.source}: credential {route.name}: credentials are not injected yet; connections to {hosts} are refused"
    )
