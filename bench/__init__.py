"""Measures what a validation costs, on real servers and a real engine: `python -m bench --help`."""
