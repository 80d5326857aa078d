"""`python -m infopt.models.language_model corpus | train | export | perplexity | recall`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from infopt.models.language_model import checkpoint, corpus, evaluation, training


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infopt.models.language_model")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("corpus", "collect the text, train the tokenizer"),
        ("train", "train, or go on with a run"),
        ("export", "write the run's weights as a checkpoint in bf16"),
        ("perplexity", "of held-out files"),
        ("recall", "of names defined 100, 500 and 900 tokens earlier"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("--folder", type=Path, required=True, help="where the run lives")
        if name in ("corpus", "train"):
            command.add_argument(
                "--begin",
                type=Path,
                help="a checkpoint to begin with: its tokenizer, its weights",
            )
        if name == "train":
            command.add_argument("--tokens", type=float, default=20e6, help="planned in all")
            command.add_argument("--threads", type=int, default=2)
            command.add_argument("--device", default="cpu", help="torch's name of it")
        elif name != "corpus":
            command.add_argument(
                "--checkpoint", type=Path, default=checkpoint.FOLDER, help="config and weights"
            )
        if name == "perplexity":
            command.add_argument("--window", type=int, default=512)
            command.add_argument("--windows", type=int, default=60)
    return parser.parse_args()


def main() -> None:
    """Dispatch to the command."""
    given = arguments()
    text = given.folder / "corpus"
    if given.command == "corpus":
        corpus.build(text, checkpoint.load_tokenizer(given.begin) if given.begin else None)
        print((text / "sources.json").read_text())
    elif given.command == "train":
        torch.set_num_threads(given.threads)
        training.train(text, given.folder, int(given.tokens), given.begin, given.device)
    elif given.command == "export":
        export(given.folder, given.checkpoint)
    else:
        model = checkpoint.load_language_model(given.checkpoint)
        tokenizer = checkpoint.load_tokenizer(given.checkpoint)
        held_out = np.load(text / "held_out.npy", mmap_mode="r")
        if given.command == "perplexity":
            print(evaluation.perplexity(model, held_out, given.window, given.windows, tokenizer))
        else:
            for distance in (100, 500, 900):
                print(evaluation.recall(model, held_out, distance, tokenizer))


def export(folder: Path, out: Path) -> None:
    """The newest weights of a run, with the tokenizer and what they were trained on, by this run
    and by those that it goes on from."""
    weights, progress = training.newest(folder)
    checkpoint.export(weights, out, {"tokens": str(progress.tokens)})
    shutil.copy(folder / "corpus" / "tokenizer.json", out / "tokenizer.json")
    sources = json.loads((folder / "corpus" / "sources.json").read_text())
    sources["trained on"] = {"tokens": progress.tokens, "steps": progress.step}
    begun = folder / training.BEGUN
    if begun.exists():
        sources["begun with"] = json.loads(begun.read_text())
    (out / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")
    print(f"{out}: after {progress.tokens} tokens")


if __name__ == "__main__":
    main()
