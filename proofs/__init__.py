"""Proofs at full size: what the tests show small, shown often enough to believe. See README.md."""
