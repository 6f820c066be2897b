"""Masks and scores of real models, one file each: what it is, where it is from, and a picture.

``python -m examples.masks.causal`` computes an example through ``tilewright.attention``, compares
it with the definition in float64 and draws which (query, key) pairs see each other, as text or,
with the name of a file, as SVG. ``python -m examples.masks`` writes docs/masks.md and its pictures.
"""

# The order of docs/masks.md: one module of this package each, with an ENTRY.
NAMES = (
    "causal",
    "causal_bottom_right",
    "sliding_window",
    "prefix_lm",
    "document",
    "dilated_window",
    "global_local",
    "neighbourhood",
    "tree",
    "alibi",
    "t5_relative_bias",
    "soft_cap",
    "sinks",
    "chunked_prefill",
    "paged",
    "segments",
)
