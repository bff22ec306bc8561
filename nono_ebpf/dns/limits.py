"""Every deadline and bound of the DNS side. All are ours; where a standard suggests one, it is named."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds end in `_s`, sizes in `_bytes`; everything else is a count."""

    # Towards the host's nameservers.
    lookup_s: float = 5.0  # of one lookup with all its retries: glibc's clients give up after 5 s per try
    outstanding_lookups: int = 256  # distinct (name, type) at once; each holds a socket or two
    cached_answers: int = 4096
    ttl_s: int = 300  # an answer is re-asked, so re-judged, at least this often
    negative_ttl_s: int = 30  # RFC 2308 §5 allows hours; a name that has just been created should work soon
    local_ttl_s: int = 5  # of answers from files: the operator may edit them at any moment

    # Towards the sandbox.
    query_s: float = 6.0  # of one question until its answer; `lookup_s` ends first and says more
    query_bytes: int = 4096  # a question with every option in use needs a quarter of it
    udp_answer_bytes: int = 1232  # DNS flag day 2020; more goes over TCP
    outstanding_queries: int = 512  # of one UDP socket; more are dropped, as a full socket buffer would
    tcp_connections: int = 64
    tcp_pipelined: int = 32  # unanswered queries of one connection; then we stop reading it
    tcp_idle_s: float = 10.0  # RFC 7766 §6.2.3: "of the order of a few seconds"
    tcp_write_s: float = 10.0  # a client that does not read its answers
    records_per_window: int = 1024
    record_window_s: float = 60.0
