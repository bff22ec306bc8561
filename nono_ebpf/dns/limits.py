"""Every deadline and bound of the DNS side. All are ours; where a standard suggests one, it is named."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds end in `_s`, sizes in `_bytes`; everything else is a count."""

    # Towards the host's nameservers.
    lookup_s: float = 5.0  # of one lookup with all its retries: glibc's clients give up after 5 s per try
    # Distinct (name, type) at once, each with a socket: more than rationed names can be under way within `lookup_s`,
    # so that a name which a rule spells out always finds room.
    outstanding_lookups: int = 1536
    addresses: int = 32  # kept of one answer; the rest is neither told, judged nor dialled
    cached_answers: int = 4096
    ttl_s: int = 300  # an answer is re-asked, so re-judged, at least this often
    least_ttl_s: int = 5  # and at most this often: with a TTL of 0 each question would go to the host's nameservers
    negative_ttl_s: int = 30  # RFC 2308 §5 allows hours; a name that has just been created should work soon
    local_ttl_s: int = 5  # of answers from files: the operator may edit them at any moment

    # Names that only a wildcard permits and nobody has asked for lately. A page in a browser has dozens of hosts.
    new_names_of_process: int = 256
    new_names_of_process_per_s: float = 16.0
    new_names: int = 512
    new_names_per_s: float = 32.0
    name_paid_s: float = 300.0
    paid_names: int = 4096
    rationed_processes: int = 1024

    # Towards the sandbox.
    query_s: float = 6.0  # of one question until its answer; `lookup_s` ends first and says more
    query_bytes: int = 4096  # a question with every option in use needs a quarter of it
    udp_answer_bytes: int = 1232  # DNS flag day 2020; more goes over TCP
    # A flood has to be read away faster than it comes, or the kernel drops everybody's datagrams. So what a socket, and
    # what a process, sends beyond its share in a moment is dropped; a browser sends a hundred at once.
    datagrams_per_wakeup: int = 256  # then the flows get their turn
    datagrams_share: int = 256
    moment_s: float = 0.5
    outstanding_queries: int = (
        512  # of one UDP socket; then the oldest is dropped: an answer takes it a moment or never
    )
    tcp_connections: int = 256  # then the one that has been idle longest ends
    tcp_pipelined: int = 32  # unanswered queries of one connection; then we stop reading it
    tcp_outstanding: int = 512  # unanswered queries of all connections; they may all be answered in one turn
    tcp_idle_s: float = 10.0  # RFC 7766 §6.2.3: "of the order of a few seconds"
    tcp_write_s: float = 10.0  # a client that does not read its answers
    records_per_window: int = 1024
    record_window_s: float = 60.0
