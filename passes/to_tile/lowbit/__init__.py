"""Products with packed weights: rows of weights on lanes, codes unpacked in registers."""
