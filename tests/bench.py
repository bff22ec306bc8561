"""What a sandbox costs, measured side by side in one run: `make bench`.

    direct     a client on the machine, straight to the server
    relay      the same client through a plain asyncio relay (streams, 64 KiB), on the machine
    nono-ebpf  the same client in a sandbox, redirected to the proxy: an opaque flow

Client and server are the same programs in each; every byte crosses the same veth pair. All three stand ready, and take
turns by fractions of a second, the order changing with each round: the machine is shared and noisy. A share is the
median over the rounds of what two neighbours in time did; the other figures are medians. What the relay and the proxy
used of a CPU depends least on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import truediv
from pathlib import Path
from typing import TYPE_CHECKING

from kit import zone
from kit.namespaces import Namespaces, enter_command, listen_stream

from nono_ebpf.kernel import libc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVER = (zone.addresses()[0][0], 9000)
RELAY = ("127.0.0.1", 9001)
PYTHON = "/usr/bin/python3"
CLIENTS = 8
TASKS = {"bulk": 1 << 30, "rate": 1000, "rates": 2000}  # of one turn: bytes, connections, connections
WAYS = ("direct", "relay", "nono-ebpf")
TICKS_S = os.sysconf("SC_CLK_TCK")

CLIENT = """
import multiprocessing, socket, sys, time
host, port, clients = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def connect():
    s = socket.create_connection((host, port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s

def bulk(length):
    with connect() as s:
        s.sendall(b"\\0d%020d" % length)
        buffer, got = bytearray(1 << 20), 0
        while n := s.recv_into(buffer, 0, socket.MSG_TRUNC):
            got += n
    assert got == length, (got, length)

def rate(count):
    for _ in range(count):
        with connect() as s:
            s.sendall(b"\\0p")
            assert s.recv(1) == b"p"

def rates(count):
    pool.map(rate, [count // clients] * clients, chunksize=1)

with multiprocessing.Pool(clients) as pool:
    print("ready", flush=True)
    for line in sys.stdin:
        task, amount = line.split()
        began = time.perf_counter()
        globals()[task](int(amount))
        print(time.perf_counter() - began, flush=True)
"""


def serve(listener: socket.socket) -> None:
    """The server process: `p` is answered by `p`, `dN` by N bytes.

    Both have a zero in front, or they could become requests, and the proxy would wait for more.
    """
    block = memoryview(bytearray(1 << 20))
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if client.recv(2, socket.MSG_WAITALL) == b"\0p":
            client.sendall(b"p")
            client.close()
        else:
            threading.Thread(target=send, args=(client, block), daemon=True).start()


def send(client: socket.socket, block: memoryview) -> None:
    with client:
        left = int(client.recv(20, socket.MSG_WAITALL))
        while left:
            left -= client.send(block[: min(left, len(block))])


async def relay() -> None:
    """The plain relay: what a first draft of a proxy is."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*SERVER)
        try:
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)
        finally:
            far_writer.close()
            writer.close()

    async with await asyncio.start_server(one, *RELAY, backlog=4096) as server:
        await server.serve_forever()


@contextmanager
def process(body: Callable[[], object]) -> Iterator[int]:
    """`body` in a process of its own, killed at the end, also when that is a signal's.

    And in a session of its own, as the proxy is: the scheduler may tell sessions apart (sched(7), autogroup).
    """
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setsid()
            if os.getppid() != parent:  # it was killed before
                return
            body()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def program(*options: str) -> list[str]:
    return [sys.executable, "-I", "-m", "nono_ebpf", "run", "--user", "nobody", *options, "--"]


@dataclass(frozen=True)
class Turn:
    """How long a task took, and how much of a CPU whoever relayed it used meanwhile."""

    wall_s: float
    cpu_s: float


class Way:
    """A client that does what it is told. `relaying`: the process to be watched, if it is known beforehand."""

    def __init__(self, name: str, enter: list[str], relaying: int | None) -> None:
        host, port = RELAY if name == "relay" else SERVER
        command = [PYTHON, "-c", CLIENT, host, str(port), str(CLIENTS)]
        if name == "nono-ebpf":
            command = [*program("--allow-domain", f"{host}:{port}"), *command]
        self._run = subprocess.Popen([*enter, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()
        self._relaying = self.processes()["proxy"] if name == "nono-ebpf" else relaying
        self.turns: dict[str, list[Turn]] = {task: [] for task in TASKS}

    def do(self, task: str, amount: int) -> Turn:
        before_s = self._cpu_s()
        assert self._run.stdin is not None
        self._run.stdin.write(f"{task} {amount}\n")
        self._run.stdin.flush()
        wall_s = float(self._answer())
        return Turn(wall_s, self._cpu_s() - before_s)

    def processes(self) -> dict[str, int]:
        """Those of a sandbox."""
        supervisor = self._run.pid
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        proxy = next(pid for pid in children if b"nono_ebpf.proxy" in Path(f"/proc/{pid}/cmdline").read_bytes())
        init = next(pid for pid in children if pid != proxy)
        return {"supervisor": supervisor, "init": int(init), "proxy": int(proxy)}

    def close(self) -> None:
        with self._run:
            pass

    def _answer(self) -> str:
        assert self._run.stdout is not None
        return self._run.stdout.readline()

    def _cpu_s(self) -> float:
        """Of all its threads, in the kernel or not: proc(5)."""
        if self._relaying is None:
            return 0.0
        fields = Path(f"/proc/{self._relaying}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_S


def pss(pid: int) -> float:
    """Proportional set size, MiB: shared pages counted by share."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def start_times(enter: list[str], rounds: int) -> dict[str, float]:
    """Seconds for `true`, bare and in a sandbox, taking turns."""
    times: dict[str, list[float]] = {"true": [], "run -- true": []}
    for _ in range(rounds):
        for name, command in (("true", ["true"]), ("run -- true", [*program(), "true"])):
            began = time.perf_counter()
            subprocess.run([*enter, *command], check=True, stdin=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    os.environ.pop("SUDO_UID", None)  # the sandboxes are root's own
    spaces = Namespaces()
    try:
        enter = enter_command(spaces.machine)
        listener = listen_stream(spaces.world, SERVER[1])
        with process(lambda: serve(listener)), process(lambda: relay_in(spaces.machine)) as relaying:
            starts = start_times(enter, rounds)
            with ExitStack() as stack:
                ways = [Way(name, enter, relaying if name == "relay" else None) for name in WAYS]
                for way in ways:
                    stack.callback(way.close)
                measure(ways, rounds)
                memory = {name: pss(pid) for name, pid in ways[-1].processes().items()}
    finally:
        spaces.close()
    show(starts, ways, memory)


def relay_in(namespace: str) -> None:
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    libc.setns(descriptor, libc.CLONE_NEWNET)
    asyncio.run(relay())


def measure(ways: list[Way], rounds: int) -> None:
    for way in ways:
        for task, amount in TASKS.items():
            way.do(task, amount // 8)
    for number in range(rounds):
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
        for task, amount in TASKS.items():
            for way in (*ways[number % 3 :], *ways[: number % 3]):
                way.turns[task].append(way.do(task, amount))


def show(starts: dict[str, float], ways: list[Way], memory: dict[str, float]) -> None:
    print("| | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS))
    for task, name, unit, scale in (
        ("bulk", "bulk download", " GB/s", 1e9),
        ("rate", "connections/s, one client", "", 1),
        ("rates", f"connections/s, {CLIENTS} clients", "", 1),
    ):
        speeds = [[TASKS[task] / turn.wall_s for turn in way.turns[task]] for way in ways]
        shares = [statistics.median(map(truediv, each, speeds[0])) for each in speeds]
        digits = 2 if scale > 1 else 0
        cells = [f"{statistics.median(each) / scale:,.{digits}f}{unit}" for each in speeds]
        print(f"| {name} | " + " | ".join(f"{c} ({s:.0%})" for c, s in zip(cells, shares, strict=True)) + " |")
    for task, name, amount, scale in (
        ("bulk", "CPU, ms per GB", 1e9, 1e3),
        ("rate", "CPU, µs per connection, one client", 1, 1e6),
        ("rates", f"CPU, µs per connection, {CLIENTS} clients", 1, 1e6),
    ):
        used = [statistics.mean(turn.cpu_s for turn in way.turns[task]) / TASKS[task] for way in ways[1:]]
        print(f"| {name} | | " + " | ".join(f"{each * amount * scale:,.0f}" for each in used) + " |")
    print(f"\nstart: true {starts['true']:.3f} s, run -- true {starts['run -- true']:.2f} s (medians)")
    print("memory after the load (PSS): " + ", ".join(f"{name} {size:.0f} MiB" for name, size in memory.items()))


if __name__ == "__main__":
    main()
