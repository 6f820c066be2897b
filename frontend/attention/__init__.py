"""``tilewright.attention``: masks and scores as functions, traced into one program per form."""
