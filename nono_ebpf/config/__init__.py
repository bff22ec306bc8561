"""What the operator wrote, and the policy it means."""
