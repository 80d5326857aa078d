"""The corpus: Python source under permissive licenses that the machine has anyway.

The standard library and installed packages, their docstrings being the documentation. Files are
split before anything is removed: about 1 in 60 is held out, chosen by the hash of its name. A
paragraph (text between blank lines) of 100 characters or more is kept once, and one that stands in
a held-out file is never trained on: copied code and license headers are found that way.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

VOCABULARY = 4096
END = 0  # the id that ends every document
HELD_OUT_ONE_IN = 60
LARGEST_FILE = 200_000  # bytes; larger files are tables
PARAGRAPH = 100  # characters from which a repeated paragraph counts as a copy

# import name -> (distribution, license); None: the standard library of the running Python
SOURCES: dict[str, tuple[str | None, str]] = {
    "python": (None, "PSF-2.0"),
    "numpy": ("numpy", "BSD-3-Clause"),
    "torch": ("torch", "BSD-3-Clause"),
    "sympy": ("sympy", "BSD-3-Clause"),
    "networkx": ("networkx", "BSD-3-Clause"),
    "scipy": ("scipy", "BSD-3-Clause"),
    "sklearn": ("scikit-learn", "BSD-3-Clause"),
    "transformers": ("transformers", "Apache-2.0"),
    "huggingface_hub": ("huggingface-hub", "Apache-2.0"),
    "mpmath": ("mpmath", "BSD-3-Clause"),
    "pygments": ("pygments", "BSD-2-Clause"),
    "rich": ("rich", "MIT"),
    "click": ("click", "BSD-3-Clause"),
    "pydantic": ("pydantic", "MIT"),
    "fsspec": ("fsspec", "BSD-3-Clause"),
    "joblib": ("joblib", "BSD-3-Clause"),
    "narwhals": ("narwhals", "MIT"),
    "setuptools": ("setuptools", "MIT"),
    "packaging": ("packaging", "Apache-2.0 OR BSD-2-Clause"),
    "anyio": ("anyio", "MIT"),
}
# tests and tables; vendored and generated code; transformers' models are copies of each other
LEFT_OUT = {
    *("test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "_vendor", "encodings"),
    *("_distutils", "models", "unicode", "_generated", "config-3.11-x86_64-linux-gnu"),
}


def files_of(name: str) -> Iterator[tuple[str, Path]]:
    """The source files of one entry of SOURCES, with a name that is the same on every machine."""
    if SOURCES[name][0] is None:
        root = Path(sysconfig.get_paths()["stdlib"])
    else:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return
        root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py")):
        inner = path.relative_to(root)
        if not LEFT_OUT & set(inner.parts[:-1]) and path.stat().st_size <= LARGEST_FILE:
            yield f"{name}/{inner.as_posix()}", path


def is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % HELD_OUT_ONE_IN == 0


def without_copies(text: str, seen: set[bytes]) -> str:
    """The text's paragraphs that are not in `seen`, which learns them."""
    kept = []
    for paragraph in text.split("\n\n"):
        if len(paragraph) >= PARAGRAPH:
            mark = hashlib.sha256("".join(paragraph.split()).encode()).digest()
            if mark in seen:
                continue
            seen.add(mark)
        kept.append(paragraph)
    return "\n\n".join(kept)


def read_documents() -> tuple[list[str], list[str], dict[str, dict[str, object]]]:
    """(documents to train on, held-out documents, what was read from where)."""
    split: dict[bool, list[str]] = {True: [], False: []}
    origin: dict[str, dict[str, object]] = {}
    seen: set[bytes] = set()
    found = {name: list(files_of(name)) for name in SOURCES}
    for held_out in (True, False):  # held-out files first: what they say is not trained on
        for files in found.values():
            chosen = [path for inner, path in files if is_held_out(inner) is held_out]
            split[held_out] += _texts(chosen, seen)
    for name, files in found.items():
        package, license = SOURCES[name]
        version = (
            distribution(package).version if package and files else sysconfig.get_python_version()
        )
        origin[name] = {"version": version, "license": license, "files": len(files)}
    return split[False], split[True], origin


def held_out_documents() -> list[str]:
    """The held-out half of read_documents alone, in seconds."""
    seen: set[bytes] = set()
    chosen = (path for name in SOURCES for inner, path in files_of(name) if is_held_out(inner))
    return _texts(chosen, seen)


def _texts(files: Iterable[Path], seen: set[bytes]) -> list[str]:
    """What is new in each file, where that is a paragraph or more."""
    texts = (without_copies(path.read_text("utf-8", errors="ignore"), seen) for path in files)
    return [text for text in texts if len(text) >= PARAGRAPH]


def train_tokenizer(documents: list[str]):
    """A byte-level BPE of VOCABULARY pieces; id END is `<end>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # digits one by one, indentation as pieces of its own, then bytes as GPT-2 shows them
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<end>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents[::4], trainer)
    return tokenizer


def encode(documents: list[str], tokenizer) -> np.ndarray:
    """All documents one after another as uint16 ids, each ended by END."""
    parts = []
    for at in range(0, len(documents), 64):
        for encoding in tokenizer.encode_batch_fast(documents[at : at + 64]):
            parts.append(np.array([*encoding.ids, END], dtype=np.uint16))
    return np.concatenate(parts)


def read(folder: Path, half: str, tokenizer, most: int | None = None) -> np.ndarray:
    """The ids of "train" or "held_out" that `build` wrote, as `tokenizer` splits the text: another
    machine's packages train another one. most: of the ids in the file, from the beginning."""
    from tokenizers import Tokenizer

    ids = np.load(folder / f"{half}.npy", mmap_mode="r")[:most]
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if theirs.to_str() == tokenizer.to_str():
        return ids
    ends = np.flatnonzero(ids == END)
    documents = [part[part != END].tolist() for part in np.split(ids, ends)]
    return encode([text for text in theirs.decode_batch(documents) if text], tokenizer)


def build(folder: Path, tokenizer=None) -> None:
    """Write tokenizer.json, train.npy, held_out.npy and sources.json. tokenizer: that of a model
    which is to be trained further, in place of one of this text."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out, origin = read_documents()
    order = np.random.default_rng(0).permutation(len(train))
    train = [train[i] for i in order]
    tokenizer = tokenizer or train_tokenizer(train)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {}
    for name, documents in (("train", train), ("held_out", held_out)):
        ids = encode(documents, tokenizer)
        np.save(folder / f"{name}.npy", ids, allow_pickle=False)
        sizes[name] = {
            "files": len(documents),
            "bytes": sum(len(d.encode()) for d in documents),
            "tokens": len(ids),
        }
    (folder / "sources.json").write_text(
        json.dumps({"split": sizes, "sources": origin}, indent=1) + "\n"
    )
