"""Every deadline and bound of the relay, in one place.

All are ours; where a standard suggests one, it is named.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds end in `_s`, sizes in `_bytes`; everything else is a count."""

    # Connections.
    flows: int = 4096  # two sockets each, and four pipe ends while both directions are stuck
    displaced_at_once: int = 32  # when all are taken; a look at every flow costs some 10 ms, so not for each newcomer
    displaced_records: int = 1024  # of flows that were displaced, like ones once, in each window
    displaced_window_s: float = 60.0
    accepts_per_wakeup: int = 64  # then established flows get their turn
    accept_backoff_s: float = 0.1  # after EMFILE: a flow has to end first, asking sooner only burns CPU

    # Learning what a client wants.
    sniff_s: float = 10.0  # from a client's first byte to a whole ClientHello or HTTP head
    first_bytes_s: float = (
        10.0  # for a client of the proxy, or of which no name is known: nothing is dialled before it speaks
    )
    refusal_wait_s: float = 5.0  # for a denied client to show its language; ssh and SMTP clients never do

    # The far side.
    resolve_s: float = 15.0  # a stub resolver's timeout with a retry on the second nameserver
    connect_s: float = 30.0  # over all endpoints; below the 60 s that most clients wait themselves
    dialled_at_once: int = 8  # attempts of one flow; a name with more addresses has no more sockets
    upstream_proxy_s: float = 10.0  # to reach the upstream proxy, TLS included, and to be given a tunnel by it
    stagger_s: float = 0.25  # RFC 8305 §5, "Connection Attempt Delay"
    handshake_s: float = 15.0  # of TLS, with a client or with the far side

    # Upstreams inside TLS that nobody is using.
    idle_upstreams: int = 256
    idle_upstreams_per_host: int = 32
    idle_upstream_s: float = 50.0  # below the 60 s of AWS's load balancers
    closing_margin_s: float = 1.0  # before a server says that it will close: what is on its way then arrives too late
    tls_sessions: int = 256  # of hosts, to begin the next connection with

    # Moving bytes.
    idle_s: float = 3600.0  # no byte in either direction; models think for long
    half_closed_s: float = 600.0  # the same once one side has finished: mostly it is simply gone
    copy_bytes: int = 262144  # per read of an HTTP body: larger gains nothing, 64 KiB costs a third
    bodies_bytes: int = 64 << 20  # for all flows together: the more there are, the smaller their reads
    piece_bytes: int = 16384  # but never smaller than this
    pipe_bytes: int = 1 << 20  # the most an unprivileged process may ask for (fs.pipe-max-size)
    spare_pipes: int = 16  # kept for the next burst: a quarter of fs.pipe-user-pages-soft
    splices_per_wakeup: int = 8  # up to 8 MiB, two milliseconds, before another flow gets its turn

    # HTTP/1.
    keep_alive_s: float = (
        75.0  # before a request to a known host; nginx's default, longer than clients keep a connection
    )
    response_head_s: float = 30.0  # from its first byte to its last; before that, `idle_s`
    challenges: int = 4  # 407s on one connection; a client that waits for the first one needs no other
    interim_responses: int = 64  # 1xx before one final response
    # Reading on behind the last answer, so that a RST does not overtake it (RFC 9112 §9.6), as nginx and httpd do.
    linger_s: float = 2.0  # for a client that sends nothing more
    linger_in_all_s: float = 30.0  # for one that sends all of a large body before it reads
    linger_bytes: int = 1 << 20  # of a request that is challenged
