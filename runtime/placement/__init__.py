"""Which device holds which expert: chosen from a routing trace, after ExFlow (arXiv 2401.08383).

``trace`` reads what a router did, ``topology`` and ``problem`` say what a placement costs,
``chain``, ``alternate``, ``program``, ``recursive`` and ``search`` find good ones, ``bounds`` says
how good any can be, ``solve`` puts them together, ``traffic`` counts what execution will send, and
``file`` keeps the result. No model is known here and no torch is needed.
"""
