"""A network sandbox for untrusted programs, enforced by eBPF."""

import sys

__version__ = "0.1.0"

# An installer may leave a relative entry, and the working directory is the sandboxed account's: root imports nothing
# from there.
sys.path[:] = [entry for entry in sys.path if entry.startswith("/")]
