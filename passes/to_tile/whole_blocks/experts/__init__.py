"""Mixture-of-experts layers on whole blocks, for GPUs: the plan of a call, products, sums."""
