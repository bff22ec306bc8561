"""Many connections through one sandbox: every byte arrives where it belongs, and nothing is left of any of them.

Both ends are load.c: each connection carries a pattern of its own, checked by the server and, sent back, by the client;
each side's checksum of what the server received is compared too.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit import loading
from kit.bpfmaps import Maps
from kit.namespaces import inside
from kit.sandboxes import Sandbox, eventually, open_files, settled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kit.loading import Talker
    from kit.machine import Machine
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.slow]

PORT = 4100
CONCURRENT = 1000
WARM_UP = 100  # more than the proxy keeps spare pipes for
MOST_BYTES, MOST_BYTES_SEQUENTIAL = 60_000, 2_000
QUEUED = 300
V4, V6 = "v4.echo.example.com", "v6.echo.example.com"
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="nono-load-"))
    directory.chmod(0o755)
    yield loading.build(directory)
    shutil.rmtree(directory)


@pytest.fixture
def server(program: Path, world: World) -> Iterator[Talker]:
    talker = loading.start_server(program, world.namespaces.world, PORT)
    yield talker
    talker.close()


@pytest.fixture
def _ports(world: World) -> Iterator[None]:
    """A client of one address and port has the range to itself for a minute (TIME_WAIT), and the kernel's search for a
    free one becomes slow when half of it is taken: the default range, 28,232, would measure that.
    """
    before = inside(world.namespaces.machine, PORT_RANGE.read_text)
    inside(world.namespaces.machine, lambda: PORT_RANGE.write_text("1024 65535"))
    yield
    inside(world.namespaces.machine, lambda: PORT_RANGE.write_text(before))


class Loaded:
    """The client's sandbox, and what it costs."""

    def __init__(self, client: Talker) -> None:
        self.client = client
        self.sandbox = Sandbox.of(client.process.pid)
        self.maps = Maps(self.sandbox.pins)
        self._unused = settled(self.descriptors)

    def descriptors(self) -> Counter[str]:
        """The proxy's, by kind."""
        return Counter(path.partition(":")[0] for path in open_files(self.sandbox.proxy.pid))

    def idle(self) -> Counter[str]:
        """The proxy's once it has served some: those that it had before, and pipes that it keeps."""
        assert eventually(lambda: self.descriptors()["socket"] <= self._unused["socket"]), self.descriptors()
        return settled(self.descriptors)

    def close(self) -> None:
        assert self.client.close() == 0
        self.maps.close()
        assert self.sandbox.traces() == []
        assert all(each.ended(0) for each in self.sandbox.processes())
        self.sandbox.close()


@pytest.fixture
def loaded(program: Path, server: Talker, machine: Machine, request: pytest.FixtureRequest) -> Iterator[Loaded]:
    """Ends with nothing left on the machine."""
    subprocess.run([sys.executable, "-I", "-m", "nono_ebpf", "run", "--user", "nobody", "--", "true"], check=True)
    name = getattr(request, "param", V4)
    running = Loaded(loading.start_client(program, machine, name, PORT))
    yield running
    running.close()


def _assert_all_good(answer: dict[str, object], count: int) -> None:
    assert (answer["good"], answer["wrong"], answer["lost"], answer["problem"]) == (count, 0, 0, "")


def _rate(answer: dict[str, float]) -> str:
    return f"{answer['good'] / answer['seconds']:.0f}/s, {answer['bytes'] / answer['seconds'] / 1e6:.1f} MB/s"


@pytest.mark.usefixtures("_ports")
@pytest.mark.parametrize(("loaded", "in_a_row"), [(V4, 20_000), (V6, 2_000)], indirect=["loaded"])
def test_a_thousand_at_once_and_thousands_in_a_row(loaded: Loaded, in_a_row: int, server: Talker) -> None:
    """No byte lost or mixed up, no descriptor and no record of the kernel's left over."""
    _assert_all_good(loaded.client.ask(f"concurrent {WARM_UP} 0 {MOST_BYTES}"), WARM_UP)
    idle = loaded.idle()
    server.ask(f"wait {CONCURRENT}")
    together = loaded.client.ask(f"concurrent {CONCURRENT} {WARM_UP} {MOST_BYTES}")
    singly = loaded.client.ask(f"sequential {in_a_row} {WARM_UP + CONCURRENT} {MOST_BYTES_SEQUENTIAL}")
    print(f"together {_rate(together)} {together}; in a row {_rate(singly)} {singly}")
    _assert_all_good(together, CONCURRENT)
    _assert_all_good(singly, in_a_row)
    seen = server.ask("stats")
    count = WARM_UP + CONCURRENT + in_a_row
    assert (seen["accepted"], seen["finished"], seen["open"], seen["peak"]) == (count, count, 0, CONCURRENT)
    assert (seen["wrong"], seen["twice"], seen["broken"]) == (0, 0, 0)
    assert eventually(lambda: loaded.descriptors() <= idle), f"{idle} became {loaded.descriptors()}"
    assert loaded.maps.entries("origins") == 0


def test_what_waits_for_the_proxy_is_on_record_until_it_is_taken(loaded: Loaded, server: Talker) -> None:
    """One entry for each connection in the queue, none once the proxy has accepted them."""
    _assert_all_good(loaded.client.ask(f"concurrent {WARM_UP} 0 {MOST_BYTES}"), WARM_UP)
    idle = loaded.idle()
    loaded.sandbox.proxy.kill(signal.SIGSTOP)
    loaded.client.tell(f"concurrent {QUEUED} {WARM_UP} {MOST_BYTES}")
    try:
        assert eventually(lambda: loaded.maps.entries("origins") == QUEUED), loaded.maps.entries("origins")
    finally:
        loaded.sandbox.proxy.kill(signal.SIGCONT)
    _assert_all_good(loaded.client.answer(), QUEUED)
    assert loaded.maps.entries("origins") == 0
    assert eventually(lambda: loaded.descriptors() <= idle), f"{idle} became {loaded.descriptors()}"
