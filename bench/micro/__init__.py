"""pytest-benchmark over the table in ``bench.kernels``."""
