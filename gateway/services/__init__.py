"""Use cases: they decide what happens in which order, and know ports only."""
