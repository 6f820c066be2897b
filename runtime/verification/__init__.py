"""Drawing programs, running them on a back end, and holding them to the oracle's bound."""
