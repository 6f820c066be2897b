"""The GPU back end that writes Triton source: tile programs on whole blocks, one kernel each."""
