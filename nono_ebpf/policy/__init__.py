"""What is allowed: pure functions over rules, names and addresses."""
