"""Training of the language model: made to be cut off at any time and continued.

Matrices are trained by Muon (Jordan et al., 2024), the embedding and the norms by AdamW. The rate
rises, stays, and falls to zero over the last fifth of the planned tokens (warm-up, stable, decay:
Hu et al., 2024), because such a run can be given more tokens later: the state where the fall begins
is kept as `stable`, and training with a larger `tokens` goes on from there. State is safetensors
and JSON, written beside the old one and renamed.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from infopt.models.decoder import Decoder
from infopt.models.language_model.checkpoint import CONTEXT, LANGUAGE_MODEL

WARM_UP = 60  # steps
DECAY = 0.2  # the share of the planned tokens over which the rate falls
SAVE_EVERY = 300.0  # seconds
# from this share of the planned tokens on: (tokens per step seen as one gradient, window). Small
# steps and short windows first: they are cheaper, and enough while the model knows little
STAGES = {0.0: (4096, 256), 0.25: (8192, 512), 0.75: (8192, CONTEXT)}
# this share of the windows repeats a part of itself, which teaches copying from context earlier
# than source alone does (induction heads: Olsson et al., 2022)
REPEATED = 0.125


@dataclass
class Progress:
    step: int = 0
    tokens: int = 0


class Trainer:
    """The model, its two optimizers and where the run stands."""

    def __init__(self, corpus: Path, folder: Path, tokens: int) -> None:
        torch.manual_seed(0)
        self.ids = np.load(corpus / "train.npy", mmap_mode="r")
        self.folder, self.planned = folder, tokens
        self.model = Decoder(LANGUAGE_MODEL)
        self._initialise()
        inner = [p for name, p in self.model.named_parameters() if is_matrix(name, p)]
        rest = [p for name, p in self.model.named_parameters() if not is_matrix(name, p)]
        self.optimizers = (
            torch.optim.Muon(inner, lr=0.02, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=0.003, betas=(0.9, 0.95), weight_decay=0.0),
        )
        self.rates = [group["lr"] for o in self.optimizers for group in o.param_groups]
        self.progress = Progress()

    def _initialise(self) -> None:
        for name, p in self.model.named_parameters():
            if p.dim() == 2:
                torch.nn.init.normal_(p, std=0.02 if "token" in name else p.shape[1] ** -0.5)
            if name.endswith(("output.weight", "down.weight")):
                torch.nn.init.zeros_(p)  # every layer starts as the identity

    def rate(self) -> float:
        """The factor on the learning rates at this point of the run."""
        left = (self.planned - self.progress.tokens) / (DECAY * self.planned)
        return min(1.0, (self.progress.step + 1) / WARM_UP, max(left, 0.0))

    def sizes(self) -> tuple[int, int]:
        """(tokens per step, window) at this point of the run."""
        share = self.progress.tokens / self.planned
        return next(sizes for start, sizes in reversed(STAGES.items()) if share >= start)

    def next_windows(self, count: int, window: int) -> Tensor:
        """int64 [count, window + 1], from anywhere in the corpus; the same again for a step."""
        random = np.random.default_rng(self.progress.step)
        starts = random.integers(0, len(self.ids) - window, count)
        rows = np.stack([self.ids[s : s + window + 1] for s in starts]).astype(np.int64)
        for index in np.flatnonzero(random.random(count) < REPEATED):
            repeat_a_part(rows[index], random)
        return torch.from_numpy(rows)

    def step(self) -> float:
        """One update; returns the mean loss in nats per token."""
        tokens, window = self.sizes()
        rows = self.next_windows(tokens // window, window)
        total = 0.0
        pieces = rows.split(max(1, 2048 // window))
        for piece in pieces:
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.model(piece[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), piece[:, 1:].flatten())
            (loss * (len(piece) / len(rows))).backward()
            total += loss.item() * len(piece) / len(rows)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor, rates = self.rate(), iter(self.rates)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = next(rates) * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.tokens += tokens
        return total

    def save(self, name: str) -> None:
        """`name`.safetensors: weights, optimizer state and progress."""
        tensors = {f"model.{k}": v.contiguous() for k, v in self.model.state_dict().items()}
        for which, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizer.{which}.{index}.{key}"] = torch.as_tensor(value)
        beside = self.folder / f".{name}.tmp"
        save_file(tensors, beside, {"progress": json.dumps(asdict(self.progress))})
        os.replace(beside, self.folder / f"{name}.safetensors")

    def resume(self, name: str) -> bool:
        """Go on from `name`.safetensors; False where there is none."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return False
        tensors = load_file(path)
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k[:6] == "model."}
        self.model.load_state_dict(weights)
        for which, optimizer in enumerate(self.optimizers):
            whole = optimizer.state_dict()
            for name_, value in tensors.items():
                head, _, rest = name_.partition(f"optimizer.{which}.")
                if not head and rest:
                    index, key = rest.split(".", 1)
                    whole["state"].setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(whole)
        self.progress = Progress(**json.loads(read_metadata(path)["progress"]))
        return True


def repeat_a_part(row: np.ndarray, random: np.random.Generator) -> None:
    """Write a part of the row a second time further on, in place."""
    size = int(random.integers(len(row) // 16, len(row) // 3))
    first = int(random.integers(0, len(row) - 2 * size))
    second = int(random.integers(first + size, len(row) - size + 1))
    row[second : second + size] = row[first : first + size]


def is_matrix(name: str, p: Tensor) -> bool:
    return p.dim() == 2 and not name.startswith("token")


def read_metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def train(corpus: Path, folder: Path, tokens: int) -> None:
    """Train up to `tokens` tokens, or go on with the run in `folder`, saving as it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(corpus, folder, tokens)
    if not trainer.resume("stable" if finished_before(folder, tokens) else "latest"):
        trainer.save("latest")
    saved = started = time.monotonic()
    first = trainer.progress.tokens
    stable_kept = trainer.rate() < 1 and trainer.progress.step >= WARM_UP
    while trainer.progress.tokens < tokens:
        if not stable_kept and trainer.progress.tokens >= (1 - DECAY) * tokens:
            trainer.save("stable")
            stable_kept = True
        loss = trainer.step()
        now, done = time.monotonic(), trainer.progress
        speed = (done.tokens - first) / (now - started)
        print(
            f"step {done.step} tokens {done.tokens} loss {loss:.3f} rate {trainer.rate():.3f} "
            f"{speed:.0f} tok/s",
            flush=True,
        )
        if now - saved > SAVE_EVERY:
            trainer.save("latest")
            saved = now
    trainer.save("latest")


def newest(folder: Path) -> tuple[dict[str, Tensor], Progress]:
    """The weights of the newest state of a run, and how far it had come."""
    path = folder / "latest.safetensors"
    tensors = load_file(path)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    return weights, Progress(**json.loads(read_metadata(path)["progress"]))


def finished_before(folder: Path, tokens: int) -> bool:
    """Whether `latest` is inside the fall of a run that was planned for fewer tokens."""
    stable = folder / "stable.safetensors"
    if not stable.exists():
        return False
    begun = json.loads(read_metadata(stable)["progress"])["tokens"]
    return begun < (1 - DECAY) * tokens - 1
