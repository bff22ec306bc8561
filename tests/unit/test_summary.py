"""The summary at the end of a run."""

from __future__ import annotations

from nono_ebpf.audit.record import Record, open_record
from nono_ebpf.audit.summary import Summary
from nono_ebpf.model import Process


def denial(target: str, comm: str = "curl", pid: int = 4242, remedy: str | None = None) -> Record:
    record = open_record("flow", "redirect", Process(pid, comm, 1000, 7))
    record.target, record.port, record.reason, record.remedy = target, 443, "no rule allows it", remedy
    return record


def test_nothing_denied_is_nothing_said() -> None:
    """A run without denials ends without a word, whatever was allowed."""
    summary = Summary()
    allowed = denial("example.com")
    allowed.decision = "allow"
    summary.add(allowed)
    assert summary.render() == []


def test_equal_denials_are_one_line_with_their_number_and_remedy() -> None:
    """Repetition is counted, and each line has the option that would help."""
    summary = Summary()
    for pid in (4242, 4243, 4244):
        summary.add(denial("api.example.com", pid=pid, remedy="--allow-domain api.example.com"))
    summary.add(denial("169.254.169.254", comm="sh"))
    assert summary.render() == [
        "nono-ebpf: 4 denied",
        (
            "  api.example.com:443  curl (pid 4242) \N{MULTIPLICATION SIGN}3  no rule allows it  "
            "allow with: --allow-domain api.example.com"
        ),
        "  169.254.169.254:443  sh (pid 4242)       no rule allows it",
    ]


def test_a_different_command_port_or_reason_is_a_different_line() -> None:
    """Nothing that a reader would act on differently is merged."""
    summary = Summary()
    other_port, other_reason = denial("a.example"), denial("a.example")
    other_port.port = 22
    other_reason.reason = "denied by rule"
    for record in (denial("a.example"), denial("a.example", comm="wget"), other_port, other_reason):
        summary.add(record)
    assert len(summary.render()) == 5


def test_a_program_that_names_a_thousand_hosts_does_not_fill_memory_or_screen() -> None:
    """Groups are bounded; the rest is counted."""
    summary = Summary(limit=3)
    for number in range(1000):
        summary.add(denial(f"h{number}.example"))
    lines = summary.render()
    assert lines[0] == "nono-ebpf: 1000 denied"
    assert [line.split()[0] for line in lines[1:4]] == ["h0.example:443", "h1.example:443", "h2.example:443"]
    assert lines[4:] == ["  … and 997 more"]
    assert len(summary._groups) == 3


def test_hostile_text_is_shown_escaped_and_short() -> None:
    """Command names and targets are chosen by the program; they cannot write to the terminal."""
    summary = Summary()
    summary.add(denial("x" * 5000, comm="\x1b[2J\x9b"))
    lines = summary.render()
    assert all(line.isprintable() for line in lines)
    assert "\\x1b[2J\\x9b" in lines[1]
    assert len(lines[1]) < 250


def test_a_denial_without_process_or_reason_still_shows() -> None:
    """A kernel event may know neither."""
    summary = Summary()
    record = open_record("kernel", "kernel")
    record.original_destination = "192.0.2.1:53"
    summary.add(record)
    assert summary.render() == ["nono-ebpf: 1 denied", "  192.0.2.1:53    denied"]


def challenge(pid: int, outcome: str) -> Record:
    record = denial("api.example.com", comm="java", pid=pid)
    record.reason, record.auth_outcome = "the session token is missing", outcome
    record.decision = "deny" if outcome == "failed" else "allow"
    return record


def test_a_client_that_waits_to_be_asked_was_not_denied() -> None:
    """Only who never showed the token is told about."""
    summary = Summary()
    for pid, outcome in ((1, "failed"), (2, "failed"), (1, "succeeded")):
        summary.add(challenge(pid, outcome))
    first, line = summary.render()
    assert first == "nono-ebpf: 1 denied"
    assert "(pid 2)" in line
