"""`python -m benchmarks NAME [options]`: run one benchmark; NAME --help lists its options."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "encoders": "time, first call, memory and accuracy of real encoders against every peer",
    "opinfo": "PyTorch's operator database: every op, dtype and sample against eager",
    "random_programs": "random programs compared with eager through a front door",
    "zoo": "transformers architectures compared with eager at two sizes",
    "generate": "transformers' generate() with compiled decoders, token by token",
    "decode": "tokens per second of decoders in every format, and how near memory is",
    "kv_cache": "a decoder's step by layout and policy of its cache, at long contexts",
    "kv_remainder": "outliers and thin factors beside a rounded cache, by the bits they take",
    "kv_quality": "perplexity and recall of a real model by layout and policy of its cache",
    "compaction": "prompts cut to the tokens that matter: time, perplexity, two questions",
    "quantization": "formats and budgets on a real model: error, agreement, bytes",
    "decoder_budgets": "budgets over formats, techniques and the cache of a real decoder",
    "low_bits": "3 and 4 bits, tables and remainders on real models: what each format loses",
    "low_rank": "thin factors and slices: bytes, memory, time, agreement",
    "adapters": "rows of a batch with adapters of their own: a step, a batch of sequences",
    "tokens": "merging and dropping tokens: speed and agreement with all of them",
    "streaming": "a step of a stream against computing its past again, by hop",
    "pruning": "fewer channels and heads: size, speed, and quality by what is chosen",
    "groups": "layers that skip groups of weights against whole ones, and what MiniLM loses",
    "prefill": "a long prompt whole and in parts that keep a limit: memory, time, bits",
    "slices": "a U-Net block whole and in slices that keep a limit: memory, time, bits",
    "experts": "a layer of a mixture of experts against eager and Inductor",
    "sparsity": "a decoder's steps that skip weights: speed, and perplexity by share",
    "sparse_choices": "what of feed-forward weights steps may leave unread: perplexity, speed",
    "table": "the tables of README and docs, from JSON files of encoders",
    "gpu_resources": "registers, spills, shared memory of GPU kernels; needs no GPU",
    "gpu_compile": "cold compile of an 8B-shaped decoder for a GPU; needs none",
    "gpu": "GPU kernels against their references, then against torch's best, in 9 minutes",
    "overhead": "cost of one call beyond dynamo's guards",
    "compile_time": "first call cold and warm, and its growth with depth",
    "robustness": "killed, forked, interrupted: what readers, children and next calls find",
    "sanitize": "native code under address and undefined-behaviour sanitizers",
    "mutation": "faults put into the compiler: do the tests notice?",
    "memory": "peak memory against eager",
    "bitflips": "damage to artifacts: is every flipped bit found, and what it costs",
}


def main(arguments: list[str]) -> int:
    """Dispatch to `benchmarks.<name>.main`; returns the exit status."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in COMMANDS:
        return importlib.import_module(f"benchmarks.{name}").main(rest)
    print("usage: python -m benchmarks NAME [options]\n")
    for known, what in COMMANDS.items():
        print(f"  {known:16s}{what}")
    return 0 if name in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
