"""Benchmarks: kernels against their references, and Nexus beside its peers. See README.md."""
