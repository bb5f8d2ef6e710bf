"""Suites that others wrote, and that are not on PyPI or npm: `nox -s compliance`."""
