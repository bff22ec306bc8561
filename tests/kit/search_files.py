"""Searches what an account can read, in the file system of some process, for byte strings: prints [[path, form], …].

argv: a process id, a uid, a gid, a time of day in nanoseconds; stdin: {form: hex}. Needs root, which it gives up. Looks
at files changed since then in the directories that every account may write to. Standard library only.
"""

from __future__ import annotations

import json
import os
import stat
import sys

PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/home")
OVERLAP_BYTES = 4096  # longer than any form of a secret
_CHUNK_BYTES = 1 << 22
_BEGIN_BYTES = 4  # in which most of the forms of many secrets are alike: most data is done with after a few looks


def contained(data: bytes, wanted: dict[str, bytes]) -> list[str]:
    """The names of those that are in `data`."""
    there = {begin for begin in {form[:_BEGIN_BYTES] for form in wanted.values()} if begin in data}
    return [name for name, form in wanted.items() if form[:_BEGIN_BYTES] in there and form in data]


def changed(top: str, since_ns: int) -> list[str]:
    """The regular files below `top` that were changed since then."""
    found, directories = [], [top]
    while directories:
        try:
            with os.scandir(directories.pop()) as listed:
                entries = list(listed)
        except OSError:
            continue
        for entry in entries:
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:  # gone meanwhile, and the others are not
                continue
            if stat.S_ISDIR(about.st_mode):
                directories.append(entry.path)
            elif stat.S_ISREG(about.st_mode) and about.st_ctime_ns >= since_ns:
                found.append(entry.path)
    return found


def forms_in(path: str, wanted: dict[str, bytes]) -> set[str]:
    """The names of those that are in a file; none when it cannot be read."""
    found: set[str] = set()
    tail = b""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # nothing may be imported after chroot
            while data := file.read(_CHUNK_BYTES):
                found.update(contained(tail + data, wanted))
                tail = data[-OVERLAP_BYTES:]
    except OSError:
        pass
    return found


def main() -> None:
    """Search."""
    pid, uid, gid, since_ns = map(int, sys.argv[1:])
    wanted = {name: bytes.fromhex(form) for name, form in json.load(sys.stdin).items()}
    os.chroot(f"/proc/{pid}/root")
    os.chdir("/")
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    paths = [path for place in PLACES for path in changed(place, since_ns)]
    print(json.dumps([[path, form] for path in paths for form in sorted(forms_in(path, wanted))]))


if __name__ == "__main__":
    main()
