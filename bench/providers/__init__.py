"""Who does a suite's problems: one module a provider, found at run time, each at its best settings.

A module has ``OFFERS``: for each suite it takes part in, a function of a problem and its inputs
that gives the ways it can be done (``Form``s, of which the fastest right one is measured), or
raises ``NotOffered``.
"""
