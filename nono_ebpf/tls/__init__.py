"""Both ends of TLS, as far as it is not bytes that move: certificates of our own, and whose we believe."""
