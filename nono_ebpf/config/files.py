"""Reading a profile from a path that somebody else may have written: what it leads to is a file, and of a size.

The one place that opens profiles. Must not know what they say.
"""

from __future__ import annotations

import errno
import os
import stat

from nono_ebpf.config.document import MAX_BYTES


def read_profile(path: str) -> bytes:
    """What the file `path` has, with the rights of whoever calls; of one that is too large, one byte too many.

    Never waits for what is no file: a pipe, a device, a socket. Raises OSError, with ENODEV for these.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.ENODEV, "it is not a regular file", path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1) or b""  # None: a file of procfs that would wait
    finally:
        os.close(descriptor)
