"""HGQ side by side: accuracy against EBOPs of this package, HGQ2 and pquant-ml, each in its own environment."""
