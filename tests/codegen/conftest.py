"""The libraries of matrix-product kernels, one for each level this machine runs."""

import shutil

import pytest

from tests.codegen.product_kernels import LEVELS, Kernels, cpu_flags


@pytest.fixture(scope="session", params=list(LEVELS))
def kernels(request, tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler (g++)")
    missing = set(LEVELS[request.param]) - cpu_flags()
    if missing:
        pytest.skip(f"this machine lacks {', '.join(sorted(missing))}")
    return Kernels(request.param, tmp_path_factory.mktemp("kernels"))
