"""Memory for expert weights: one range of addresses a weight, pages only where an expert exists.

Base experts and adapter slots lie in one range, so that a kernel needs one pointer (ExpertWeave's
VMM tensor, arXiv 2508.17624 §3). This package knows bytes, pages and slots, and no models.
"""
