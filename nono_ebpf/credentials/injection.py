"""Where in a request a credential stands: what a client shows in its place is taken out, the real one put in.

A client shows the session token where its key belongs (a *phantom*), or nothing. Nothing of it is sent on: a request
carries one credential, ours. Anything else in such a place is somebody's own credential, by which a permitted host
would serve another account; such a request is to be refused.

Knows header fields (RFC 9110 §5, §11.6), Basic (RFC 7617), paths and queries (RFC 3986 §3.3, §3.4). Pure. Must not know
where a credential is kept, nor who may use it.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote, unquote_to_bytes

from nono_ebpf.errors import ClientProtocolError, CredentialUnavailable
from nono_ebpf.wire.http1 import NONO_TOKEN, Fields, end_to_end, one_spelling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nono_ebpf.credentials.secret import Secret
    from nono_ebpf.session_token import Token

InjectMode = Literal["header", "url_path", "query_param", "basic_auth"]
Mechanism = Literal["phantom_header", "phantom_path", "phantom_query"]
STAND_IN: Final = "{}"

_IN_A_FIELD: Final = frozenset(("header", "basic_auth"))
# Where keys are sent, whatever the service: in these fields nothing but the phantom is a client's to send.
_CUSTOMARY_FIELDS: Final = frozenset(
    (b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key", b"private-token", b"job-token", b"deploy-token",
     NONO_TOKEN)
)  # fmt: skip
# What is left of a value whose key was an empty variable.
_NO_KEY: Final = frozenset((b"", b"basic", b"bearer", b"token"))
# GitLab's and RFC 6750 §2.3: some servers prefer them to what a field says.
_KEY_PARAMETERS: Final = frozenset((b"private_token", b"job_token", b"access_token"))
# Too common as names to be refused; the audit log takes them for credentials.
_CUSTOMARY_PARAMETERS: Final = frozenset((b"key", b"api_key")) | _KEY_PARAMETERS
# The parameter that is the same as a field, where that is how a service is asked.
_SAME_AS_FIELD: Final = {b"x-goog-api-key": b"key"}
# RFC 9110 §11.4: credentials = auth-scheme [ 1*SP … ]
_WITH_SCHEME: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) +(.+)", re.DOTALL)
_SEPARATOR: Final = re.compile("([&;])")  # the semicolon is one to older servers (HTML 4.01 §B.2.2)
_UNICODE_ESCAPE: Final = re.compile(rb"%u00([0-9A-Fa-f]{2})", re.IGNORECASE)
_PHANTOM_BYTES: Final = 64  # what is shorter needs no closer look (`session_token`)
_DECODINGS: Final = 2  # a server behind a server: each undoes one
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
# A segment of dots is none; some servers decode before they cut, and some cut at a semicolon.
_DOTS: Final = re.compile(rb"(?:^|[/\\;])\.\.?(?:$|[/\\;])")
# RFC 3986 §3.3: pchar, but for the semicolon, behind which some servers read parameters.
_SEGMENT_SAFE: Final = "!$&'()*+,=:@"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where in a request a credential stands.

    `format` None: `Bearer {}` in Authorization, `{}` elsewhere. `path_pattern` has exactly one `{}`, the slot: a
    segment or a part of one. `path_replacement` None: `path_pattern`.
    """

    mode: InjectMode = "header"
    header: str = "Authorization"
    format: str | None = None
    path_pattern: str | None = None
    path_replacement: str | None = None
    query_param: str | None = None


@dataclass(frozen=True, slots=True)
class Injection:
    """Where the real credential goes, and where the client shows its phantom when it does as it was told."""

    outbound: Placement
    client: Placement


class Presented(StrEnum):
    """What a client shows where credentials stand. FOREIGN: something else than the phantom, also beside it."""

    NOTHING = "nothing"
    PHANTOM = "phantom"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Read:
    """A request without its phantom.

    `target` is what is to be judged and sent, with `{}` at `slot` when the credential goes into the path. `foreign`
    names the place in which something else than the phantom stands.
    """

    presented: Presented
    mechanism: Mechanism | None
    fields: Fields
    target: str
    slot: int | None = None
    foreign: str | None = None


def read_phantom(injection: Injection, fields: Fields, target: str, token: Token) -> Read:
    """What a request shows in any place where a credential may stand, and the request without it.

    `target` is canonical (`policy.endpoints.parse_path`). `fields` are all that the client sent: what is not passed on,
    such as a field that Connection names, is read as well.
    """
    found = _Findings(token)
    kept = tuple(_without_credentials(injection, fields, found))
    path, mark, query = target.partition("?")
    path, slot = _without_slot(injection, path, found)
    if query:
        query = _without_parameters(injection, query, found)
        mark = "?" if query else ""
    return Read(found.presented(), found.mechanism(), kept, path + mark + query, slot, found.foreign)


def inject(injection: Injection, read: Read, secret: Secret, *, name: str) -> tuple[Fields, str]:
    """The fields and the target to send, with the credential `name` in them.

    The fields are those that may be passed on (`http1.end_to_end`), so no Connection field takes the credential out.

    Raises:
        CredentialUnavailable: its value cannot stand there.
        ClientProtocolError: it belongs into the path, and this path has no place for it.
    """
    if read.presented is Presented.FOREIGN:
        raise ValueError("a request with a credential of its own is never sent")
    outbound, value = injection.outbound, secret.reveal()
    if problem := _problem(outbound, value):
        raise CredentialUnavailable(name, *problem)
    fields = tuple(end_to_end(read.fields))
    if outbound.mode == "url_path":
        return fields, _with_slot_filled(injection, read, value)
    if outbound.mode == "query_param":
        if not read.target.startswith("/"):
            raise ClientProtocolError("this service takes its key in the query, and this request has no path")
        if _has_escaped_query(read.target.partition("?")[0]):
            raise ClientProtocolError("this service takes its key in the query, of which the path has another (%3F)")
        mark = "&" if "?" in read.target else "?"
        return fields, f"{read.target}{mark}{quote(outbound.query_param or '')}={quote(value, safe='')}"
    own = outbound.header.encode()
    others = (field for field in fields if one_spelling(field[0]) != one_spelling(own))
    return (*others, (own, _field_value(outbound, value))), read.target


def _has_escaped_query(path: str) -> bool:
    """Whether a server that is handed a decoded path would find a query in it."""
    decoded = path.encode()
    for _ in range(_DECODINGS):
        decoded = unquote_to_bytes(decoded)
    return b"?" in decoded


def revealing(injection: Injection, secret: Secret) -> tuple[bytes, ...]:
    """What must not come back in a response: what a `wire.scrub.Scrubber` is to look for.

    That is the credential and, where it is sent in another form, that form, which may be encoded once more.
    """
    value = secret.reveal()
    match injection.outbound.mode:
        case "basic_auth":
            return (value, value.partition(b":")[2], base64.b64encode(value))
        case "query_param":
            return (value, quote(value, safe="").encode())
        case "url_path":
            return (value, quote(value, safe=_SEGMENT_SAFE).encode())
        case "header":
            return (value,)


def redacted_target(injection: Injection, target: str) -> str:
    """A canonical target as an audit log may have it: `{}` for whatever stands where a credential does."""
    path, mark, query = target.partition("?")
    for placement in (injection.client, injection.outbound):
        for pattern in filter(None, (placement.path_pattern, placement.path_replacement)):
            path = _slot(pattern).sub(_with_stand_in, path)
    names = _parameters(injection) | _CUSTOMARY_PARAMETERS
    pieces = (separator + _redacted(piece, names) for separator, piece in _pieces(query))
    return path + mark + "".join(pieces)


class _Findings:
    """What a request has shown so far."""

    def __init__(self, token: Token) -> None:
        self.is_phantom = token.matches
        self.phantoms: list[Mechanism] = []
        self.foreign: str | None = None

    def presented(self) -> Presented:
        if self.foreign is not None:
            return Presented.FOREIGN
        return Presented.PHANTOM if self.phantoms else Presented.NOTHING

    def mechanism(self) -> Mechanism | None:
        return self.phantoms[0] if self.presented() is Presented.PHANTOM else None


# ---------------------------------------------------------------- fields


def _without_credentials(injection: Injection, fields: Fields, found: _Findings) -> Iterator[tuple[bytes, bytes]]:
    """The fields in which no credential stands.

    Services have names of their own, so the phantom is found and taken out under any. A field with a customary name
    holds nothing else, and there is one of each: of two, a server could take the other.
    """
    credentials = _CUSTOMARY_FIELDS | _headers(injection)
    seen: set[bytes] = set()
    for name, value in fields:
        folded = one_spelling(name)
        if len(value) < _PHANTOM_BYTES and folded not in credentials:
            yield name, value
            continue
        shown = _shown(injection.client, folded, value, found)
        if shown is Presented.PHANTOM:
            found.phantoms.append("phantom_header")
        elif folded not in credentials:
            yield name, value
            continue
        if shown is Presented.FOREIGN or folded in seen:
            found.foreign = f"the field {name.decode()}"
        seen.add(folded)


def _shown(client: Placement, folded: bytes, value: bytes, found: _Findings) -> Presented:
    own = client.mode in _IN_A_FIELD and folded == one_spelling(client.header.encode())
    before, after = _template(client) if own and client.mode == "header" else (b"", b"")
    login = _login(value)
    if value.lower() in _NO_KEY or value.lower() == before.strip(b" ").lower() or login == (b"", b""):
        return Presented.NOTHING
    offers = [*login]
    # Whoever is to send a user and a password is not let through with anything else.
    if not (own and client.mode == "basic_auth"):
        offers.append(value)
        offers += [match[2]] if (match := _WITH_SCHEME.fullmatch(value)) else []
        if value[: len(before)].lower() == before.lower() and value.endswith(after):
            offers.append(value[len(before) : len(value) - len(after)])
    return Presented.PHANTOM if any(map(found.is_phantom, offers)) else Presented.FOREIGN


def _login(value: bytes) -> tuple[bytes, ...]:
    """User and password of Basic (RFC 7617 §2), each of which is where some service has its key; () for all else."""
    match = _WITH_SCHEME.fullmatch(value)
    if match is None or match[1].lower() != b"basic":
        return ()
    try:
        user, _, password = base64.b64decode(match[2], validate=True).partition(b":")
    except binascii.Error:
        return ()
    return user, password


def _headers(injection: Injection) -> set[bytes]:
    placements = (injection.client, injection.outbound)
    return {one_spelling(each.header.encode()) for each in placements if each.mode in _IN_A_FIELD}


def _format(placement: Placement) -> str:
    if placement.format is not None:
        return placement.format
    return f"Bearer {STAND_IN}" if placement.header.lower() == "authorization" else STAND_IN


def _template(placement: Placement) -> tuple[bytes, bytes]:
    """What stands before and behind the secret."""
    before, _, after = _format(placement).partition(STAND_IN)
    return before.encode(), after.encode()


def _field_value(placement: Placement, value: bytes) -> bytes:
    if placement.mode == "basic_auth":
        return b"Basic " + base64.b64encode(value)
    return _format(placement).encode().replace(STAND_IN.encode(), value)


# ---------------------------------------------------------------- the path


def _without_slot(injection: Injection, path: str, found: _Findings) -> tuple[str, int | None]:
    """`path` as it is to be sent, and where in it the credential goes."""
    client, outbound = injection.client, injection.outbound
    shown = client if client.mode == "url_path" else outbound
    if shown.mode != "url_path":
        return path, None
    matches = list(_slot(shown.path_pattern or "").finditer(path))
    _note_slots(matches, found, phantom_only=shown is client)
    if not matches:
        return path, None
    before, after = path[: matches[0].start()], path[matches[0].end() :]
    if outbound.mode != "url_path":
        return before + after or "/", None
    opening, closing = _halves(outbound.path_replacement or outbound.path_pattern or "")
    return before + opening + STAND_IN + closing + after, len(before + opening)


def _note_slots(matches: list[re.Match[str]], found: _Findings, *, phantom_only: bool) -> None:
    """The first is filled anew, and any other would be sent as it is.

    A client that shows its phantom elsewhere may have anything in the first.
    """
    for number, match in enumerate(matches):
        phantom = found.is_phantom(match["slot"].encode())
        if phantom and number == 0:
            found.phantoms.append("phantom_path")
        elif phantom or (phantom_only and number == 0):
            found.foreign = "the path"


def _with_slot_filled(injection: Injection, read: Read, value: bytes) -> str:
    if read.slot is None:
        pattern = injection.client.path_pattern or injection.outbound.path_pattern
        raise ClientProtocolError(f"this service takes its key in the path, as in {pattern}, and this path has no such")
    rest = read.target[read.slot + len(STAND_IN) :]
    return read.target[: read.slot] + quote(value, safe=_SEGMENT_SAFE) + rest


@lru_cache(maxsize=256)
def _slot(pattern: str) -> re.Pattern[str]:
    """Matches whole segments, one of them with what stands in the slot; the slash behind them is not a part."""
    before, after = map(re.escape, _halves(pattern))
    end = "(?=/)" if pattern.endswith("/") else r"(?=/|\Z)"
    return re.compile(f"(?P<before>{before})(?P<slot>[^/]+?)(?P<after>{after}){end}")


def _halves(pattern: str) -> tuple[str, str]:
    """What stands before and behind the slot in the whole segments of a canonical path."""
    before, _, after = (quote(part, safe=f"/%;{_SEGMENT_SAFE}") for part in pattern.partition(STAND_IN))
    return before if before.startswith("/") else f"/{before}", after.removesuffix("/")


def _with_stand_in(match: re.Match[str]) -> str:
    return match["before"] + STAND_IN + match["after"]


# ---------------------------------------------------------------- the query


def _without_parameters(injection: Injection, query: str, found: _Findings) -> str:
    """The parameters in which no credential stands. The phantom is found under any name, in either role."""
    names = _KEY_PARAMETERS | _parameters(injection)
    kept: list[str] = []
    seen: set[bytes] = set()
    for separator, piece in _pieces(query):
        name, _, value = piece.partition("=")
        folded = _parameter(name)
        named = folded in names
        phantom = len(piece) >= _PHANTOM_BYTES and found.is_phantom(_decoded(value or name))
        if phantom:
            found.phantoms.append("phantom_query")
        elif not named:
            kept += [separator if kept else "", piece]
            continue
        if named and (folded in seen or (value and not phantom)):
            found.foreign = f"the query parameter {name[:100]}"
        seen.add(folded)
    return "".join(kept)


def _pieces(query: str) -> Iterator[tuple[str, str]]:
    """Every parameter, as it is written, with the separator in front of it."""
    parts = ["", *_SEPARATOR.split(query)]
    return zip(parts[::2], parts[1::2], strict=True)


def _parameters(injection: Injection) -> set[bytes]:
    placements = (injection.client, injection.outbound)
    same = {_SAME_AS_FIELD[name] for name in _headers(injection) & _SAME_AS_FIELD.keys()}
    return same | {_parameter(each.query_param or "") for each in placements if each.mode == "query_param"}


def _parameter(name: str) -> bytes:
    """One spelling for what servers may take for the same parameter.

    Some decode twice, ignore case, cut at a NUL or a bracket (the first of a list), leave out brackets in front (Rack),
    or write `_` for what their language has no variables with.
    """
    text = name.replace("+", " ").encode()
    for _ in range(_DECODINGS if b"%" in text else 0):
        text = unquote_to_bytes(_UNICODE_ESCAPE.sub(rb"%\1", text)).replace(b"+", b" ")
    text = re.split(rb"[\[\]\0]", text.strip(b"[]\0 \t\r\n\v\f"), maxsplit=1)[0]
    return text.lower().replace(b".", b"_").replace(b" ", b"_")


def _decoded(value: str) -> bytes:
    return unquote_to_bytes(value.replace("+", " "))


def _redacted(piece: str, names: set[bytes]) -> str:
    name, equals, value = piece.partition("=")
    return name + equals + (STAND_IN if value and _parameter(name) in names else value)


# ---------------------------------------------------------------- values


def _problem(outbound: Placement, value: bytes) -> tuple[str, str] | None:
    """Why `value` cannot stand where it should, as a state and a clause; None: it can."""
    if not value:
        return "empty", "it is empty"
    if b"\n" in value or b"\r" in value:
        return "has_newline", "it has a line break, which no request can carry; store it without"
    if _CONTROL.search(value):
        return "malformed", "it has a control character, which no request can carry; store it without"
    if outbound.mode == "header" and _field_value(outbound, value).strip(b" ") != _field_value(outbound, value):
        return "malformed", "it begins or ends with a blank, which no header field can; store it without"
    if outbound.mode == "basic_auth" and b":" not in value:
        return "malformed", "it is not user:password, which basic_auth needs"
    if outbound.mode == "url_path" and _DOTS.search(value):
        return "malformed", "it has a path segment of dots, which leads elsewhere in a path"
    return None
