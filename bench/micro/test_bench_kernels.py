"""Times of each kernel, compiled beside pure beside foreign ones.

    pytest bench/micro --benchmark-enable --benchmark-group-by=group --benchmark-columns=min,median

Times are for reading; what guards against regressions is ``python -m bench.gate``.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.kernels import CASES, Case, NotBuiltError, variants

ROWS = [
    pytest.param(case, name, id=f"{case.name}-{name}")
    for case in CASES
    for name in ("compiled", "pure", *case.others)
]


@pytest.mark.parametrize(("case", "name"), ROWS)
def test_kernel(benchmark: Any, case: Case, name: str) -> None:
    try:
        work = variants(case)[name]
    except NotBuiltError as missing:
        pytest.fail(str(missing))
    benchmark.group = case.name
    benchmark.extra_info["operations"] = case.operations
    benchmark(work)
