"""The decoding benchmark: its cache computes what the model does, its rows say what was read."""

from __future__ import annotations

import json

import torch

from benchmarks import decode
from benchmarks.limits import Limits
from infopt.models.decoder import SMALL, Decoder


def test_eager_with_a_cache_decodes_what_whole_sequences_give():
    torch.manual_seed(0)
    model = Decoder(SMALL).bfloat16().eval()
    ids = torch.randint(0, SMALL.vocabulary, (2, 7))
    with torch.no_grad():
        state = decode.eager_prefill(model, ids, 16)
        tokens = [state[2]]
        for _ in range(3):
            decode.eager_steps(state, 1)
            tokens.append(state[2])
        whole = model(torch.cat([ids, *tokens[:-1]], 1))[:, 6:].argmax(-1)
    assert torch.equal(torch.cat(tokens, 1), whole)


def test_rows(monkeypatch, tmp_path):
    limits = Limits({"fp32": 1e12, "bf16": 2e12, "int8": 4e12}, {16: 4e11, 256: 5e10}, "test")
    monkeypatch.setattr(decode, "measure", lambda threads: limits)
    monkeypatch.setitem(decode.MODELS, "small", SMALL)
    path = tmp_path / "rows.json"
    arguments = "--models small --forms bf16,int8 --batches 1,2 --prompt 5 --steps 1 --rounds 1"
    assert decode.main([*arguments.split(), "--eager", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(r["form"], r["batch"]) for r in rows] == [
        (form, batch) for batch in (1, 2) for form in ("eager", "bf16", "int8")
    ]
    size = {r["form"]: r["weights"] for r in rows}
    assert size["bf16"] >= size["eager"] > size["int8"] > size["eager"] / 2
    assert all(("prefill_tokens" in r) == (r["batch"] == 1) for r in rows)
