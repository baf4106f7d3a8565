"""Inference backends: processes that connect to the router and answer token IDs with token IDs."""
