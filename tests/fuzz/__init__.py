"""Fuzzing of all that reads files which others may have written; ``docs/safety.md`` says how.

``python -m tests.fuzz TARGET`` runs a campaign; ``tests/fuzz/test_*.py`` run each target shortly.
"""
