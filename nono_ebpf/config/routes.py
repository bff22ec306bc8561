"""Services with a credential, as they are defined: where each is, how its credential gets into a request, what the
command is told.

Knows the kinds of credentials, and which of them are not supported yet. A service of such a kind is known all the same:
nothing reaches it. Must not know which services are in use.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nono_ebpf.config.merge import Sourced
from nono_ebpf.config.references import check_variable
from nono_ebpf.config.upstreams import parse_origin, parse_upstream
from nono_ebpf.credentials.injection import Injection, Placement
from nono_ebpf.credentials.references import parse_reference, why_unsupported
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.endpoints import EndpointRule, parse_endpoint_rule
from nono_ebpf.policy.services import EndpointPolicy, PolicyRule, Service

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nono_ebpf.config import schema
    from nono_ebpf.config.schema import CredentialProvider, CustomCredential, Endpoint, RateLimit

_UNSUPPORTED = {
    "auth": "OAuth 2 is not supported yet",
    "aws_auth": "AWS signatures are not supported yet",
    "spiffe": "SPIFFE is not supported yet",
}
# In which clients look for certificates, and find those of the proxy.
_CA_VARIABLES = frozenset(
    ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
)


@dataclass(frozen=True, slots=True)
class Route:
    """A service in use.

    `reference`: where its credential is kept; None where that is not supported.
    `tls_ca`, `tls_client_cert`, `tls_client_key` are paths. `base_url_variable`: in which the command finds the
    service's URL at the proxy; None where there is no such URL, because many hosts belong to the service.
    `key_variable`: in which it finds the session token in place of the credential.
    """

    service: Service
    reference: Sourced[str] | None = None
    injection: Injection | None = None
    rate_limit: RateLimit | None = None
    tls_ca: Sourced[str] | None = None
    tls_client_cert: Sourced[str] | None = None
    tls_client_key: Sourced[str] | None = None
    base_url_variable: str | None = None
    key_variable: str | None = None

    @property
    def name(self) -> str:
        """The service's."""
        return self.service.name

    @property
    def unsupported(self) -> str:
        """Why nothing reaches the service; empty where something does."""
        return self.service.unsupported

    @property
    def source(self) -> str:
        """Where it was said that it is in use."""
        return self.service.host.source


@dataclass(frozen=True, slots=True)
class PathRules:
    """What a definition needs to be read: whether `*` of a path crosses slashes, and the account's home."""

    nono_globs: bool = False
    home: str = ""


def custom_route(
    name: Sourced[str],
    definition: Sourced[CustomCredential],
    endpoints: Iterable[Sourced[Endpoint]],
    around: PathRules,
) -> Route:
    """The service that `name` puts into use. `endpoints` are requests that it is for besides those of its definition.

    Raises ConfigError: the variable that it would be looked for in is none that may be set.
    """
    defined = definition.value
    service = _service(name, definition, list(endpoints), around)
    if why := _why_unsupported(defined):
        return Route(replace(service, unsupported=why))

    def path(key: str) -> Sourced[str] | None:
        text = getattr(defined, key)
        return None if text is None else Sourced(_expanded(text, around.home), f"{definition.source}.{key}")

    return Route(
        service,
        Sourced(defined.credential_key or "", f"{definition.source}.credential_key"),
        injection=_injection(defined),
        rate_limit=defined.rate_limit,
        tls_ca=path("tls_ca"),
        tls_client_cert=path("tls_client_cert"),
        tls_client_key=path("tls_client_key"),
        base_url_variable=None if "*" in service.host.pattern else _url_variable(service.name),
        key_variable=_key_variable(defined, definition.source),
    )


def provider_routes(name: str, provider: Sourced[CredentialProvider]) -> Iterator[Route]:
    """Where tokens come from, and where they are good for."""
    origins = [*(each.host for each in provider.value.token_endpoints), *provider.value.api_hosts]
    for origin in dict.fromkeys(origins):
        host = parse_origin(origin, provider.source, name=name).host
        yield Route(Service(name, host, unsupported="capturing logins is not supported yet"))


def clashes(routes: Iterable[Route], ca_variables: Iterable[Sourced[str]]) -> Iterator[ConfigError]:
    """Variables that would have to have two values, and those that tell clients of the proxy."""
    meanings: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for each in (*(Sourced(name, "") for name in _CA_VARIABLES), *ca_variables):
        meanings[each.value]["certificates"] = each.source
    for route in routes:
        if route.base_url_variable:
            meanings[route.base_url_variable][f"the URL of {route.name}"] = route.source
        if route.key_variable:
            meanings[route.key_variable].setdefault("the session token", route.source)
    for variable, meaning in meanings.items():
        *_, source = meaning.values()
        if len(meaning) > 1:
            why = f"the variable {variable} would have to be {' and '.join([*meaning][:2])}"
            yield ConfigError(source, why, hint="use another name, or write another env_var")
        elif variable.upper().endswith("_PROXY") or variable.startswith("NONO_"):
            yield ConfigError(source, f"the variable {variable} is what tells clients of the proxy")


def _why_unsupported(defined: CustomCredential) -> str:
    if defined.credential_key is None:
        return next(why for key, why in _UNSUPPORTED.items() if getattr(defined, key) is not None)
    return why_unsupported(parse_reference(defined.credential_key, "credential_key"))


def _service(
    name: Sourced[str],
    definition: Sourced[CustomCredential],
    endpoints: list[Sourced[Endpoint]],
    around: PathRules,
) -> Service:
    defined = definition.value
    upstream = parse_upstream(defined.upstream, name.source, name=name.value)
    rules = [Sourced(each, f"{definition.source}.endpoint_rules") for each in defined.endpoint_rules]
    policy = defined.endpoint_policy
    return Service(
        name.value,
        upstream.host,
        upstream.tls,
        upstream.base_path,
        tuple(_rule(each.value, each.source, around) for each in [*rules, *endpoints]),
        None if policy is None else _policy(policy, endpoints, f"{definition.source}.endpoint_policy", around),
    )


def _policy(
    policy: schema.EndpointPolicy, endpoints: list[Sourced[Endpoint]], source: str, around: PathRules
) -> EndpointPolicy:
    def rules(listed: Iterable[schema.PolicyRule]) -> tuple[PolicyRule, ...]:
        return tuple(PolicyRule(_rule(each, source, around), each.reason) for each in listed)

    further = tuple(PolicyRule(_rule(each.value, each.source, around)) for each in endpoints)
    return EndpointPolicy(
        policy.default.decision, rules(policy.deny), rules(policy.approve), (*rules(policy.allow), *further)
    )


def _rule(endpoint: Endpoint | schema.PolicyRule, source: str, around: PathRules) -> EndpointRule:
    return parse_endpoint_rule(endpoint.method, endpoint.path, source, crosses=around.nono_globs)


def _injection(defined: CustomCredential) -> Injection:
    outbound = Placement(
        defined.inject_mode,
        defined.inject_header,
        defined.credential_format,
        defined.path_pattern,
        defined.path_replacement,
        defined.query_param_name,
    )
    shown = defined.proxy
    if shown is None:
        return Injection(outbound, outbound)
    mode, header = shown.inject_mode or outbound.mode, shown.inject_header or outbound.header
    same = (mode, header.lower()) == (outbound.mode, outbound.header.lower())
    client = Placement(
        mode,
        header,
        shown.credential_format or (outbound.format if same else None),
        shown.path_pattern or outbound.path_pattern,
        shown.path_replacement or outbound.path_replacement,
        shown.query_param_name or outbound.query_param,
    )
    return Injection(outbound, client)


def _url_variable(name: str) -> str:
    return f"{name.upper().replace('-', '_')}_BASE_URL"


def _key_variable(defined: CustomCredential, source: str) -> str | None:
    """That of the definition; else that of an `env://` reference, or the name of an account in capital letters."""
    if defined.env_var is not None:
        return defined.env_var
    reference = defined.credential_key or ""
    derived = reference.removeprefix("env://") if reference.startswith("env://") else reference.upper()
    if "://" in derived:
        return None
    try:
        check_variable(derived, f"{source}.credential_key")
    except ConfigError as error:
        why = f"the command would look for it in the variable {derived}, which may not be set"
        raise ConfigError(error.where, why, hint="write env_var") from error
    return derived


def _expanded(path: str, home: str) -> str:
    return f"{home}/{path.removeprefix('~/')}" if path.startswith("~/") else path
