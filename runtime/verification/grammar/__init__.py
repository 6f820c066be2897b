"""A grammar of programs: what ``tilewright verify`` draws with Hypothesis, one file per kind."""
