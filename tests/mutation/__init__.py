"""Mutation check: small faults planted in the passes and layouts, and whether the tests see them.

``python -m tests.mutation --help``; what it measures and how to read it: docs/mutation.md.
"""
