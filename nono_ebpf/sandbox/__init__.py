"""What the command sees and may do: user, privileges, file view, init, and the state that a crash leaves to clean."""
