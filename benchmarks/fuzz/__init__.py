"""Random networks through every engine: `python -m benchmarks.fuzz --help`."""
