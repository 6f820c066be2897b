"""Attention over a low-bit cache: codes of keys and values are unpacked inside the block loop."""
