"""A simulated inference server: vLLM's scheduler and cache as rules, a script for a model."""
