"""Pruning methods of this package next to those of pquant-ml: accuracy at equal sparsity."""
