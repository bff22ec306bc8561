"""Whole HTTP/1 connections, ours against h11: what the fuzz target looks for, over some thousand fixed inputs."""

from __future__ import annotations

from itertools import chain

from fuzz.http1_differential import Stricter, connection, exceptions_met


def test_h11_reads_what_we_accept_as_we_do() -> None:
    """No input tells the readers apart, but where h11 is stricter than the standard; each of these cases occurs."""
    results = [exceptions_met(connection(number)) for number in range(4000)]
    assert set(chain.from_iterable(met for met, _ in results)) == set(Stricter)
    messages = list(chain.from_iterable(reading.messages for _, reading in results))
    requests = sum(isinstance(message.line[0], str) for message in messages if message.complete)
    # Neither side was refused so often that the comparison says nothing.
    assert requests > 2000
    assert len([message for message in messages if message.complete]) - requests > 1000
    assert sum(bool(message.content) for message in messages) > 1000
