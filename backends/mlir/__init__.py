"""The fast CPU back end: tile programs to MLIR (vector, scf, arith, llvm), to LLVM IR."""
