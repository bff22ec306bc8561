"""Accepting, and running out of what accepting takes."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import socket
import traceback
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from kit.relaying import LIMITS, Relaying, Run, listen, run

from nono_ebpf.relay.accept import Acceptor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["run"]

FACTORIES = pytest.mark.parametrize("factory", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
DEADLINE_S = 60
BACKOFF_S = 0.05


def in_a_child(script: Callable[[], object], factory: object) -> str:
    """What `script` returns in a process of its own, whose limits it may lower for good."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with asyncio.Runner(loop_factory=factory) as runner:  # type: ignore[arg-type]
                said = runner.run(asyncio.wait_for(script(), DEADLINE_S))  # type: ignore[arg-type]
        except BaseException:  # noqa: BLE001 - the child's end, whatever it is
            said = traceback.format_exc()
        os.write(write_fd, str(said).encode())
        os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd) as output:
        said = output.read()
    os.waitpid(child, 0)
    return said


def leave_descriptors(count: int) -> None:
    """Let this process open `count` more, no matter which numbers are free."""
    used = {int(entry.name) for entry in list(Path("/proc/self/fd").iterdir()) if entry.exists()}
    free = (number for number in range(1 << 16) if number not in used)
    for _ in range(count):
        last = next(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@asynccontextmanager
async def serving(acceptor: Acceptor) -> AsyncIterator[asyncio.Future[None]]:
    """`acceptor` at work, and no longer when its listeners are closed."""
    running = asyncio.ensure_future(acceptor.serve())
    try:
        await asyncio.sleep(0)
        yield running
    finally:
        running.cancel()
        await asyncio.wait([running])


@FACTORIES
def test_out_of_descriptors_it_waits_and_does_not_spin(factory: object) -> None:
    """Who cannot be accepted stays in the backlog, at the cost of a few attempts a second, and is served afterwards."""

    async def script() -> str:
        attempts = 0
        held: list[socket.socket] = []
        release = asyncio.Event()

        class Counting(Acceptor):
            def _accept(self, listener: socket.socket) -> socket.socket | None:
                nonlocal attempts
                attempts += 1
                return super()._accept(listener)

        async def handle(connection: socket.socket) -> None:
            held.append(connection)
            await release.wait()

        listener = listen()
        clients = [socket.socket() for _ in range(6)]
        acceptor = Counting([listener], handle, replace(LIMITS, accept_backoff_s=BACKOFF_S))
        serving = asyncio.ensure_future(acceptor.serve())
        await asyncio.sleep(0)
        leave_descriptors(3)
        for client in clients:
            client.connect(listener.getsockname())
        while len(held) < 3:
            await asyncio.sleep(0)
        clock = asyncio.get_running_loop().time  # what the attempts go by
        attempts, began, start = 0, os.times(), clock()
        await asyncio.sleep(1)
        spent_s = sum(os.times()[:2]) - sum(began[:2])
        tried, most = attempts, (clock() - start) / BACKOFF_S + 1
        release.set()
        while len(held) < 6:
            await asyncio.sleep(0)
        serving.cancel()
        return f"{tried <= most} {spent_s < 0.5} {len(held)}"

    assert in_a_child(script, factory) == "True True 6"


@FACTORIES
@pytest.mark.parametrize(("left", "reason"), [(2, "connect a.test"), (4, "Too many open files")], ids=["dial", "pipe"])
def test_out_of_descriptors_only_the_flow_that_needs_one_fails(left: int, reason: str, factory: object) -> None:
    """No descriptor for the far side, or for a pipe, is one flow's bad luck; the next one finds everything in order."""

    async def script() -> str:
        async with Relaying("a.test") as it:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            leave_descriptors(left)
            first = await it.connect("a.test")
            far = await it.accept() if left > 2 else None
            await first.send(b"\0unlucky")
            if far is not None:
                await far.send(b"through a pipe")
            with suppress(ConnectionResetError):
                return f"answered {await first.receive(1)!r}"
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            second, server = await it.connect("a.test"), await it.accept()
            await second.send(b"\0lucky")
            received = await server.receive(6)
            (record,) = it.records
            return f"{record.reason} {received!r}"

    said = in_a_child(script, factory)
    assert reason in said
    assert "Too many open files" in said
    assert said.endswith("b'\\x00lucky'")


def test_a_newcomer_waits_only_while_nobody_can_make_room(run: Run) -> None:
    """With every slot taken, room is asked for when somebody waits, and not before."""

    async def script() -> None:
        asked = 0
        gates: list[asyncio.Event] = []

        async def handle(_: socket.socket) -> None:
            gates.append(asyncio.Event())
            await gates[-1].wait()

        def make_room() -> None:
            nonlocal asked
            asked += 1
            gates[0].set()

        with ExitStack() as stack:
            listener = stack.enter_context(listen())
            async with serving(Acceptor([listener], handle, replace(LIMITS, flows=2), make_room)):
                for count in (1, 2):
                    stack.enter_context(socket.create_connection(listener.getsockname()))
                    while len(gates) < count:
                        await asyncio.sleep(0)
                await asyncio.sleep(0.01)
                assert asked == 0
                stack.enter_context(socket.create_connection(listener.getsockname()))
                while len(gates) < 3:
                    await asyncio.sleep(0)
                assert asked == 1

    run(script())


def test_what_is_accepted_is_ready_for_relaying(run: Run) -> None:
    """It inherits what its listener was given, and does not block."""

    async def script() -> None:
        seen = asyncio.get_running_loop().create_future()

        async def handle(connection: socket.socket) -> None:
            no_delay = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            others = [
                connection.getsockopt(socket.SOL_SOCKET, each) for each in (socket.SO_KEEPALIVE, socket.SO_OOBINLINE)
            ]
            seen.set_result(([no_delay, *others], connection.getblocking()))

        with listen() as listener:
            async with serving(Acceptor([listener], handle, LIMITS)):
                with socket.create_connection(listener.getsockname()):
                    assert await seen == ([1, 1, 1], False)

    run(script())


def test_no_listener_waits_for_another(run: Run) -> None:
    """With one slot and clients at two listeners, neither gets all of what becomes free."""

    async def script() -> None:
        served: list[int] = []
        gates: list[asyncio.Event] = []

        async def handle(connection: socket.socket) -> None:
            served.append(connection.getsockname()[1])
            gates.append(asyncio.Event())
            await gates[-1].wait()

        with ExitStack() as stack:
            listeners = [stack.enter_context(listen()) for _ in range(2)]
            for listener in listeners * 4:
                stack.enter_context(socket.create_connection(listener.getsockname()))
            for listener in listeners:  # a client may be through before its own word for it is here
                select.select([listener], [], [], DEADLINE_S)
            async with serving(Acceptor(listeners, handle, replace(LIMITS, flows=1))):
                for number in range(8):
                    while len(gates) <= number:
                        await asyncio.sleep(0)
                    gates[number].set()
            assert len(set(served[:4])) == 2

    run(script())


def test_draining_begins_with_who_waits(run: Run) -> None:
    """A client that has connected is served, although the loop has not been told of it yet."""

    async def script() -> None:
        served = 0

        async def handle(_: socket.socket) -> None:
            nonlocal served
            served += 1

        with listen() as listener:
            acceptor = Acceptor([listener], handle, LIMITS)
            async with serving(acceptor):
                with socket.create_connection(listener.getsockname()):
                    select.select([listener], [], [], DEADLINE_S)  # as above
                    await acceptor.drain(DEADLINE_S)
                    assert served == 1

    run(script())


def test_a_broken_listener_ends_everything(run: Run) -> None:
    """Nobody goes on with a proxy that accepts no more: its error is raised, and open connections end."""

    async def script() -> None:
        ended = asyncio.Event()
        began = asyncio.Event()

        async def handle(_: socket.socket) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        with listen() as listener:
            async with serving(Acceptor([listener], handle, LIMITS)) as running:
                with socket.create_connection(listener.getsockname()):
                    await began.wait()
                    listener.shutdown(socket.SHUT_RDWR)
                    with pytest.raises(OSError, match="Invalid argument"):
                        await running
                    assert ended.is_set()

    run(script())
