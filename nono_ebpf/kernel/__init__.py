"""What only Linux knows: namespaces, cgroups, eBPF. For the processes that compose a sandbox, never for the relay."""
