"""Where secrets are kept, and how they get from there to the one process that uses them."""
