"""Products with packed weights as programs on whole blocks: codes become matrices for matrix
units."""
