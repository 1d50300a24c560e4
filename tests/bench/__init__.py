"""Measures this server against bare vLLM on the same machine: `make bench`."""
