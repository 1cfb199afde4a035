"""Benchmarks of methods on cases, timed only after they agree. Run `python -m bench --help` in a clone."""
