"""Requests that try to keep a credential of their own, or to take the phantom along, in every spelling."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

from hypothesis import assume, given
from hypothesis import strategies as st

from nono_ebpf.credentials.injection import Injection, Placement, Presented, Read, inject, read_phantom, redacted_target
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.policy.endpoints import parse_path
from nono_ebpf.session_token import Token

if TYPE_CHECKING:
    from nono_ebpf.wire.http1 import Fields

PHANTOM = "0123456789abcdef" * 4
TOKEN = Token(PHANTOM)

placements = st.sampled_from(
    [
        Placement(),
        Placement(header="X-Api-Key"),
        Placement(header="X-Mine", format="mine {}"),
        Placement("basic_auth"),
        Placement("query_param", query_param="key"),
        Placement("query_param", query_param="api_key"),
        Placement("url_path", path_pattern="/bot{}/"),
        Placement("url_path", path_pattern="/v1/{}", path_replacement="/v2/k-{}"),
    ]
)
injections = st.builds(Injection, placements, placements)
names = st.sampled_from(
    ["Authorization", "X-Api-Key", "x_api_key", "X-Mine", "Cookie", "X-Nono-Token", "Connection", "TE", "A"]
)
keys = st.sampled_from([PHANTOM, "real-or-not", "", "f" * 64])
values = st.one_of(
    keys,
    st.sampled_from(["Bearer ", "token ", "mine "]).flatmap(
        lambda scheme: keys.map(lambda key: (scheme + key).strip())
    ),
    keys.map(lambda key: f"Basic {base64.b64encode(f'u:{key}'.encode()).decode()}"),
    st.sampled_from(["Authorization", "X-Mine, x-api-key", "x"]),
)
field_lists = st.lists(st.tuples(names.map(str.encode), values.map(str.encode)), max_size=5).map(tuple)
parameter_names = st.sampled_from(
    ["key", "KEY", "%6bey", "%256bey", "key[]", "+key", "api_key", "api.key", "api%20key", "a", "key%00", "", "k"]
)
parameters = st.tuples(parameter_names, st.sampled_from(["=", ""]), keys).map("".join)
queries = st.lists(st.tuples(st.sampled_from("&;"), parameters), max_size=5).map(
    lambda each: "".join(a + b for a, b in each)[1:]
)
segments = st.sampled_from(["/", "/bot", f"/bot{PHANTOM}", "/botX", "/v1", f"/{PHANTOM}", "/..", "/a%2fb", "/x"])
paths = st.lists(segments, min_size=1, max_size=5).map("".join)
secrets = st.one_of(
    st.text("ab:/?#%;&=+.\\{} ", min_size=1, max_size=12).map(lambda text: f"u:{text}x".encode()),
    st.binary(min_size=1, max_size=12).map(lambda data: b"u:" + re.sub(rb"[\x00-\x20\x7f]", b"", data) + b"x"),
)


def canonical(path: str, query: str) -> str:
    found = parse_path(path + ("?" + query if query else ""))
    assume(found is not None)
    assert found is not None
    return found.target


def folded(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


def readings_of(query: str, name: str) -> list[list[bytes]]:
    """The values of the parameter `name` for servers of several kinds."""
    found = []
    for separators in ("&", "&;"):
        for decodings in (1, 2):
            values = []
            for piece in re.split(f"[{separators}]", query):
                said, _, value = piece.partition("=")
                for _ in range(decodings):
                    said = unquote(said.replace("+", " "))
                said = re.split(r"[\[\0]", said.strip())[0].lower()
                if re.sub("[. ]", "_", said) == name:
                    values.append(unquote_to_bytes(value))
            found.append(values)
    return found


@given(injections, field_lists, paths, queries, secrets)
def test_one_credential_is_sent_and_it_is_ours(
    injection: Injection, fields: Fields, path: str, query: str, value: bytes
) -> None:
    """Whatever a client sends: no server sees the phantom or a second credential where it looks for one."""
    target = canonical(path, query)
    read = read_phantom(injection, fields, target, TOKEN)
    if read.presented is Presented.FOREIGN or (injection.outbound.mode == "url_path" and read.slot is None):
        return
    assume(not re.search(rb"(^|[/\\;])\.\.?($|[/\\;])", value))
    sent, whole = inject(injection, read, Secret(value), name="a")
    outbound = injection.outbound
    for name, each in sent:
        assert PHANTOM.encode() not in (each, each.rpartition(b" ")[2])
        assert folded(name) not in {b"connection", b"te", b"x-nono-token"}
    own = [each for name, each in sent if folded(name) == folded(outbound.header.encode())]
    sent_path, _, sent_query = whole.partition("?")
    if outbound.mode == "header":
        assert [each.endswith(value) for each in own] == [True]
    elif outbound.mode == "basic_auth":
        assert own == [b"Basic " + base64.b64encode(value)]
    elif outbound.mode == "query_param":
        assert all(values == [value] for values in readings_of(sent_query, outbound.query_param or ""))
    else:
        _check_path(injection, read, sent_path, value)
    assert PHANTOM not in [each for _, each in parse_qsl(sent_query)]


def _check_path(injection: Injection, read: Read, sent: str, value: bytes) -> None:
    """The secret is a part of one segment, and every other stays what it was."""
    before, after = read.target[: read.slot], read.target.partition("?")[0][(read.slot or 0) + 2 :]
    assert sent.startswith(before)
    assert sent.endswith(after)
    filled = sent[len(before) : len(sent) - len(after)]
    assert unquote_to_bytes(filled) == value
    assert not set(filled) & set("/?#;\\")
    again = parse_path(sent)
    assert again is None or again.target.count("/") == sent.count("/")


@given(injections, field_lists, paths, queries)
def test_reading_again_finds_nothing(injection: Injection, fields: Fields, path: str, query: str) -> None:
    """What is left of a request shows no credential, and is what was read."""
    read = read_phantom(injection, fields, canonical(path, query), TOKEN)
    if read.presented is Presented.FOREIGN or read.slot is not None:
        return
    again = read_phantom(injection, read.fields, read.target, TOKEN)
    stripped = injection.client.mode == "url_path" and read.mechanism is not None
    assert stripped or (again.presented, again.fields, again.target) == (Presented.NOTHING, read.fields, read.target)


@given(injections, field_lists, paths, queries)
def test_a_phantom_is_neither_shown_nor_overlooked(injection: Injection, fields: Fields, path: str, query: str) -> None:
    """NOTHING is said of requests without it alone, and the audit log has it from no place where it was found."""
    target = canonical(path, query)
    read = read_phantom(injection, fields, target, TOKEN)
    shown = any(value.rpartition(b" ")[2] == PHANTOM.encode() for _, value in fields)
    assert not (shown and read.presented is Presented.NOTHING)
    if read.mechanism == "phantom_path":
        assert redacted_target(injection, target).count(PHANTOM) < target.count(PHANTOM)
