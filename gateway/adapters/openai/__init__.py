"""Upstreams through the openai package, bytes in and bytes out."""
