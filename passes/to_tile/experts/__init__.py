"""Mixture-of-experts layers: which rows go to which expert, grouped products, results combined."""
