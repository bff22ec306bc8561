"""What is in another process's memory: where some bytes occur in it. proc_pid_mem(5)."""

from __future__ import annotations

from pathlib import Path


def occurrences(pid: int, needle: bytes) -> int:
    """How often `needle` stands in what process `pid` has mapped for reading."""
    found = 0
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions, *_, name = [*line.split(maxsplit=5), ""][:6]
            if "r" not in permissions or name.startswith("[v"):  # vvar and vdso are the kernel's
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            memory.seek(start)
            try:
                found += memory.read(end - start).count(needle)
            except OSError:  # a page that nobody may read
                continue
    return found
