"""`python -m benchmarks table FILES`: markdown tables from the JSON of `encoders`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

NAMES = {
    "minilm-1x128": "MiniLM (real), 1×128",
    "minilm-32x128": "MiniLM, 32×128",
    "minilm-16-ragged": "MiniLM, 16 ragged sentences",
    "bert-1x128": "BERT-base, 1×128",
    "bert-8x384": "BERT-base, 8×384",
    "vit-1": "ViT-base, 1 image",
    "vit-8": "ViT-base, 8 images",
    "resnet-1": "ResNet-50, 1 image",
    "resnet-8": "ResNet-50, 8 images",
    "prefill-512": "0.34B decoder, prefill 512",
}
COLUMNS = (("eager",), ("inductor", "inductor-max"), ("openvino",), ("onnxruntime",))


def main(argv: list[str]) -> int:
    """Markdown: medians in milliseconds, infopt's best arm, its ratio to the best peer; the fastest
    in bold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks table", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for path in parser.parse_args(argv).files:  # a later file replaces cells of an earlier one
        for cell in json.loads(path.read_text())["cells"]:
            cells[cell["workload"], cell["dtype"]] = cell["arms"]
    print("| workload | precision | eager | Inductor | OpenVINO | ONNX Runtime | infopt | limit |")
    print("|---|---|---|---|---|---|---|---|")
    for (workload, dtype), arms in cells.items():
        print(_row(NAMES.get(workload, workload), dtype, arms))
    return 0


def _row(workload: str, dtype: str, arms: dict[str, dict[str, Any]]) -> str:
    measured = {name: arm for name, arm in arms.items() if "median" in arm}
    columns = [_least(measured, names) for names in COLUMNS]
    own = min((a for a in measured.values() if a["own"]), key=lambda a: a["median"])
    peers = [c["median"] for c in columns if c]
    ratio = f" ({min(peers) / own['median']:.2f}×)" if peers else ""
    fastest = min([own["median"], *peers])
    times = " | ".join(_milliseconds(c, fastest) for c in columns)
    limit = f"{own['of_limit']:.0%}"
    return f"| {workload} | {dtype} | {times} | {_milliseconds(own, fastest)}{ratio} | {limit} |"


def _least(arms: dict[str, dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any] | None:
    found = [arms[name] for name in names if name in arms]
    return min(found, key=lambda a: a["median"], default=None)


def _milliseconds(arm: dict[str, Any] | None, fastest: float) -> str:
    if not arm:
        return "–"
    text = f"{arm['median'] * 1e3:.1f}"
    return f"**{text}**" if arm["median"] == fastest else text
