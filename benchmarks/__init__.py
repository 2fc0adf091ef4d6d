"""Measurements of speed and quality, run by hand: `python -m benchmarks` lists them."""
