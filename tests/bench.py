"""What a sandbox costs, measured side by side in one run: `make bench`.

    direct     a client on the machine, straight to the server
    relay      the same client through a plain asyncio relay (streams, 64 KiB), on the machine
    nono-ebpf  the same client in a sandbox, redirected to the proxy: an opaque flow

Client and server are the same programs in each; every byte crosses the same veth pair. The three take turns, the order
changing with each round, since the machine is shared and noisy: quote the ratios. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kit import zone
from kit.namespaces import Namespaces, enter_command, listen_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVER = (zone.addresses()[0][0], 9000)
RELAY = ("127.0.0.1", 9001)
PYTHON = "/usr/bin/python3"
BULK_BYTES = 3 << 30
RATE_S = 1.5
CLIENTS = 8
WAYS = ("direct", "relay", "nono-ebpf")

CLIENT = """
import json, multiprocessing, socket, sys, time
host, port, bulk, seconds, clients = sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4]), int(sys.argv[5])

def connect():
    s = socket.create_connection((host, port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s

def download(length):
    with connect() as s:
        s.sendall(b"d%020d" % length)
        buffer, got, began = bytearray(1 << 20), 0, time.perf_counter()
        while n := s.recv_into(buffer, 0, socket.MSG_TRUNC):
            got += n
    assert got == length, (got, length)
    return length / (time.perf_counter() - began)

def rate(_=0):
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        with connect() as s:
            s.sendall(b"p")
            assert s.recv(1) == b"p"
        done += 1
    return done / seconds

download(1 << 26)
result = {"bulk": download(bulk), "rate": rate()}
with multiprocessing.Pool(clients) as pool:
    result["rates"] = sum(pool.map(rate, range(clients)))
print(json.dumps(result), flush=True)
sys.stdin.readline()
"""


def serve(listener: socket.socket) -> None:
    """The server process: `p` is answered by `p`, `dN` by N bytes."""
    block = memoryview(bytearray(1 << 20))
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if client.recv(1) == b"p":
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
    """`body` in a process of its own, killed at the end."""
    pid = os.fork()
    if pid == 0:
        try:
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


def client(way: str, enter: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """One round of one way: rates, and for a sandbox the memory of its processes in MiB."""
    host, port = RELAY if way == "relay" else SERVER
    command = [PYTHON, "-c", CLIENT, host, str(port), str(BULK_BYTES), str(RATE_S), str(CLIENTS)]
    if way == "nono-ebpf":
        command = [*program("--allow-domain", f"{host}:{port}"), *command]
    with subprocess.Popen([*enter, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdin is not None
        figures = json.loads(run.stdout.readline())
        memory = footprint(run.pid) if way == "nono-ebpf" else {}
        run.stdin.write("\n")
    return figures, memory


def footprint(supervisor: int) -> dict[str, float]:
    """Proportional set sizes, MiB, after the load: shared pages counted by share."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    proxy = next(pid for pid in children if b"nono_ebpf.proxy" in Path(f"/proc/{pid}/cmdline").read_bytes())
    init = next(pid for pid in children if pid != proxy)
    return {name: pss(pid) for name, pid in (("supervisor", supervisor), ("init", init), ("proxy", proxy))}


def pss(pid: str | int) -> float:
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
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    os.environ.pop("SUDO_UID", None)  # the sandboxes are root's own
    spaces = Namespaces()
    try:
        enter = enter_command(spaces.machine)
        listener = listen_stream(spaces.world, SERVER[1])
        with process(lambda: serve(listener)), process(lambda: relay_in(spaces.machine)):
            starts = start_times(enter, 2 * rounds)
            figures, memory = measure(enter, rounds)
    finally:
        spaces.close()
    show(starts, figures, memory)


def relay_in(namespace: str) -> None:
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    from nono_ebpf.kernel import libc

    libc.setns(descriptor, libc.CLONE_NEWNET)
    asyncio.run(relay())


Figures = dict[str, list[dict[str, float]]]


def measure(enter: list[str], rounds: int) -> tuple[Figures, list[dict[str, float]]]:
    figures: Figures = {way: [] for way in WAYS}
    memory = []
    for number in range(rounds):
        for way in (*WAYS[number % 3 :], *WAYS[: number % 3]):
            sys.stderr.write(f"round {number + 1} of {rounds}: {way}\n")
            rates, sizes = client(way, enter)
            figures[way].append(rates)
            if sizes:
                memory.append(sizes)
    return figures, memory


def show(starts: dict[str, float], figures: Figures, memory: list[dict[str, float]]) -> None:
    print("| | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS))
    for key, name, unit, scale in (
        ("bulk", "bulk download", "GB/s", 1e9),
        ("rate", "connections/s, one client", "", 1),
        ("rates", f"connections/s, {CLIENTS} clients", "", 1),
    ):
        medians = {way: statistics.median(each[key] for each in figures[way]) for way in WAYS}
        cells = [f"{medians[w] / scale:,.2f} {unit}".strip() if scale > 1 else f"{medians[w]:,.0f}" for w in WAYS]
        shares = [f"{medians[way] / medians['direct']:.0%}" for way in WAYS]
        print(f"| {name} | " + " | ".join(f"{c} ({s})" for c, s in zip(cells, shares, strict=True)) + " |")
    print(f"\nstart: true {starts['true']:.3f} s, run -- true {starts['run -- true']:.2f} s (medians)")
    sizes = {name: statistics.median(each[name] for each in memory) for name in memory[0]}
    print("memory after the load (PSS): " + ", ".join(f"{name} {size:.0f} MiB" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
