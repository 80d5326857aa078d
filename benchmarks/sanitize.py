"""The native code built with address and undefined-behaviour sanitizers, under its own tests.

    python -m benchmarks sanitize

Works on a copy without installed libraries, so that executor, kernels and generated code are all
built anew; needs g++. Minutes: every level is compiled, and runs several times slower.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"
TESTS = (
    "codegen/test_row_kernels.py",
    "codegen/test_linear_kernels.py",
    "codegen/test_few_rows_kernels.py",
    "codegen/test_matmul_kernels.py",
    "codegen/test_byte_kernels.py",
    "codegen/test_attention_kernels.py",
    "codegen/test_kernel_declarations.py",
    "codegen/test_regions.py",
    "codegen/test_lower.py",
    "runtime/test_executor.py",
    "runtime/test_threads.py",
    "runtime/test_artifact.py",
)


def main(arguments: list[str]) -> int:
    """Run the tests; 1 if one fails or a sanitizer reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sanitize", description=__doc__)
    parser.add_argument("tests", nargs="*", default=TESTS, help="below tests/")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sanitize-") as folder:
        copy = Path(folder) / "source"
        ignored = shutil.ignore_patterns(".git", "lib", "build", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
        environment = os.environ | {
            "PYTHONPATH": str(copy),
            "CXX": f"g++ {FLAGS}",
            "INFOPT_CACHE": f"{folder}/cache",
        }
        build = "from infopt.codegen import build, toolchain\nprint(build.executor_library())\n"
        build += "for level in toolchain.LEVELS: print(build.prebuilt(level), flush=True)"
        subprocess.run([sys.executable, "-c", build], cwd=copy, env=environment, check=True)
        # Python is not built with the sanitizers, so their libraries have to come first.
        environment |= {
            "LD_PRELOAD": f"{_library('libasan.so')} {_library('libubsan.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        }
        failed = []
        for test in args.tests:
            command = [sys.executable, "-m", "pytest", f"tests/{test}", "-q", "-x"]
            if subprocess.run(command, cwd=copy, env=environment).returncode:
                failed.append(test)
    print(f"sanitized: {len(args.tests) - len(failed)} of {len(args.tests)} test files clean")
    return 1 if failed else 0


def _library(name: str) -> str:
    answer = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
    return answer.stdout.strip()
