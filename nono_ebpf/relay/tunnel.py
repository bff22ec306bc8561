"""Hands a flow over to the kernel: first what has been read already, then everything else by splice.

Must not know what flows or why.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nono_ebpf.relay.splice import Spliced, splice

if TYPE_CHECKING:
    from nono_ebpf.relay.context import Context
    from nono_ebpf.relay.stream import Stream, Upstream


async def tunnel(client: Stream, upstream: Upstream, context: Context) -> Spliced:
    """Relay until the flow ends. Both streams stay the caller's to close; they are reset if it did not end in order.

    Raises:
        UpstreamError, OSError: the bytes read beforehand could not be delivered.
    """
    limits = context.limits
    if client.unread:
        await upstream.send(client.take_unread(), limits.idle_s)
    if upstream.unread:
        await client.send(upstream.take_unread(), limits.idle_s)

    def count(sent_bytes: int, received_bytes: int) -> None:
        upstream.sent_bytes += sent_bytes
        client.sent_bytes += received_bytes

    spliced = await splice(client.sock, upstream.sock, context.pipes, limits, count)
    if spliced.ended != "eof":
        spliced = replace(spliced, problem=upstream.explain(spliced.problem))
        client.reset()
        upstream.reset()
    return spliced
