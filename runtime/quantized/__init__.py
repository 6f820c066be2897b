"""Quantised tensors: codes of 1 to 8 bits packed into words, with scales and zeros beside them."""
