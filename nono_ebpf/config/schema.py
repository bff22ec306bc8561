"""The shape of a profile: nono's, field by field, and keys of our own (`upstream_auth`, `intercept` of a host).

Every field has a description, since editors show it (`nono-ebpf profile schema`), and a kind that says what its values
have to be. What no single value can say, an object says in `problems`. Nothing here knows what a profile means.
An unknown field is an error; what is about other things than the network is accepted and left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from nono_ebpf.config import kinds
from nono_ebpf.config.references import needs_variable

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of an annotation: other names of the key, whether it is none of our business.
ALIASES, IGNORED = "aliases", "ignored"
_MANY = 1_000_000_000  # ours: no count that somebody means is larger


class Problem(NamedTuple):
    """What is wrong between the fields of an object, at which of them (`""`: at itself)."""

    key: str
    text: str
    hint: str = ""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything an operator writes as JSON."""

    def problems(self) -> Iterator[Problem]:
        """What is wrong though every field alone is sound."""
        yield from ()


def _also(*names: str, text: str) -> Meta:
    return Meta(description=text, extra={ALIASES: names})


def _about(text: str) -> Meta:
    return Meta(description=text)


def _elsewhere(text: str, *names: str) -> Meta:
    return Meta(description=f"{text} Not about the network: ignored.", extra={IGNORED: True, ALIASES: names})


class Endpoint(Config, frozen=True):
    """Requests that are allowed: a method and a path."""

    method: kinds.Method
    path: kinds.PathGlob


class AllowDomain(Config, frozen=True):
    """A host and the only requests that it may be sent.

    `host` is another name of `domain`; `paths` is short for endpoints with any method.
    """

    domain: Annotated[kinds.AllowedHost, _also("host", text="The host.")]
    endpoints: Annotated[
        tuple[Endpoint, ...], _about("Requests that are allowed, and no other. None listed: any connection.")
    ] = ()
    paths: Annotated[tuple[kinds.PathGlob, ...], _about("Paths that are allowed with any method.")] = ()
    intercept: Annotated[
        Literal["auto", "always"],
        _about("auto: requests inside TLS are looked at where a rule or a credential needs it; always: all of them."),
    ] = "auto"


class ClientAssertion(Config, frozen=True):
    """A SPIFFE JWT-SVID in place of a client's id and secret."""

    type: Literal["spiffe_jwt"]
    workload_api_socket: Annotated[kinds.Word, _about("Path of the SPIRE agent's socket.")]
    audience: Annotated[tuple[str, ...], _about("Whom the assertion is for.")]
    svid_hint: Annotated[str | None, _about("The SPIFFE ID to take when there are several.")] = None


class OAuth2(Config, frozen=True):
    """Client credentials that are exchanged for a token (RFC 6749 §4.4)."""

    token_url: Annotated[kinds.ServiceUrl, _about("Where tokens are to be had.")]
    client_id: Annotated[str, _about("The client's id, or a reference to it.")] = ""
    client_secret: Annotated[str, _about("A reference to the client's secret.")] = ""
    scope: Annotated[str, _about("Scopes, separated by blanks.")] = ""
    client_assertion: Annotated[ClientAssertion | None, _about("In place of client_id and client_secret.")] = None
    extra_params: Annotated[dict[str, str], _about("Further fields of the exchange.")] = {}

    def problems(self) -> Iterator[Problem]:
        """An id and a secret, or an assertion."""
        written = [key for key in ("client_id", "client_secret") if getattr(self, key)]
        if self.client_assertion is not None and written:
            yield Problem(written[0], "the client_assertion is in its place", "write one of them")
        elif self.client_assertion is None and len(written) < 2:
            yield Problem("", "it needs client_id and client_secret, or client_assertion")


class AwsAuth(Config, frozen=True):
    """AWS Signature Version 4; what is left out comes from the usual places and from the upstream's name."""

    profile: Annotated[str | None, _about("Profile of the AWS configuration.")] = None
    region: Annotated[str | None, _about("Region, such as us-east-1.")] = None
    service: Annotated[str | None, _about("Service, such as bedrock.")] = None

    def problems(self) -> Iterator[Problem]:
        """Words; region and service in lower case, as they are signed."""
        for key in ("profile", "region", "service"):
            value = getattr(self, key)
            if value is not None and (not value or any(map(str.isspace, value))):
                yield Problem(key, f"{value!a} is not one word", "leave the key out for the default")
            elif value is not None and key != "profile" and value != value.lower():
                yield Problem(key, f"{value!a} has capital letters", f"write {value.lower()}")


class Spiffe(Config, frozen=True):
    """A SPIFFE JWT-SVID that is put into a header field."""

    type: Literal["jwt"]
    workload_api_socket: Annotated[kinds.Word, _about("Path of the SPIRE agent's socket.")]
    audience: Annotated[tuple[str, ...], _about("Whom the token is for.")]
    inject_header: Annotated[kinds.Header, _about("Header field to put it into.")] = "Authorization"
    credential_format: Annotated[kinds.Format | None, _about("Value of the field; Bearer {} when left out.")] = None
    svid_hint: Annotated[str | None, _about("The SPIFFE ID to take when there are several.")] = None


InjectMode = Literal["header", "url_path", "query_param", "basic_auth"]


class ProxyInject(Config, frozen=True):
    """How the client presents the stand-in of the credential, where that differs from how it is sent on."""

    inject_mode: Annotated[InjectMode | None, _about("Where the client puts it.")] = None
    inject_header: Annotated[kinds.Header | None, _about("In which header field.")] = None
    credential_format: Annotated[kinds.Format | None, _about("Value of the field.")] = None
    path_pattern: Annotated[kinds.PathPattern | None, _about("In which path.")] = None
    path_replacement: Annotated[kinds.PathPattern | None, _about("The path to make of it.")] = None
    query_param_name: Annotated[kinds.QueryParameter | None, _about("In which query parameter.")] = None


Decision = Literal["deny", "approve", "allow"]
Seconds = Annotated[int, Meta(ge=1, le=_MANY)]


class PolicyDefault(Config, frozen=True):
    """What holds for requests that no rule is about."""

    decision: Decision
    backend: Annotated[str | None, _about("Who is asked.")] = None
    timeout_secs: Annotated[Seconds | None, _about("How long to wait for an answer.")] = None


class PolicyRule(Config, frozen=True):
    """Requests that a decision is for."""

    method: kinds.Method
    path: kinds.PathGlob
    backend: Annotated[str | None, _about("Who is asked.")] = None
    reason: Annotated[str | None, _about("Why, for whoever is refused.")] = None
    timeout_secs: Annotated[Seconds | None, _about("How long to wait for an answer.")] = None


class EndpointPolicy(Config, frozen=True):
    """Which requests are denied, asked about and allowed, in this order."""

    default: Annotated[PolicyDefault, _about("For all others; denied when left out.")] = PolicyDefault("deny")
    deny: tuple[PolicyRule, ...] = ()
    approve: tuple[PolicyRule, ...] = ()
    allow: tuple[PolicyRule, ...] = ()


class Upgrade(Config, frozen=True):
    """A path that may be upgraded to a WebSocket."""

    path: kinds.UpgradePath


class RateLimit(Config, frozen=True):
    """How many requests may be sent."""

    requests_per_minute: Annotated[int, Meta(description="In the long run; 0 is no limit.", ge=0, le=_MANY)]
    burst: Annotated[int, Meta(description="At once.", ge=0, le=_MANY)] = 5
    max_delay_secs: Annotated[int, Meta(description="How long one may wait before it is refused.", ge=0, le=_MANY)] = 5


CREDENTIAL_SOURCES = ("credential_key", "auth", "aws_auth", "spiffe")


class CustomCredential(Config, frozen=True):
    """A credential that the proxy puts into requests to a service; the command never has it."""

    upstream: Annotated[kinds.ServiceUrl, _about("The service.")]
    credential_key: Annotated[kinds.Reference | None, _about("Where the credential is kept.")] = None
    auth: Annotated[OAuth2 | None, _about("OAuth 2 in its place; not supported yet: nothing reaches it.")] = None
    aws_auth: Annotated[AwsAuth | None, _about("An AWS signature in its place; not supported yet.")] = None
    spiffe: Annotated[Spiffe | None, _about("A SPIFFE identity in its place; not supported yet.")] = None
    inject_mode: Annotated[InjectMode, _about("Where in a request it belongs.")] = "header"
    inject_header: Annotated[kinds.Header, _about("In which header field.")] = "Authorization"
    credential_format: Annotated[
        kinds.Format | None, _about("Value of the field; left out, Bearer {} in Authorization and {} elsewhere.")
    ] = None
    path_pattern: Annotated[kinds.PathPattern | None, _about("Path in which the client puts the stand-in.")] = None
    path_replacement: Annotated[kinds.PathPattern | None, _about("Path to make of it; path_pattern when left out.")] = (
        None
    )
    query_param_name: Annotated[kinds.QueryParameter | None, _about("Query parameter to put it into.")] = None
    proxy: Annotated[ProxyInject | None, _about("How the client presents its stand-in, where that differs.")] = None
    env_var: Annotated[kinds.Variable | None, _about("Variable in which the client looks for its credential.")] = None
    endpoint_rules: Annotated[
        tuple[Endpoint, ...], _about("Requests that are allowed, and no other. None listed: every request.")
    ] = ()
    endpoint_policy: Annotated[EndpointPolicy | None, _about("Finer rules in their place.")] = None
    tls_ca: Annotated[
        kinds.FilePath | None, _about("Certificates (PEM) that the service is verified with, besides the system's.")
    ] = None
    tls_client_cert: Annotated[kinds.FilePath | None, _about("Certificate (PEM) to present to the service.")] = None
    tls_client_key: Annotated[kinds.FilePath | None, _about("Its private key (PEM): a file.")] = None
    upgrades: Annotated[tuple[Upgrade, ...], _about("Paths that may become WebSockets; no effect yet.")] = ()
    rate_limit: Annotated[RateLimit | None, _about("How many requests may be sent.")] = None

    def problems(self) -> Iterator[Problem]:
        """Exactly one source, and what its way into the request needs."""
        written = [key for key in CREDENTIAL_SOURCES if getattr(self, key) is not None]
        if len(written) != 1:
            said = f"it has {' and '.join(written)}" if written else "it has no source of the credential"
            yield Problem("", said, f"write one of {', '.join(CREDENTIAL_SOURCES)}")
        if self.credential_key and needs_variable(self.credential_key) and self.env_var is None:
            yield Problem("env_var", "it is missing, and the reference has no name to make one of")
        if (self.tls_client_cert is None) != (self.tls_client_key is None):
            yield Problem("", "tls_client_cert and tls_client_key belong together")
        if self.credential_key:
            yield from self._missing_for_mode("", self.inject_mode)
            if self.inject_mode == "basic_auth" and self.credential_format is not None:
                yield _no_format("credential_format")
        if self.proxy is not None:
            mode = self.proxy.inject_mode or self.inject_mode
            yield from self._missing_for_mode("proxy.", mode)
            if mode == "basic_auth" and self.proxy.credential_format is not None:
                yield _no_format("proxy.credential_format")

    def _missing_for_mode(self, where: str, mode: str) -> Iterator[Problem]:
        needed = {"url_path": "path_pattern", "query_param": "query_param_name"}.get(mode)
        holders: tuple[Any, ...] = (self, self.proxy) if where else (self,)
        if needed and not any(getattr(holder, needed) for holder in holders):
            yield Problem(f"{where}{needed}", f"it is missing, and inject_mode {mode} needs it")


def _no_format(key: str) -> Problem:
    return Problem(key, "inject_mode basic_auth has a format of its own", "leave it out: the secret is USER:PASSWORD")


class TlsIntercept(Config, frozen=True):
    """The certificates of TLS connections that the proxy ends itself."""

    ca_lifecycle: Annotated[Literal["session", "trusted"], _about("No effect: every run has a CA of its own.")] = (
        "session"
    )
    ca_validity: Annotated[kinds.Duration | None, _about("How long the CA is valid.")] = None
    leaf_validity: Annotated[kinds.Duration | None, _about("How long the certificate of a host is valid.")] = None
    ca_env_vars: Annotated[
        tuple[kinds.Variable, ...], _about("Further variables in which a client looks for a bundle of CAs.")
    ] = ()


class Network(Config, frozen=True):
    """What may be reached. A list that is empty or left out allows nothing."""

    block: Annotated[bool, _about("Nothing is allowed but what the lists name, as without it; kept for nono.")] = False
    allow_http2: Annotated[bool, _about("No effect yet: where requests are looked at, HTTP/1.1 is spoken.")] = False
    network_profile: Annotated[
        kinds.NetworkProfileName | UnsetType | None,
        _about("Presets that belong together. null takes an inherited one away."),
    ] = UNSET
    allow_domain: Annotated[
        tuple[kinds.AllowedHost | AllowDomain, ...],
        _also("proxy_allow", "allow_proxy", text="Hosts that may be reached, without a port on 80 and 443."),
    ] = ()
    deny_domain: Annotated[
        tuple[kinds.DeniedHost, ...], _about("Hosts that may not, whatever allows them; without a port on every port.")
    ] = ()
    credentials: Annotated[
        tuple[kinds.ServiceName, ...] | None,
        _also("proxy_credentials", text="Credentials in use. [] takes inherited ones away."),
    ] = None
    open_port: Annotated[
        tuple[kinds.Port, ...],
        _also("port_allow", "allow_port", text="Ports of services on this machine's loopback that may be reached."),
    ] = ()
    open_port_range: Annotated[tuple[kinds.PortRange, ...], _about("The same for ranges.")] = ()
    listen_port: Annotated[
        tuple[kinds.Port, ...], _about("Ports that the command may listen on, where --landlock-ports refuses others.")
    ] = ()
    listen_port_range: Annotated[tuple[kinds.PortRange, ...], _about("The same for ranges.")] = ()
    connect_port: Annotated[
        tuple[kinds.Port, ...], _about("Ports that a host without a port stands for, besides 80 and 443.")
    ] = ()
    no_proxy: Annotated[
        tuple[kinds.NoProxyEntry, ...], _about("Hosts that clients are told not to ask the proxy for.")
    ] = ()
    custom_credentials: Annotated[
        dict[Annotated[str, Meta(pattern=kinds.SERVICE_NAME)], CustomCredential],
        _about("Credentials by name. In use are those that `credentials` names."),
    ] = {}
    tls_intercept: Annotated[TlsIntercept | None, _about("Certificates of intercepted connections.")] = None
    upstream_proxy: Annotated[
        kinds.UpstreamProxyAddress | None,
        _also("external_proxy", text="A proxy that everything is sent through: HOST:PORT or its URL."),
    ] = None
    upstream_bypass: Annotated[
        tuple[kinds.BypassEntry, ...],
        _also("external_proxy_bypass", text="Hosts that are reached without it: HOST, *.DOMAIN, a network."),
    ] = ()
    upstream_auth: Annotated[
        kinds.ReadableReference | None, _about("Where USER:PASSWORD for the upstream proxy is kept.")
    ] = None


class CaptureOutput(Config, frozen=True):
    """What the command prints: header fields as JSON."""

    format: Literal["json"]
    allow_headers: Annotated[tuple[kinds.Header, ...], Meta(description="Fields that it may write.", min_length=1)]


class OpenUrls(Config, frozen=True):
    """Which URLs may be opened in a browser."""

    allow_origins: tuple[Any, ...] = ()
    allow_localhost: bool = False


class Interaction(Config, frozen=True):
    """What a command may do to talk to a person."""

    stdio: Annotated[bool, _about("Write to the terminal.")] = False
    stdin: Annotated[bool, _about("Read from the terminal.")] = False
    open_urls: Annotated[OpenUrls | None, _about("Open these in a browser.")] = None
    allow_launch_services: bool = False


class CaptureProvider(Config, frozen=True):
    """A program that speaks nono's credential-provider protocol."""

    command: Annotated[tuple[kinds.Word, ...], Meta(description="Program and arguments; no shell.", min_length=1)]
    config: Annotated[Any, _about("For the program.")] = None


Lifetime = Annotated[int, Meta(ge=0, le=3600)]


class CredentialCapture(Config, frozen=True):
    """A command outside of the sandbox whose output is a credential: `cmd://NAME` refers to it."""

    command: Annotated[tuple[kinds.Word, ...], _about("Program and arguments; no shell.")] = ()
    provider: Annotated[CaptureProvider | None, _about("A program in its place that speaks a protocol.")] = None
    timeout_secs: Annotated[Annotated[int, Meta(ge=1, le=300)] | None, _about("How long it may take.")] = None
    ttl_secs: Annotated[Lifetime | None, _about("The older name of cache_ttl_secs.")] = None
    cache_ttl_secs: Annotated[Lifetime | None, _about("How long its answer is kept; 0 is not at all.")] = None
    cache_path_regex: Annotated[kinds.Word | None, _about("What of a path tells answers apart.")] = None
    stdin: Annotated[Literal["null", "request_json"], _about("What it reads.")] = "null"
    output: Annotated[Literal["text"] | CaptureOutput, _about("How its output is to be read.")] = "text"
    interaction: Annotated[Interaction | None, _about("What it may do to talk to a person.")] = None

    def problems(self) -> Iterator[Problem]:
        """One program, one lifetime."""
        if bool(self.command) == (self.provider is not None):
            yield Problem("", "it needs a command or a provider, and not both")
        if None not in (self.ttl_secs, self.cache_ttl_secs) and self.ttl_secs != self.cache_ttl_secs:
            yield Problem("ttl_secs", "cache_ttl_secs says otherwise", "write one of them")


class ResponseField(Config, frozen=True):
    """A token in an answer."""

    path: kinds.Word
    kind: Literal["opaque", "jwt"] = "opaque"
    format: Annotated[kinds.Format | None, _about("How its stand-in looks; {} is random.")] = None


class TokenEndpoint(Config, frozen=True):
    """Where a client logs in, and what of the answer are tokens."""

    host: kinds.Origin
    path: kinds.UpgradePath
    response_fields: Annotated[tuple[ResponseField, ...], Meta(min_length=1)]
    request_body: Literal["auto", "json", "form"] = "auto"
    request_nonce_fields: tuple[str, ...] = ()


class CredentialProvider(Config, frozen=True):
    """A service whose logins are to stay outside of the sandbox: the client gets stand-ins of its tokens."""

    type: Literal["oauth_capture"]
    token_endpoints: Annotated[tuple[TokenEndpoint, ...], Meta(min_length=1)]
    api_hosts: Annotated[tuple[kinds.Origin, ...], Meta(description="Where the tokens are good for.", min_length=1)]
    inject_header: Annotated[kinds.Header, _about("In which header field they are sent.")] = "Authorization"
    credential_format: Annotated[kinds.Format | None, _about("Value of the field.")] = None
    credential_store: Annotated[Any, _about("Where the client keeps its tokens; not looked at.")] = None
    helpers: Annotated[Any, _about("Commands for logging in and out; not looked at.")] = None


class OriginUpgrade(Config, frozen=True):
    """A path that may be upgraded to a WebSocket."""

    origin: kinds.Origin
    path: kinds.UpgradePath


class CredentialRoute(Config, frozen=True):
    """How a client uses a credential provider."""

    name: kinds.ServiceName
    provider: Annotated[kinds.ServiceName, _about("One of credential_providers.")]
    env_var: Annotated[kinds.Variable | None, _about("Variable in which the client looks for a token.")] = None
    base_url_env_var: Annotated[kinds.Variable | None, _about("Variable in which it looks for the service's URL.")] = (
        None
    )
    endpoint_policy: Annotated[EndpointPolicy | None, _about("Which requests are allowed.")] = None
    upgrades: Annotated[tuple[OriginUpgrade, ...], _about("Paths that may become WebSockets; no effect yet.")] = ()


Names = Annotated[str, Meta(pattern=kinds.SERVICE_NAME)]


class Profile(Config, frozen=True):
    """A profile: nono's format, of which the network is ours."""

    extends: Annotated[
        kinds.ProfileName | Annotated[tuple[kinds.ProfileName, ...], Meta(min_length=1)] | None,
        _about("Profiles that this one adds to, the first being the most basic."),
    ] = None
    network: Annotated[Network, _about("What may be reached.")] = Network()
    credential_capture: Annotated[
        dict[Annotated[str, Meta(pattern="^[A-Za-z0-9_]+$")], CredentialCapture],
        _about("Commands whose output is a credential, by name."),
    ] = {}
    credential_providers: Annotated[
        dict[Names, CredentialProvider], _about("Services whose logins stay outside of the sandbox, by name.")
    ] = {}
    credential_routes: Annotated[tuple[CredentialRoute, ...], _about("How clients use credential_providers.")] = ()
    schema: Annotated[Any, Meta(description="For editors: the schema of this file.", extra={IGNORED: True})] = (
        msgspec.field(default=UNSET, name="$schema")
    )
    meta: Annotated[Any, _elsewhere("Name, version, description, author.")] = UNSET
    filesystem: Annotated[Any, _elsewhere("Paths that nono's own sandbox allows.")] = UNSET
    security: Annotated[Any, _elsewhere("Signals, IPC, process information.")] = UNSET
    groups: Annotated[Any, _elsewhere("Groups of paths.")] = UNSET
    commands: Annotated[Any, _elsewhere("Commands that nono starts, or does not.")] = UNSET
    command_policies: Annotated[Any, _elsewhere("A sandbox for each command.")] = UNSET
    command_args: Annotated[Any, _elsewhere("Further arguments.", "brokered_commands")] = UNSET
    linux: Annotated[Any, _elsewhere("Hardening on Linux.")] = UNSET
    env_credentials: Annotated[Any, _elsewhere("Secrets as variables.", "secrets")] = UNSET
    environment: Annotated[Any, _elsewhere("Variables.")] = UNSET
    workdir: Annotated[Any, _elsewhere("The working directory.")] = UNSET
    hooks: Annotated[Any, _elsewhere("Hooks of applications.")] = UNSET
    session_hooks: Annotated[Any, _elsewhere("Scripts before and after a session.")] = UNSET
    rollback: Annotated[Any, _elsewhere("Snapshots.", "undo")] = UNSET
    diagnostics: Annotated[Any, _elsewhere("What nono prints.")] = UNSET
    open_urls: Annotated[Any, _elsewhere("URLs that may be opened in a browser.")] = UNSET
    packs: Annotated[Any, _elsewhere("Packs of nono's registry.")] = UNSET
    policy: Annotated[Any, _elsewhere("Older names of other keys.")] = UNSET
    binary: Annotated[Any, _elsewhere("The command to run.")] = UNSET
    skipdirs: Annotated[Any, _elsewhere("Directories that are not scanned.")] = UNSET
    interactive: Annotated[Any, _elsewhere("A terminal.")] = UNSET
    allow_gpu: Annotated[Any, _elsewhere("Devices.")] = UNSET
    allow_launch_services: Annotated[Any, _elsewhere("Applications on macOS.")] = UNSET
    allow_parent_of_protected: Annotated[Any, _elsewhere("Paths on macOS.")] = UNSET
    unsafe_macos_seatbelt_rules: Annotated[Any, _elsewhere("Rules for macOS.")] = UNSET
