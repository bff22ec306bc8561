"""A service in words: for `profile`, for `why`, for whoever asks what a run would do. Says nothing that is secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nono_ebpf.authority import join_host_port
from nono_ebpf.credentials.references import parse_reference, redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nono_ebpf.config.routes import Route
    from nono_ebpf.credentials.injection import Placement
    from nono_ebpf.policy.services import EndpointPolicy


def facts(route: Route) -> dict[str, Any]:
    """What there is to know about it, by the names that a profile has for it."""
    service = route.service
    (port,) = service.host.ports or (0,)
    scheme = "https" if service.tls else "http"
    found: dict[str, Any] = {
        "name": route.name,
        "upstream": f"{scheme}://{join_host_port(service.host.pattern, port)}{service.base_path}",
    }
    if route.unsupported:
        return found | {"unavailable": route.unsupported}
    found |= {"credential_key": kept_at(route), "injected": placed(route), "requests": list(requests_of(route))}
    variables = {"base_url_env_var": route.base_url_variable, "env_var": route.key_variable}
    found |= {key: value for key, value in variables.items() if value is not None}
    if (limit := route.rate_limit) and limit.requests_per_minute:
        found["rate_limit"] = f"{limit.requests_per_minute} a minute, {limit.burst} at once"
    return found


def line(route: Route) -> str:
    """The same for people."""
    found = facts(route)
    place = f"{found['name']}  {found['upstream']}"
    if route.unsupported:
        return f"{place}  {route.unsupported}"
    return f"{place}  {found['credential_key']} in {found['injected']}  {', '.join(found['requests'])}"


def kept_at(route: Route) -> str:
    """Where its credential is, but not the part that says what is there."""
    reference = route.reference
    return redacted(parse_reference(reference.value, reference.source)) if reference else ""


def placed(route: Route) -> str:
    """Where in a request its credential stands; `{}` is where."""
    return _placed(route.injection.outbound) if route.injection else ""


def requests_of(route: Route) -> Iterator[str]:
    """Which requests it is for."""
    service = route.service
    if service.endpoint_policy is not None:
        yield from _of_policy(service.endpoint_policy)
    elif service.endpoints:
        yield from map(str, service.endpoints)
    else:
        yield "every request"


def _of_policy(policy: EndpointPolicy) -> Iterator[str]:
    for action, rules in (("deny", policy.deny), ("approve", policy.approve), ("allow", policy.allow)):
        yield from (f"{action} {rule.endpoint}" for rule in rules)
    yield f"{policy.default} all else"


def _placed(where: Placement) -> str:
    match where.mode:
        case "url_path":
            return f"the path {where.path_replacement or where.path_pattern}"
        case "query_param":
            return f"the query {where.query_param}={{}}"
        case "basic_auth":
            return f"{where.header}: Basic {{}}"
    default = "Bearer {}" if where.header.lower() == "authorization" else "{}"
    return f"{where.header}: {where.format or default}"
