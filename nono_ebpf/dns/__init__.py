"""Names: what the sandbox is told, what the host's resolvers say, and which address stands for which name."""
