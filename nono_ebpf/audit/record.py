"""One audit record, and its text forms.

Knows the field names, which users and other programs rely on, and how hostile text is made harmless.
Must not know where records go. A record is opened when something starts, filled by assignment as facts
arrive, and written once, in the `finally` of whatever opened it.

No field can hold a body, a header or a credential, and a path is stored without its query.
The format is NDJSON: one JSON object (RFC 8259) per line, in ASCII, so that no terminal control character,
C1 or bidirectional override in a name survives as a raw byte.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from nono_ebpf.model import FlowOrigin, Process

Event = Literal["flow", "request", "dns", "kernel"]
Mode = Literal[
    "redirect", "redirect_intercept", "connect", "connect_intercept", "http", "reverse", "socks5", "dns", "kernel"
]
Decision = Literal["allow", "deny"]
AuthMechanism = Literal["proxy_authorization", "phantom_header", "phantom_path", "phantom_query", "username_password"]
AuthOutcome = Literal["succeeded", "failed"]

# Long enough for any path that a person will read; a record stays far below a pipe's and a page's size.
TEXT_LIMIT = 2048

# ensure_ascii, the default, escapes DEL and everything outside ASCII.
_ENCODER = json.JSONEncoder(separators=(",", ":"))

# The `denial_category` of what nobody wanted: a name that only a resolver's search list made; a connection to the proxy
# that ended without a request. Recorded, never shown.
SEARCH_LIST, NO_REQUEST = "search_list", "no_request"
UNWANTED = frozenset((SEARCH_LIST, NO_REQUEST))


class Record(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One thing that happened. Fields left at their default are left out of the line.

    `bytes_sent` counts from the sandbox to the upstream, `bytes_received` the other way.
    `pid` and `uid` are those of the initial namespaces, `cgroup` is the cgroup's id.
    `auth_mechanism` and `auth_outcome` are about the session token, which explicit clients of the proxy have to show.
    `route_id` is the service that a request was for; `credential`, by name, and `injection_mode` are what was put in,
    or could not be.
    The `mode` of a connection of which TLS was ended here has `intercept` in it.
    `original_destination` and `resolved_address` are "address:port", IPv6 in brackets; a lookup lists every
    address it was answered with, without ports and separated by blanks. With an `upstream_proxy` ("host:port") the
    `resolved_address` is that proxy's.
    """

    timestamp_unix_ms: int
    event: Event
    mode: Mode
    decision: Decision
    denial_category: str | None = None
    auth_mechanism: AuthMechanism | None = None
    auth_outcome: AuthOutcome | None = None
    flow_id: str | None = None
    sandbox: str | None = None
    pid: int | None = None
    comm: str | None = None
    uid: int | None = None
    cgroup: int | None = None
    original_destination: str | None = None
    identity: str | None = None
    target: str | None = None
    port: int | None = None
    resolved_address: str | None = None
    upstream_proxy: str | None = None
    route_id: str | None = None
    credential: str | None = None
    injection_mode: str | None = None
    rule: str | None = None
    rule_source: str | None = None
    method: str | None = None
    path: str | None = None
    status: int | None = None
    reason: str | None = None
    remedy: str | None = None
    sniff: str | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None
    duration_ms: int | None = None


def open_record(event: Event, mode: Mode, process: Process | None = None, origin: FlowOrigin | None = None) -> Record:
    """A record of something that starts now: a denial until a decision says otherwise.

    `origin` brings its own process; `process` is for what has no flow, such as a lookup.
    """
    record = Record(timestamp_unix_ms=time.time_ns() // 1_000_000, event=event, mode=mode, decision="deny")
    if origin is not None:
        record.original_destination = str(origin.destination)
        process = origin.process
    if process is not None:
        record.pid, record.comm = process.pid, process.comm
        record.uid, record.cgroup = process.uid, process.cgroup_id
    return record


def without_query(target: str) -> str:
    """The path of a request target (RFC 9112 §3.2): queries and fragments carry secrets."""
    return target.partition("?")[0].partition("#")[0]


def to_line(record: Record) -> bytes:
    """The record as one line of ASCII JSON with its line feed. Never raises for hostile text."""
    fields = {name: _bounded(value) for name, value in msgspec.to_builtins(record).items()}
    return _ENCODER.encode(fields).encode("ascii") + b"\n"


def from_line(line: bytes) -> Record:
    """The record that `to_line` wrote. Raises msgspec.ValidationError for a line that is no record."""
    return msgspec.json.decode(line, type=Record)


def printable(text: str, limit: int = 200) -> str:
    """`text` for a terminal: control, format and unassigned characters escaped, at most `limit` characters.

    `str.isprintable` is false for C0, DEL, C1, bidirectional overrides, surrogates and line separators.
    """
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:limit])
    return shown if len(shown) <= limit and len(text) <= limit else shown[: limit - 1] + "…"


def where(record: Record) -> str:
    """The target for a person: "host:port", or what the program dialled when no host is known."""
    if record.target is None:
        return record.original_destination or "?"
    if record.port is None:
        return record.target
    return f"[{record.target}]:{record.port}" if ":" in record.target else f"{record.target}:{record.port}"


def _bounded(value: object) -> object:
    if not isinstance(value, str):
        return value
    if len(value) > TEXT_LIMIT:
        value = value[: TEXT_LIMIT - 1] + "…"
    # A lone surrogate has no UTF-8 form: strict JSON readers would refuse the whole line.
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
