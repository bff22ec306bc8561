"""What happened in a sandbox: one record per flow, request, lookup and kernel refusal."""
