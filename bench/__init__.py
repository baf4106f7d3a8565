"""Benches of rollmq, one question a file, each beside the best reference that we could write.

Run one with `python -m bench.<question> --seconds N --json`; README.md lists them.
"""
