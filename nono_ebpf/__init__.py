"""A network sandbox for untrusted programs, enforced by eBPF."""

__version__ = "0.1.0"
