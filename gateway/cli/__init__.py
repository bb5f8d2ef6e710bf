"""The command line; `commands` has all of it, the other modules do the work."""
