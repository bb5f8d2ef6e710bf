"""Decisions without I/O: what a turn, an approval, a rule and a chain are."""
