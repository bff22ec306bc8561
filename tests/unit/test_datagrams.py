"""Too many datagrams."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from kit.relaying import Run, run

from nono_ebpf.dns.datagrams import Datagrams, Shares
from nono_ebpf.dns.limits import Limits
from nono_ebpf.model import Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["run"]


class Counting(socket.socket):
    """Knows how many datagrams were read from it."""

    taken = 0

    def recvfrom_into(self, *arguments: Any) -> tuple[int, Any]:
        found = super().recvfrom_into(*arguments)
        self.taken += 1
        return found


class Served:
    """An echo, and two clients; `owners` maps a source port to a process."""

    def __init__(self, limits: Limits) -> None:
        self.sock = Counting(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.owners: dict[int, int] = {}
        self.clients: list[socket.socket] = []
        self.now_s = 100.0
        self.datagrams = Datagrams(self.sock, self.asker, self.answer, limits, lambda: self.now_s)
        self.answered: list[bytes] = []

    def asker(self, source: tuple[str, int]) -> Process | None:
        pid = self.owners.get(source[1])
        return None if pid is None else Process(pid, "dig", 1000, 7)

    async def answer(self, data: bytes, process: Process | None) -> bytes:
        self.answered.append(data)
        return data

    async def floods(self, taken: int) -> int:
        """How many were answered when as many datagrams as that were read: of two senders, the later may come first."""
        while self.sock.taken < taken or self.datagrams._outstanding:
            await asyncio.sleep(0.001)
        return self.answered.count(b"flood")

    def client(self, pid: int) -> socket.socket:
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.clients.append(client)
        client.connect(self.sock.getsockname())
        client.setblocking(False)
        self.owners[client.getsockname()[1]] = pid
        return client


@asynccontextmanager
async def served(limits: Limits) -> AsyncIterator[Served]:
    it = Served(limits)
    task = asyncio.ensure_future(it.datagrams.serve())
    await asyncio.sleep(0)
    try:
        yield it
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        for each in it.clients:
            each.close()
    assert it.sock.fileno() == -1


def test_a_flood_of_one_process_leaves_the_others_their_answers(run: Run) -> None:
    """Through one socket or many; with the next moment it has its share again."""

    async def script() -> None:
        async with served(Limits(datagrams_share=4, datagrams_per_wakeup=3)) as it:
            flooding = [it.client(1) for _ in range(3)]
            good = it.client(2)
            for _ in range(30):
                for each in flooding:
                    each.send(b"flood")
            good.send(b"good")
            assert await asyncio.get_running_loop().sock_recv(good, 99) == b"good"
            assert await it.floods(91) == 4
            it.now_s += 1
            flooding[0].send(b"flood")
            good.send(b"good")
            assert await asyncio.get_running_loop().sock_recv(good, 99) == b"good"
            assert await it.floods(93) == 5

    run(script())


def test_shares_begin_anew_with_each_moment() -> None:
    """Counts last for a moment, and so does their memory."""
    shares = Shares(2, 0.5)
    shares.pass_time(10.0)
    assert [shares.exceeded("a") for _ in range(3)] == [False, False, True]
    shares.pass_time(10.4)
    assert shares.exceeded("a")
    assert not shares.exceeded("b")
    shares.pass_time(10.5)
    assert not shares.exceeded("a")
    assert len(shares._counts) == 1
