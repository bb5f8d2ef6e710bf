"""Measures the gateway beside nginx and the bare upstream: see README.md."""
