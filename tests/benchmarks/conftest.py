"""The benchmarks are part of the source checkout; a copy of the tests without them skips theirs."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("benchmarks") else ["test_*.py"]
