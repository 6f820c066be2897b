"""Passes: from tensors to streams to tiles. Each is a function Module -> Module with a name.

This package imports ``ir`` only; it never imports torch and knows no back end.
"""
