"""A TLS connection in a test's own hands."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kit.relaying import Peer


class TlsPeer:
    """One end, moved by hand: each of its two layers may end by itself. With a `server_name` it is the client's."""

    def __init__(self, peer: Peer, context: ssl.SSLContext, server_name: str | None = None) -> None:
        self.tcp = peer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server_side = server_name is None
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_name)

    async def accept(self) -> None:
        """The handshake, from either side."""
        await self._until_done(self._tls.do_handshake)

    async def refused(self) -> str:
        """The alert that ends the handshake, which in TLS 1.3 comes when it is over."""
        with pytest.raises(ssl.SSLError) as caught:
            await self._until_done(lambda: (self._tls.do_handshake(), self._tls.read(1)))
        return str(caught.value.reason)

    @property
    def tls(self) -> ssl.SSLObject:
        """What was agreed on."""
        return self._tls

    async def send(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    async def finish(self) -> None:
        """Send close_notify, and nothing else."""
        with suppress(ssl.SSLWantReadError):  # for the other's
            self._tls.unwrap()
        await self._flush()

    async def receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (more := await self._read(size - len(data))):
            data += more
        return bytes(data)

    async def receive_all(self) -> bytes:
        """Everything until close_notify. Raises SSLEOFError or ConnectionResetError when that does not come."""
        data = bytearray()
        while more := await self._read(1 << 20):
            data += more
        return bytes(data)

    async def _read(self, size: int) -> bytes:
        try:
            return await self._until_done(lambda: self._tls.read(min(size, 1 << 16)))
        except ssl.SSLZeroReturnError:  # both have said close_notify
            return b""

    async def _until_done(self, step: Any) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await asyncio.get_running_loop().sock_recv(self.tcp.sock, 1 << 16):
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self.tcp.send(data)
