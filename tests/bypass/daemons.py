"""Stand-ins for daemons of the host, outside any sandbox: whoever asks one of them has a canary's name written down.

`daemons.py CANARY KIND ADDRESS …`: KIND is stream, datagram or seqpacket; an ADDRESS that begins with "@" is abstract.
Prints "ready". The canary grows by a line for everything that arrives. Standard library only.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
from pathlib import Path

KINDS = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}


def note(canary: str, address: str) -> None:
    with Path(canary).open("a") as file:
        file.write(f"{address}\n")


def main() -> None:
    canary, *rest = sys.argv[1:]
    watched = selectors.DefaultSelector()
    for kind, address in zip(rest[::2], rest[1::2], strict=True):
        opened = socket.socket(socket.AF_UNIX, KINDS[kind])
        opened.bind("\0" + address[1:] if address.startswith("@") else address)
        if not address.startswith("@"):
            Path(address).chmod(0o777)
        if kind != "datagram":
            opened.listen(64)
        watched.register(opened, selectors.EVENT_READ, (kind, address))
    print("ready", flush=True)
    kept: list[socket.socket] = []
    while True:
        for key, _ in watched.select():
            kind, address = key.data
            with contextlib.suppress(OSError):
                if kind == "datagram":
                    key.fileobj.recv(4096)  # type: ignore[union-attr]
                else:
                    kept = [*kept[-64:], key.fileobj.accept()[0]]  # type: ignore[union-attr]
            note(canary, address)


if __name__ == "__main__":
    main()
