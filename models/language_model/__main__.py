"""`python -m infopt.models.language_model corpus | train | export | perplexity | recall`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infopt.models.language_model")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("corpus", "collect the text, train the tokenizer"),
        ("train", "train, or go on with a run"),
        ("export", "write the run's weights as a checkpoint in bf16"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("--folder", type=Path, required=True, help="where the run lives")
        if name == "train":
            command.add_argument("--tokens", type=float, default=20e6, help="planned in all")
            command.add_argument("--threads", type=int, default=2)
        if name == "export":
            command.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Dispatch to the command."""
    from infopt.models.language_model import corpus, training

    given = arguments()
    if given.command == "corpus":
        corpus.build(given.folder / "corpus")
        print((given.folder / "corpus" / "sources.json").read_text())
    elif given.command == "train":
        torch.set_num_threads(given.threads)
        training.train(given.folder / "corpus", given.folder, int(given.tokens))


if __name__ == "__main__":
    main()
