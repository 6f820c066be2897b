"""Bundles: kernels compiled beforehand, in a folder that loads without a compiler."""
