"""TLS that ends at the relay: who is looked into, that all names agree, and what a request has when it goes on."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from typing import Any

import pytest
from kit.hellos import alpn, client_hello
from kit.intercepting import OK, Intercepting
from kit.relaying import AUTHORIZED, TOKEN, Run, run, to_proxy

from nono_ebpf.credentials.injection import Injection, Placement
from nono_ebpf.policy.endpoints import parse_endpoint_rule
from nono_ebpf.policy.rules import Rule
from nono_ebpf.policy.services import Service
from nono_ebpf.relay.secure import SecureUpstream

SECRET = b"sk-live-0123456789abcdef"
__all__ = ["run"]


def service(
    name: str = "api", host: str = "api.test", *endpoints: str, base_path: str = "", tls: bool = True
) -> Service:
    rules = tuple(parse_endpoint_rule(*each.split(" "), "test") for each in endpoints)
    return Service(name, Rule(host, frozenset({443}), name, "test", names_port=True), tls, base_path, rules)


def get(it: Intercepting, path: str = "/v1/models", host: str = "api.test", fields: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}:{it.port}\r\n{fields}\r\n".encode()


def api(*endpoints: str, **said: Any) -> Intercepting:
    return Intercepting({"api": service("api", "api.test", *endpoints)}, {"api": SECRET}, "cdn.test", **said)


def test_a_client_that_shows_nothing_gets_the_credential(run: Run) -> None:
    """The kernel says whose the connection is."""

    async def script() -> None:
        async with api() as it:
            assert (await it.ask("api.test", get(it))).endswith(b"ok")
            (seen,) = it.seen
            assert b"\r\nAuthorization: Bearer " + SECRET + b"\r\n" in seen
            (record,) = await it.ended()
            assert (record.mode, record.decision, record.status) == ("redirect_intercept", "allow", 200)
            assert (record.route_id, record.credential, record.injection_mode) == ("api", "api", "header")
            assert (record.method, record.path, record.rule) == ("GET", "/v1/models", "api")

    run(script())


@pytest.mark.parametrize(
    "fields",
    [
        f"Authorization: Bearer {TOKEN}\r\n",
        f"authorization: {TOKEN}\r\n",
        f"X-Api-Key: {TOKEN}\r\n",
        f"x-goog-api-key: {TOKEN}\r\nConnection: authorization\r\n",
    ],
)
def test_a_phantom_is_replaced_wherever_it_stands(run: Run, fields: str) -> None:
    """T5: nothing of it goes on, and Connection takes nothing of ours out."""

    async def script() -> None:
        async with api() as it:
            await it.ask("api.test", get(it, fields=fields))
            (seen,) = it.seen
            assert TOKEN.encode() not in seen
            assert seen.lower().count(b"\r\nauthorization:") == 1
            assert b"\r\nAuthorization: Bearer " + SECRET + b"\r\n" in seen
            (record,) = await it.ended()
            assert (record.auth_mechanism, record.auth_outcome) == ("phantom_header", "succeeded")

    run(script())


@pytest.mark.parametrize("field", ["Authorization: Bearer sk-mine", "X-Api-Key: mine", "authorization: Basic bWluZTo="])
def test_a_key_of_its_own_is_refused(run: Run, field: str) -> None:
    """401: the host is not used for another account, and nothing is sent."""

    async def script() -> None:
        async with api() as it:
            answer = await it.ask("api.test", get(it, fields=f"{field}\r\n"))
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert (it.seen, it.asked) == ([], 0)
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "authentication_failed")
            assert "mine" not in json.dumps(record.reason)

    run(script())


def test_without_the_credential_nothing_is_sent(run: Run) -> None:
    """503, with its name."""

    async def script() -> None:
        async with api() as it:
            del it.secrets["api"]
            answer = await it.ask("api.test", get(it))
            assert answer.startswith(b"HTTP/1.1 503 ")
            body = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert (body["credential"], body["state"]) == ("api", "missing")
            assert it.seen == []
            (record,) = await it.ended()
            assert (record.denial_category, record.credential) == ("managed_credential_unavailable", "api")

    run(script())


def test_every_request_of_a_connection_is_judged(run: Run) -> None:
    """The second is refused though the first was not; the third is never read."""

    async def script() -> None:
        async with api("GET /v1/**") as it:
            answer = await it.ask("api.test", get(it), get(it, "/v2"))
            assert b"HTTP/1.1 403 " in answer
            assert len(it.seen) == 1
            assert [each.denial_category for each in await it.ended()] == [None, "endpoint_policy"]

    run(script())


def test_what_is_judged_is_what_is_sent(run: Run) -> None:
    """The path is sent in the form that was judged."""

    async def script() -> None:
        async with api("GET /v1/**") as it:
            await it.ask("api.test", get(it, "/v1//x/../models?q=%2e"))
            assert it.seen[0].startswith(b"GET /v1/models?q=%2e HTTP/1.1\r\n")
            (record,) = await it.ended()
            assert record.path == "/v1/models"  # queries hold secrets

    run(script())


@pytest.mark.parametrize("late", [False, True], ids=["with its head", "behind it"])
def test_a_small_body_goes_out_with_its_head(run: Run, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """In one piece, when all of it has come by then. What has not come is not waited for."""
    pieces: list[bytes] = []
    send = SecureUpstream.send

    async def note(self: SecureUpstream, data: bytes, deadline_s: float) -> None:
        pieces.append(data.partition(b"\r\n\r\n")[2] if data.startswith(b"POST") else data)
        await send(self, data, deadline_s)

    monkeypatch.setattr(SecureUpstream, "send", note)

    async def script() -> None:
        async with api() as it:
            reader, writer = await it.secure(await it.connect("api.test"), "api.test")
            head = f"POST /v1 HTTP/1.1\r\nHost: api.test:{it.port}\r\nContent-Length: 4\r\n\r\n".encode()
            writer.write(head if late else head + b"body")
            while not pieces:
                await asyncio.sleep(0.01)
            if late:
                writer.write(b"body")
            await reader.readuntil(b"ok")
            writer.close()
            (seen,) = it.seen
            assert seen.endswith(b"\r\n\r\nbody")
        assert pieces == ([b"", b"body"] if late else [b"body"])

    run(script())


def test_connections_to_the_upstream_are_used_again(run: Run) -> None:
    """By the next request, and by the next client."""

    async def script() -> None:
        async with api() as it:
            for _ in range(2):
                await it.ask("api.test", get(it), get(it))
            assert (len(it.seen), it.connections) == (4, 1)

    run(script())


@pytest.mark.parametrize(("timeout", "connections"), [("timeout=1, max=99", 2), ("timeout=600", 1)])
def test_a_server_says_how_long_it_waits(run: Run, timeout: str, connections: int) -> None:
    """A request on its way to a connection that is being closed would be lost."""

    async def script() -> None:
        async with api() as it:
            it.respond = lambda _head: OK.replace(b"\r\n\r\n", f"\r\nKeep-Alive: {timeout}\r\n\r\n".encode())
            await it.ask("api.test", get(it), get(it))
            assert it.connections == connections

    run(script())


@pytest.mark.parametrize("host", ["cdn.test", "evil.test", "api.test.evil.test"])
def test_another_host_inside_is_misdirected(run: Run, host: str) -> None:
    """421, on every request: whom TLS was for is whom a request is for."""

    async def script() -> None:
        async with api() as it:
            answer = await it.ask("api.test", get(it), get(it, host=host))
            assert b"HTTP/1.1 421 " in answer
            assert len(it.seen) == 1

    run(script())


def test_another_name_in_tls_than_the_connection_is_for(run: Run) -> None:
    """421: a connection to one permitted host cannot become one to another, with its credential."""

    async def script() -> None:
        async with api() as it:
            answer = await it.ask("cdn.test", get(it), server_name="api.test")
            assert answer.startswith(b"HTTP/1.1 421 ")
            assert (it.seen, it.asked) == ([], 0)

    run(script())


def test_through_connect(run: Run) -> None:
    """The tunnel is opened, and what is inside is judged and gets the credential."""

    async def script() -> None:
        async with api() as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT api.test:{it.port}"))
            assert (await client.receive_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            answer = await it.exchange(*await it.secure(client, "api.test"), get(it))
            assert answer.endswith(b"ok")
            assert b"Bearer " + SECRET in it.seen[0]
            (record,) = await it.ended()
            assert (record.mode, record.identity) == ("connect_intercept", "authority")

    run(script())


def test_connect_to_another_host_than_tls_names(run: Run) -> None:
    """SNI and CONNECT target must agree."""

    async def script() -> None:
        async with api() as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT cdn.test:{it.port}"))
            await client.receive_until(b"\r\n\r\n")
            answer = await it.exchange(*await it.secure(client, "api.test"), get(it))
            assert answer.startswith(b"HTTP/1.1 421 ")
            assert it.seen == []

    run(script())


def test_an_unverified_upstream_gets_nothing(run: Run) -> None:
    """A server that cannot prove to be the host is sent neither request nor credential."""

    async def script() -> None:
        async with api(server_names=["other.test"]) as it:
            answer = await it.ask("api.test", get(it))
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert it.seen == []

    run(script())


def test_what_is_echoed_is_covered(run: Run) -> None:
    """In head and body, as it is and encoded; the length stays."""

    async def script() -> None:
        async with api() as it:
            body = b"you sent " + SECRET + b" or " + base64.b64encode(SECRET)
            it.respond = lambda _: (
                b"HTTP/1.1 200 OK\r\nSet-Cookie: k=%b\r\nContent-Length: %d\r\n\r\n%b"
                % (
                    SECRET,
                    len(body),
                    body,
                )
            )
            answer = await it.ask("api.test", get(it))
            assert SECRET not in answer
            assert base64.b64encode(SECRET)[:16] not in answer
            assert b"k=" + b"*" * len(SECRET) in answer
            assert b"Accept-Encoding: identity\r\n" in it.seen[0]

    run(script())


def test_what_another_request_had_is_covered(run: Run) -> None:
    """A log shows another service's credential of that host, and the one that this one's has just replaced."""

    async def script() -> None:
        both = {name: service(name, "api.test", f"* /{name}/**") for name in ("a", "b")}
        async with Intercepting(both, {"a": b"first-of-a-0123", "b": b"only-of-b-01234"}) as it:
            log: list[bytes] = []

            def respond(head: bytes) -> bytes:
                log.append(head)
                text = b"|".join(log)
                return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)

            it.respond = respond
            await it.ask("api.test", get(it, "/a/x"))
            it.secrets["a"] = b"second-of-a-012"
            await it.ask("api.test", get(it, "/a/x"))
            answer = await it.ask("api.test", get(it, "/b/x"))
            assert b"only-of-b-01234" in it.seen[-1]
            assert answer.count(b"Bearer " + b"*" * 15) == 3
            assert b"-of-" not in answer

    run(script())


def test_a_compressed_answer_is_not_passed_on(run: Run) -> None:
    """Nobody could see what is in it."""

    async def script() -> None:
        async with api() as it:
            it.respond = lambda _: b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx"
            assert (await it.ask("api.test", get(it))).startswith(b"HTTP/1.1 502 ")

    run(script())


@pytest.mark.parametrize("charset", ["utf-16", '"UTF-16LE"', "utf-7", "ebcdic-cp-us", "utf-8; charset=utf-32"])
def test_an_answer_in_which_nothing_could_be_found_is_not_passed_on(run: Run, charset: str) -> None:
    """The client chooses the characters, where a server lets it: not those that a credential does not show in."""

    async def script() -> None:
        async with api() as it:
            said = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain;charset={charset}\r\nContent-Length: 2\r\n\r\nxx"
            it.respond = lambda _: said.encode()
            asked = get(it, fields="Accept-Charset: utf-16\r\n")
            assert (await it.ask("api.test", asked)).startswith(b"HTTP/1.1 502 ")
            assert b"utf-16" not in it.seen[0]

    run(script())


@pytest.mark.parametrize(
    "charset", ["", "utf-8", '"UTF-8"', " utf8 ", "us-ascii", "ISO-8859-1", "windows-1252", "Shift_JIS", "binary"]
)
def test_other_charsets_are_passed_on(run: Run, charset: str) -> None:
    """Most have ASCII in them as it is."""

    async def script() -> None:
        async with api() as it:
            said = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset={charset}\r\nContent-Length: 2\r\n\r\nok"
            it.respond = lambda _: said.encode()
            assert (await it.ask("api.test", get(it))).endswith(b"ok")

    run(script())


def test_a_redirect_is_the_clients_to_follow(run: Run) -> None:
    """The credential goes to the host that it is for, and nowhere else."""

    async def script() -> None:
        async with api() as it:
            it.respond = lambda _: b"HTTP/1.1 302 Found\r\nLocation: https://evil.test/\r\nContent-Length: 0\r\n\r\n"
            assert (await it.ask("api.test", get(it))).startswith(b"HTTP/1.1 302 ")
            assert len(it.seen) == 1

    run(script())


def test_a_host_that_is_only_looked_into(run: Run) -> None:
    """Judged by its requests, with the client's own fields."""

    async def script() -> None:
        async with Intercepting(None, None, "cdn.test", intercept=["seen.test"]) as it:
            answer = await it.ask("seen.test", get(it, "/x", "seen.test", "Authorization: mine\r\n"))
            assert answer.endswith(b"ok")
            assert b"\r\nAuthorization: mine\r\n" in it.seen[0]
            assert b"HTTP/1.1 421" in await it.ask("seen.test", get(it, "/x", "cdn.test"))

    run(script())


def test_endpoint_rules_hold_inside_tls(run: Run) -> None:
    """A host with endpoint rules can be reached over TLS, for these requests."""

    async def script() -> None:
        async with Intercepting(None, None, endpoints={"docs.test": ("GET /public/**",)}) as it:
            answer = await it.ask("docs.test", get(it, "/public/a", "docs.test"), get(it, "/private", "docs.test"))
            assert b"HTTP/1.1 403 " in answer
            assert len(it.seen) == 1
            remedy = json.loads(answer.rpartition(b"\r\n\r\n")[2])["allow_with"]
            assert remedy == f"--allow-domain https://docs.test:{it.port}/private"

    run(script())


def test_a_client_that_does_not_trust_us(run: Run) -> None:
    """Its alert is on record, with what it means."""

    async def script() -> None:
        async with api() as it:
            client = await it.connect("api.test")
            it.client_context = ssl.create_default_context  # type: ignore[method-assign]  # the system's roots alone
            with pytest.raises(ssl.SSLCertVerificationError):
                await it.secure(client, "api.test")
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "intercept_handshake_failed")
            assert "trust" in (record.reason or "")

    run(script())


def test_a_client_that_speaks_no_http_1(run: Run) -> None:
    """Told so by an alert, instead of by nonsense."""

    async def script() -> None:
        async with api() as it:
            client = await it.connect("api.test")
            await client.send(client_hello("api.test", alpn(b"h2")))
            assert await client.receive(7) == bytes((21, 3, 3, 0, 2, 2, 120))
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "intercept_handshake_failed")
            assert "h2" in (record.reason or "")

    run(script())


def test_websockets_are_not_supported_there(run: Run) -> None:
    """501: their messages would not be looked at."""

    async def script() -> None:
        async with api() as it:
            upgrade = (
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
            )
            assert (await it.ask("api.test", get(it, fields=upgrade))).startswith(b"HTTP/1.1 501 ")
            assert it.seen == []
            (record,) = await it.ended()
            assert record.denial_category == "unsupported_upgrade"

    run(script())


# ------------------------------------------------------------ by the service's name


async def to_service(it: Intercepting, path: str, fields: str, method: str = "GET") -> bytes:
    client = await it.connect_to_proxy()
    await client.send(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}Connection: close\r\n\r\n".encode())
    answer = await client.receive_all()
    client.close()
    return answer


@pytest.mark.parametrize(
    "fields",
    [AUTHORIZED, f"Authorization: Bearer {TOKEN}\r\n", f"x-api-key: {TOKEN}\r\n", f"X-Nono-Token: {TOKEN}\r\n"],
)
def test_a_service_by_its_name(run: Run, fields: str) -> None:
    """R7, T5: the path behind the name goes to the service's host, inside TLS, with the credential."""

    async def script() -> None:
        defined = service("openai", "api.test", base_path="/v1")
        async with Intercepting({"openai": defined}, {"openai": SECRET}) as it:
            assert (await to_service(it, "/openai/chat?x=1", fields)).endswith(b"ok")
            (seen,) = it.seen
            assert seen.startswith(b"GET /v1/chat?x=1 HTTP/1.1\r\nHost: api.test:%d\r\n" % it.port)
            assert b"Bearer " + SECRET in seen
            assert TOKEN.encode() not in seen
            (record,) = await it.ended()
            assert (record.mode, record.route_id, record.status) == ("reverse", "openai", 200)

    run(script())


@pytest.mark.parametrize("fields", ["", "Authorization: Bearer wrong\r\n", f"Authorization: Bearer {TOKEN[1:]}0\r\n"])
def test_a_service_without_the_phantom(run: Run, fields: str) -> None:
    """401, and no name is looked up."""

    async def script() -> None:
        async with Intercepting({"openai": service("openai")}, {"openai": SECRET}) as it:
            assert (await to_service(it, "/openai/v1", fields)).startswith(b"HTTP/1.1 401 ")
            assert (it.seen, it.lookups, it.asked) == ([], [], 0)
            (record,) = await it.ended()
            assert (record.denial_category, record.auth_outcome) == ("authentication_failed", "failed")

    run(script())


@pytest.mark.parametrize(
    ("path", "sent"),
    [("/openai/../../etc", "/v1/etc"), ("/openai/%2e%2e/x", "/v1/x"), ("/openai//../..//", "/v1/")],
)
def test_no_path_leads_out_of_a_services_own(run: Run, path: str, sent: str) -> None:
    """What precedes the path of a service precedes every one."""

    async def script() -> None:
        defined = service("openai", "api.test", base_path="/v1")
        async with Intercepting({"openai": defined}, {"openai": SECRET}) as it:
            await to_service(it, path, AUTHORIZED)
            assert [seen.split(b" ")[1].decode() for seen in it.seen] == [sent]

    run(script())


def test_a_phantom_in_the_path(run: Run) -> None:
    """The slot of the path is where the credential goes; neither is on record."""

    async def script() -> None:
        placement = Placement("url_path", path_pattern="/bot{}/")
        injection = Injection(placement, placement)
        async with api(injections={"api": injection}) as it:
            await it.ask("api.test", get(it, f"/bot{TOKEN}/send"))
            assert it.seen[0].startswith(b"GET /bot" + SECRET + b"/send HTTP/1.1\r\n")
            (record,) = await it.ended()
            assert record.path == "/bot{}/send"
            assert (record.auth_mechanism, record.injection_mode) == ("phantom_path", "url_path")

    run(script())


def test_a_phantom_in_the_path_leads_to_no_other_service(run: Run) -> None:
    """Without it the path must be the same service's: another of that host has rules and a credential of its own."""

    async def script() -> None:
        services = {
            name: service(name, "api.test", f"GET {path}/**") for name, path in (("one", "/t"), ("other", "/admin"))
        }
        shown = Injection(Placement(header="X-Key"), Placement("url_path", path_pattern="/t/{}"))
        async with Intercepting(services, dict.fromkeys(services, SECRET), injections={"one": shown}) as it:
            answers = await it.ask("api.test", get(it, f"/t/{TOKEN}/admin/x"))
            assert answers.startswith(b"HTTP/1.1 403 ")
            assert it.seen == []
            (record,) = await it.ended()
            assert (record.route_id, record.denial_category) == ("one", "endpoint_policy")

    run(script())
