"""Where a client may show its phantom, what is refused beside it, and where the real credential goes."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from nono_ebpf.credentials.injection import (
    Injection,
    Placement,
    Presented,
    Read,
    inject,
    read_phantom,
    redacted_target,
    revealing,
)
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.errors import ClientProtocolError, CredentialUnavailable
from nono_ebpf.session_token import Token

if TYPE_CHECKING:
    from nono_ebpf.wire.http1 import Fields

PHANTOM = "0123456789abcdef" * 4
FOREIGN = "f" * 64
TOKEN = Token(PHANTOM)
REAL = "sk-real/+key=1"


def same(placement: Placement) -> Injection:
    return Injection(placement, placement)


BEARER = same(Placement())
API_KEY = same(Placement(header="X-Api-Key"))
BASIC = same(Placement("basic_auth"))
QUERY = same(Placement("query_param", query_param="key"))
BOT = same(Placement("url_path", path_pattern="/bot{}/"))
MOVED = same(Placement("url_path", path_pattern="/bot{}/", path_replacement="/v2/b-{}"))


def fields(*lines: str) -> Fields:
    return tuple(
        (name.encode(), value.encode("latin-1")) for name, _, value in (line.partition(": ") for line in lines)
    )


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def read(injection: Injection, *lines: str, target: str = "/v1") -> Read:
    return read_phantom(injection, fields(*lines), target, TOKEN)


def sent(injection: Injection, *lines: str, target: str = "/v1", value: str | bytes = REAL) -> tuple[Fields, str]:
    """What goes to the server for a request that may go there."""
    secret = Secret(value if isinstance(value, bytes) else value.encode())
    return inject(injection, read(injection, *lines, target=target), secret, name="a")


# ---------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("injection", "line"),
    [
        pytest.param(API_KEY, f"x-api-key: {PHANTOM}", id="T5"),
        pytest.param(same(Placement(header="x-goog-api-key")), f"X-Goog-Api-Key: {PHANTOM}", id="T5-google"),
        pytest.param(BEARER, f"AUTHORIZATION: Bearer {PHANTOM}", id="T5-case"),
        (BEARER, f"authorization: bEaReR   {PHANTOM}"),
        (BEARER, f"Authorization: token {PHANTOM}"),
        (BEARER, f"Authorization: ApiKey {PHANTOM}"),
        (BEARER, f"Authorization: {PHANTOM}"),
        (BEARER, f"Authorization: {basic(f'x:{PHANTOM}')}"),
        (BEARER, f"Authorization: {basic(f'{PHANTOM}:')}"),
        (BEARER, f"Authorization: {basic(PHANTOM)}"),
        (BEARER, f"x-api-key: {PHANTOM}"),
        (BEARER, f"api-key: {PHANTOM}"),
        (BEARER, f"X-Nono-Token: {PHANTOM}"),
        (BEARER, f"Proxy-Authorization: {basic(f'nono:{PHANTOM}')}"),
        (BEARER, f"PRIVATE-TOKEN: {PHANTOM}"),
        (QUERY, f"Authorization: Bearer {PHANTOM}"),
        (BOT, f"X-API-KEY: {PHANTOM}"),
        pytest.param(BASIC, f"Authorization: {basic(f'user:{PHANTOM}')}", id="#1683"),
        (BASIC, f"Authorization: basic {base64.b64encode(f'{PHANTOM}:x'.encode()).decode()}"),
        (BASIC, f"x-api-key: {PHANTOM}"),
        (same(Placement(header="X-Key", format="Key={};v=1")), f"x-key: KEY={PHANTOM};v=1"),
        (Injection(Placement(), Placement(header="X-Mine", format="my {}")), f"X-Mine: MY {PHANTOM}"),
    ],
)
def test_a_phantom_in_a_field(injection: Injection, line: str) -> None:
    """Any customary field, any scheme and the service's own format will do; nothing of it is left."""
    it = read(injection, "Host: a.test", line, "Accept: */*")
    assert (it.presented, it.mechanism, it.foreign) == (Presented.PHANTOM, "phantom_header", None)
    assert it.fields == fields("Host: a.test", "Accept: */*")


@pytest.mark.parametrize(
    ("injection", "line"),
    [
        (BEARER, f"Authorization: Bearer {FOREIGN}"),
        (BEARER, f"Authorization: Bearer {PHANTOM}0"),
        (BEARER, f"Authorization: Bearer {PHANTOM.upper()}"),
        (BEARER, f"Authorization: Bearer {PHANTOM} {PHANTOM}"),
        (BEARER, f"Authorization: Bearer {PHANTOM}, Bearer {FOREIGN}"),
        (BEARER, f"Authorization: {basic(f'a:b:{PHANTOM}')}"),
        (BEARER, "Authorization: Basic !!!"),
        (BEARER, "Authorization: Digest username=nono"),
        (BEARER, "x-api-key: dummy"),
        (BEARER, "X_Api_Key: dummy"),
        (BEARER, "X-Nono-Token: 1"),
        (QUERY, "Authorization: Bearer dummy"),
        (BOT, "x-goog-api-key: dummy"),
        (same(Placement(header="X-Mine")), "x-mine: dummy"),
        (Injection(Placement(header="X-Mine"), Placement()), "x_mine: dummy"),
        pytest.param(BASIC, f"Authorization: Bearer {PHANTOM}", id="#1683"),
        (BASIC, f"Authorization: {PHANTOM}"),
        (BASIC, f"Authorization: {basic(f'user:{FOREIGN}')}"),
    ],
)
def test_a_credential_of_the_clients_own_in_a_field(injection: Injection, line: str) -> None:
    """What is not the phantom is refused where credentials stand, and the place is named, but not what stood there."""
    it = read(injection, line, f"X-Other: {PHANTOM}")
    assert (it.presented, it.mechanism, it.fields) == (Presented.FOREIGN, None, ())
    assert it.foreign == f"the field {line.partition(':')[0]}"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Host: a.test", "Cookie: key=abc", "X-Custom: 1"],
        ["Cookie: sk-session", f"X-Digest: sha256:{FOREIGN}"],
    ],
)
def test_nothing_in_the_fields(lines: list[str]) -> None:
    """What is no credential field is left alone, Cookie among them."""
    it = read(BEARER, *lines)
    assert (it.presented, it.mechanism, it.fields) == (Presented.NOTHING, None, fields(*lines))


@pytest.mark.parametrize(
    "line",
    [
        *("Authorization: ", "Authorization: Bearer", "authorization: BASIC", "x-api-key: "),
        f"Authorization: {basic(':')}",
    ],
)
def test_a_key_from_an_empty_variable_is_nothing(line: str) -> None:
    """A client without a key is one that shows nothing, and what it sends in its place is taken out."""
    it = read(BEARER, line)
    assert (it.presented, it.fields) == (Presented.NOTHING, ())


@pytest.mark.parametrize(
    "lines",
    [
        [f"Authorization: Bearer {PHANTOM}", f"Authorization: Bearer {FOREIGN}"],
        [f"Authorization: Bearer {PHANTOM}", f"authorization: Bearer {PHANTOM}"],
        ["Authorization: ", f"Authorization: Bearer {PHANTOM}"],
        [f"x-api-key: {PHANTOM}", "X_API_KEY: "],
        [f"Authorization: Bearer {PHANTOM}", "x-api-key: dummy"],
    ],
)
def test_a_second_credential_beside_the_phantom(lines: list[str]) -> None:
    """Two of one field are two readings, and a phantom does not vouch for what stands beside it."""
    assert read(BEARER, *lines).presented is Presented.FOREIGN


def test_the_phantom_in_several_fields() -> None:
    """A client that has two variables for one key shows it twice, under two names."""
    it = read(API_KEY, f"Authorization: Bearer {PHANTOM}", f"X-Api-Key: {PHANTOM}")
    assert (it.presented, it.fields) == (Presented.PHANTOM, ())


# ---------------------------------------------------------------- the query


@pytest.mark.parametrize(
    ("injection", "target", "left"),
    [
        (QUERY, f"/v1?key={PHANTOM}", "/v1"),
        (QUERY, f"/v1?a=1&key={PHANTOM}&b=2", "/v1?a=1&b=2"),
        (QUERY, f"/v1?%6bey={PHANTOM}&a=%3b;b", "/v1?a=%3b;b"),
        (QUERY, f"/v1?a=1;KEY={PHANTOM};b", "/v1?a=1;b"),
        (QUERY, f"/v1?key=%30{PHANTOM[1:]}", "/v1"),
        (QUERY, f"/v1?api_key={PHANTOM}", "/v1"),
        (QUERY, f"/v1?key=&access_token={PHANTOM}", "/v1"),
        (BEARER, f"/v1?access_token={PHANTOM}&x", "/v1?x"),
        (BEARER, f"/v1?{PHANTOM}", "/v1"),
        (Injection(Placement(), Placement("query_param", query_param="t")), f"/v1?t={PHANTOM}&u=1", "/v1?u=1"),
    ],
)
def test_a_phantom_in_the_query(injection: Injection, target: str, left: str) -> None:
    """Under whatever name and spelling; the other parameters stay as they are."""
    it = read(injection, target=target)
    assert (it.presented, it.mechanism, it.target) == (Presented.PHANTOM, "phantom_query", left)


@pytest.mark.parametrize("target", ["/v1", "/v1?", "/v1?a=1;b&&c", "/v1?keys=1&a=key;monkey=2", "/v1?key&a=1", "*"])
def test_nothing_in_the_query(target: str) -> None:
    """Other parameters are the client's own, and a parameter without a value shows nothing."""
    it = read(QUERY, target=target)
    assert (it.presented, it.target) == (Presented.NOTHING, target.replace("key&", ""))


@pytest.mark.parametrize(
    "query",
    [
        *("key=dummy", "KEY=dummy", "%6bey=dummy", "%256bey=dummy", "%u006bey=dummy", "a=1;key=dummy", "key[]=dummy"),
        *("key%5B0%5D=dummy", "+key=dummy", "key%00x=dummy", "%20key+=dummy", "a&key==", "key%5b=dummy"),
        *("[key]=dummy", "key]=dummy", "%5Bkey=dummy", "]key[x]=dummy", "[[key]]=dummy", "%255bkey%5d=dummy"),
        f"key={FOREIGN}",
        f"key={PHANTOM}&key={FOREIGN}",
        f"key={PHANTOM}&key={PHANTOM}",
        f"key={PHANTOM}&%4bEY={FOREIGN}",
        f"key={PHANTOM}&a;key=x",
        f"key={PHANTOM}&key",
        f"key[]={PHANTOM}&key=x",
    ],
)
def test_another_value_for_the_parameter(query: str) -> None:
    """No spelling that some server takes for the parameter survives beside the injected one."""
    assert read(QUERY, target=f"/v1?{query}").presented is Presented.FOREIGN


GOOGLE = same(Placement(header="x-goog-api-key"))


@pytest.mark.parametrize(
    ("injection", "query"),
    [
        *((BEARER, f"a=1&{name}=x") for name in ("private_token", "PRIVATE_TOKEN", "job_token", "access_token")),
        (GOOGLE, "key=x"),
        (GOOGLE, f"key={PHANTOM}&%6bey=x"),
    ],
)
def test_a_key_in_the_query_beside_one_in_a_field(injection: Injection, query: str) -> None:
    """Servers that take both prefer the query's: the request would be another account's."""
    assert read(injection, target=f"/v1?{query}").presented is Presented.FOREIGN


def test_a_common_name_in_the_query_is_the_clients_own() -> None:
    """Where it means no credential; and the phantom goes, wherever it stands."""
    assert read(BEARER, target="/v1?key=x&api_key=y&access_token=").target == "/v1?key=x&api_key=y"
    assert read(GOOGLE, target=f"/v1?key={PHANTOM}").target == "/v1"


def test_names_that_a_language_has_no_variables_with() -> None:
    """Dots and blanks in names are underscores to some servers."""
    under = same(Placement("query_param", query_param="api_key"))
    for name in ("api.key", "api+key", "api%20key", "API%2Ekey"):
        assert read(under, target=f"/?{name}=x").foreign == f"the query parameter {name}"


# ---------------------------------------------------------------- the path


@pytest.mark.parametrize(
    ("pattern", "target", "left"),
    [
        ("/bot{}/", f"/bot{PHANTOM}/getMe?a=1", "/bot{}/getMe?a=1"),
        ("bot{}/", f"/x/bot{PHANTOM}/getMe", "/x/bot{}/getMe"),
        ("/v1/{}/x", f"/v1/{PHANTOM}/x/y", "/v1/{}/x/y"),
        ("/v1/{}", f"/v1/{PHANTOM}", "/v1/{}"),
        ("/{}/", f"/{PHANTOM}/a/b", "/{}/a/b"),
        ("/k:{}:k/", f"/k:{PHANTOM}:k/b", "/k:{}:k/b"),
    ],
)
def test_a_phantom_in_the_path(pattern: str, target: str, left: str) -> None:
    """The slot is found wherever the pattern is; what is judged shows where the credential will stand."""
    it = read(same(Placement("url_path", path_pattern=pattern)), target=target)
    assert (it.presented, it.mechanism, it.target) == (Presented.PHANTOM, "phantom_path", left)
    assert it.slot == left.index("{}")


@pytest.mark.parametrize("target", ["/", "/getMe", "/bot/getMe", f"/bot{PHANTOM}", f"/robot{PHANTOM}/x", "/x?a=/bot1/"])
def test_a_path_without_the_pattern(target: str) -> None:
    """It shows nothing, and a credential cannot be put into it: the answer says what is expected."""
    it = read(BOT, target=target)
    assert (it.presented, it.slot, it.target) == (Presented.NOTHING, None, target)
    with pytest.raises(ClientProtocolError, match=r"/bot\{\}/"):
        inject(BOT, it, Secret(REAL.encode()), name="a")


@pytest.mark.parametrize(
    "target", [f"/bot{FOREIGN}/getMe", "/botX/getMe", f"/botX/bot{PHANTOM}/", f"/bot{PHANTOM}/x/bot{PHANTOM}/"]
)
def test_another_value_in_the_slot(target: str) -> None:
    """The first slot is the one that counts, and no other may hold the phantom, which would be sent."""
    it = read(BOT, target=target)
    assert (it.presented, it.foreign) == (Presented.FOREIGN, "the path")


@pytest.mark.parametrize(
    ("pattern", "target", "left"),
    [
        ("/{}/", f"/{PHANTOM}/api/v1?x=1", "/api/v1?x=1"),
        ("/bot{}/", f"/x/bot{PHANTOM}/y", "/x/y"),
        ("/k/{}", f"/x/k/{PHANTOM}/y", "/x/y"),
        ("/k/{}", f"/x/k/{PHANTOM}", "/x"),
        ("/{}", f"/{PHANTOM}", "/"),
        ("/{}/", f"/{PHANTOM}/", "/"),
    ],
)
def test_a_path_that_only_the_client_has_the_slot_in(pattern: str, target: str, left: str) -> None:
    """When the credential goes elsewhere, the server's path is the one without it."""
    injection = Injection(Placement(), Placement("url_path", path_pattern=pattern))
    assert read(injection, target=target).target == left
    assert sent(injection, target=target) == (fields(f"Authorization: Bearer {REAL}"), left)


def test_a_slot_that_only_the_server_has() -> None:
    """The client shows its phantom elsewhere and writes anything where the server wants the key: it is not sent."""
    injection = Injection(Placement("url_path", path_pattern="/bot{}/"), Placement())
    line = f"Authorization: Bearer {PHANTOM}"
    assert sent(injection, line, target="/botX/getMe", value="123:abc") == ((), "/bot123:abc/getMe")
    assert read(injection, line, target=f"/botX/bot{PHANTOM}/").presented is Presented.FOREIGN


# ---------------------------------------------------------------- injecting


@pytest.mark.parametrize(
    ("placement", "field"),
    [
        pytest.param(Placement(), f"Authorization: Bearer {REAL}", id="R14"),
        pytest.param(Placement(header="authorization"), f"authorization: Bearer {REAL}", id="R14-case"),
        pytest.param(Placement(header="X-Api-Key"), f"X-Api-Key: {REAL}", id="R14-other"),
        (Placement(format="token {}"), f"Authorization: token {REAL}"),
        (Placement(header="X-K", format="a={} b"), f"X-K: a={REAL} b"),
        (Placement(format="{}"), f"Authorization: {REAL}"),
    ],
)
def test_into_a_field(placement: Placement, field: str) -> None:
    """In its format, behind the client's own fields, and the target stays as it is."""
    assert sent(same(placement), "Accept: */*", target="/v1?a=1") == (fields("Accept: */*", field), "/v1?a=1")


def test_basic() -> None:
    """`user:password` as it is kept, whatever is in the password."""
    expected = fields(f"Authorization: {basic('user:p:ss ')}")
    assert sent(BASIC, f"Authorization: {basic(f'u:{PHANTOM}')}", value="user:p:ss ") == (expected, "/v1")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v1", "/v1?key=sk-real%2F%2Bkey%3D1"),
        ("/v1?a=1", "/v1?a=1&key=sk-real%2F%2Bkey%3D1"),
        (f"/v1?key={PHANTOM}&a=1", "/v1?a=1&key=sk-real%2F%2Bkey%3D1"),
        (f"/v1?key={PHANTOM}", "/v1?key=sk-real%2F%2Bkey%3D1"),
    ],
)
def test_into_the_query(target: str, expected: str) -> None:
    """Once, and escaped so that it is one value."""
    assert sent(QUERY, target=target) == ((), expected)


@pytest.mark.parametrize("target", ["*", "/v1%3Fkey=x", "/v1%253fkey=x?a=1"])
def test_a_target_with_no_query_or_with_two(target: str) -> None:
    """OPTIONS * is about no resource, and a path that hides a query leaves it open which of them counts."""
    with pytest.raises(ClientProtocolError):
        sent(QUERY, target=target)
    assert sent(BEARER, target=target)[1] == target


@pytest.mark.parametrize(
    ("value", "segment"),
    [
        ("123456:ABC-DEF_g", "123456:ABC-DEF_g"),
        ("a/b?c#d%e\\f;g", "a%2Fb%3Fc%23d%25e%5Cf%3Bg"),
        ("{}\u00e4 x", "%7B%7D%C3%A4%20x"),
        ("a..b", "a..b"),
    ],
)
def test_into_the_path(value: str, segment: str) -> None:
    """It stays one segment: neither slashes, nor parameters, nor a query can come of it."""
    assert sent(BOT, target=f"/bot{PHANTOM}/getMe?a={{}}", value=value) == ((), f"/bot{segment}/getMe?a={{}}")


def test_into_another_path() -> None:
    """The server's path may be spelled otherwise than the client's."""
    assert sent(MOVED, target=f"/bot{PHANTOM}/getMe", value="k1") == ((), "/v2/b-k1/getMe")


def test_what_ends_at_us_is_gone_and_the_credential_stays() -> None:
    """A Connection field that names the credential's field takes nothing out, whatever the client sent in it."""
    lines = ["Connection: Authorization, X-Mine", "X-Mine: 1", f"Authorization: Bearer {PHANTOM}", "TE: x", "A: b"]
    assert sent(BEARER, *lines)[0] == fields("A: b", f"Authorization: Bearer {REAL}")


def test_the_field_is_sent_once() -> None:
    """Also when fields were added to the request after it was read."""
    it = replace(read(API_KEY), fields=fields("x_api_key: 1", "A: b", "X-API-KEY: 2"))
    assert inject(API_KEY, it, Secret(b"real-key"), name="a")[0] == fields("A: b", "X-Api-Key: real-key")


@pytest.mark.parametrize(
    ("injection", "value", "state"),
    [
        *((BEARER, value, "has_newline") for value in (b"a\nb", b"a\r\nEvil: 1", b"key\n", b"key\r")),
        *((BEARER, value, "malformed") for value in (b"a\0b", b"a\tb", b"a\x7f", b"\x1b[2J", b"key ")),
        (API_KEY, b" key", "malformed"),
        *((injection, b"", "empty") for injection in (BEARER, BASIC, QUERY, BOT)),
        *((injection, b"u:a\nb", "has_newline") for injection in (BASIC, QUERY, BOT)),
        (BASIC, b"no-colon", "malformed"),
        (BASIC, b"u:\0", "malformed"),
        *((BOT, value, "malformed") for value in (b"..", b".", b"../x", b"a/../b", b"x/..;y", b"a\\..")),
    ],
)
def test_a_value_that_cannot_stand_there(injection: Injection, value: bytes, state: str) -> None:
    """The credential is said to be unavailable, by name and without a byte of it."""
    target = f"/bot{PHANTOM}/" if injection is BOT else "/v1"
    with pytest.raises(CredentialUnavailable) as caught:
        sent(injection, target=target, value=value)
    assert (caught.value.name, caught.value.state) == ("a", state)
    assert not value or value.decode() not in str(caught.value)


def test_a_foreign_credential_is_never_sent_on() -> None:
    """Whoever forgets to refuse it gets no request to send."""
    with pytest.raises(ValueError, match="never sent"):
        sent(BEARER, "x-api-key: dummy")


# ---------------------------------------------------------------- what others are told


@pytest.mark.parametrize(
    ("injection", "target", "shown"),
    [
        (BOT, f"/bot{PHANTOM}/getMe?a=1", "/bot{}/getMe?a=1"),
        (BOT, "/botX/botY/getMe", "/bot{}/bot{}/getMe"),
        (MOVED, "/v2/b-abc/getMe", "/v2/b-{}/getMe"),
        (QUERY, "/v1?a=1&key=abc;%4bey=d&key", "/v1?a=1&key={};%4bey={}&key"),
        (BEARER, "/v1?access_token=abc&b=2&?", "/v1?access_token={}&b=2&?"),
        (BEARER, f"/v2/blobs/sha256:{FOREIGN}", f"/v2/blobs/sha256:{FOREIGN}"),
    ],
)
def test_what_the_audit_log_shows(injection: Injection, target: str, shown: str) -> None:
    """Nothing that stands where a credential does, be it the phantom, the credential or a foreign one."""
    assert redacted_target(injection, target) == shown


def test_what_a_response_must_not_have() -> None:
    """The credential, of a login the password alone, and what is sent in their place."""
    assert revealing(BEARER, Secret(b"abc")) == (b"abc",)
    assert revealing(BASIC, Secret(b"user:pass:word")) == (
        *(b"user:pass:word", b"pass:word"),
        b"dXNlcjpwYXNzOndvcmQ=",
    )
    assert revealing(QUERY, Secret(b"a+b/c")) == (b"a+b/c", b"a%2Bb%2Fc")
    assert revealing(BOT, Secret(b"1:a/c")) == (b"1:a/c", b"1:a%2Fc")


def test_they_travel() -> None:
    """What goes to another process of ours comes back as it was."""
    placements = (BOT, QUERY, BEARER, read(BOT, "A: \xff", target=f"/bot{PHANTOM}/x"))
    for it in placements:
        assert msgspec.json.decode(msgspec.json.encode(it), type=type(it)) == it
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(it), type=type(it)) == it
