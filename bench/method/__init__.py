"""How we measure, once for everything: turns, clocks, intervals, what the machine can do at most.

docs/measuring.md says why. Nothing here knows a workload or a provider.
"""
