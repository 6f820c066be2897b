"""The portable CPU back end: tile programs of one lane as plain Python loops, compiled by Numba."""
