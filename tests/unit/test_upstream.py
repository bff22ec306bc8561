"""Dialling what was permitted."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from kit.relaying import LIMITS, Run, listen, run

from nono_ebpf.errors import UpstreamError
from nono_ebpf.model import Endpoint
from nono_ebpf.policy.decide import Permit
from nono_ebpf.policy.rules import parse_allow_rule
from nono_ebpf.relay import upstream
from nono_ebpf.relay.upstream import dial, interleave

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run"]


async def never() -> socket.socket:
    """An attempt that nobody answers."""
    await asyncio.Event().wait()
    raise AssertionError


def permit(*endpoints: Endpoint) -> Permit:
    return Permit("a.test", 80, endpoints, parse_allow_rule("a.test", "test"))


def endpoint(text: str, port: int = 80) -> Endpoint:
    return Endpoint(ip_address(text), port)


@pytest.fixture
def refusing() -> Iterator[Endpoint]:
    """A port where nobody listens, and nobody else can: refused at once."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield endpoint("127.0.0.1", kept.getsockname()[1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["::1", "::2", "::3", "1.1.1.1"], ["::1", "1.1.1.1", "::2", "::3"]),
        (["1.1.1.1", "2.2.2.2", "::1"], ["1.1.1.1", "::1", "2.2.2.2"]),
        (["::1"], ["::1"]),
    ],
)
def test_families_alternate(given: list[str], expected: list[str]) -> None:
    """RFC 8305 §4: a family that does not work costs one stagger, not all of its addresses."""
    assert interleave([endpoint(text) for text in given]) == [endpoint(text) for text in expected]


def test_dials_the_endpoint(run: Run) -> None:
    """The connection goes to the permitted address, without Nagle's delay, and says where it is."""

    async def script() -> None:
        with listen() as listener:
            where = endpoint(*listener.getsockname())
            connected = await dial(permit(where), LIMITS)
            assert connected.endpoint == where
            assert connected.target == "a.test:80"
            assert connected.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not connected.sock.getblocking()
            connected.close()

    run(script())


def test_refused_endpoint_is_followed_by_the_next_at_once(run: Run, refusing: Endpoint) -> None:
    """A failure does not wait for the stagger."""

    async def script() -> None:
        with listen() as listener:
            where = endpoint(*listener.getsockname())
            connected = await dial(permit(refusing, refusing, where), replace(LIMITS, stagger_s=1000))
            assert connected.endpoint == where
            connected.close()

    run(script())


def test_silent_endpoint_is_overtaken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the stagger the next address is tried beside the first; the loser is closed."""
    silent = endpoint("192.0.2.1")
    real, ended = upstream._connect, list[Endpoint]()

    async def connect(where: Endpoint) -> socket.socket:
        if where != silent:
            return await real(where)
        try:
            return await never()
        finally:
            ended.append(where)

    monkeypatch.setattr(upstream, "_connect", connect)

    async def script() -> None:
        with listen() as listener:
            where = endpoint(*listener.getsockname())
            connected = await dial(permit(silent, where), replace(LIMITS, stagger_s=0.01))
            assert connected.endpoint == where
            assert ended == [silent]
            connected.close()

    run(script())


def test_two_successes_leave_one_connection(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """When attempts succeed in the same turn of the loop, all but one are closed."""
    made: list[socket.socket] = []

    async def script() -> None:
        gate = asyncio.Event()

        async def connect(where: Endpoint) -> socket.socket:
            await gate.wait()
            sock = socket.create_connection((str(where.address), where.port))
            made.append(sock)
            return sock

        monkeypatch.setattr(upstream, "_connect", connect)
        with listen() as listener:
            where = endpoint(*listener.getsockname())
            asyncio.get_running_loop().call_later(0.05, gate.set)
            connected = await dial(permit(where, where), replace(LIMITS, stagger_s=0.001))
            assert [sock.fileno() >= 0 for sock in made].count(True) == 1
            connected.close()

    run(script())


def test_every_failure(run: Run, refusing: Endpoint) -> None:
    """When nothing answers the first failure is told, as the upstream's."""

    async def script() -> None:
        for endpoints in ((refusing,), (refusing, refusing)):
            with pytest.raises(UpstreamError, match=r"^connect a\.test:80: Connection refused$"):
                await dial(permit(*endpoints), LIMITS)
        with pytest.raises(UpstreamError, match="no address"):
            await dial(permit(), LIMITS)

    run(script())


def test_deadline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline covers all endpoints, and its error is told apart as a timeout."""

    async def connect(where: Endpoint) -> socket.socket:
        return await never()

    monkeypatch.setattr(upstream, "_connect", connect)

    async def script() -> None:
        for count in (1, 2):
            endpoints = [endpoint("192.0.2.1")] * count
            with pytest.raises(UpstreamError) as caught:
                await dial(permit(*endpoints), replace(LIMITS, connect_s=0.02, stagger_s=0.001))
            assert isinstance(caught.value.__cause__, TimeoutError)

    run(script())
