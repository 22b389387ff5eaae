"""What a validation costs, measured on real servers and a real engine: `python -m bench --help`."""
