"""Adapters: one package per outside thing; they translate and decide nothing."""
