"""What only Linux knows: namespaces, cgroups, eBPF. Imported by the two processes that compose a sandbox, never by the relay."""
