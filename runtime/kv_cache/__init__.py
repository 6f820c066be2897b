"""Caches of keys and values in 1 to 8 bits: quantised when appended, read by attention as codes."""
