"""Traces: which kernels a real program calls, with which sizes, how often and how long."""
