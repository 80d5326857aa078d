"""Training of the language model: made to be cut off at any time and continued.

Matrices are trained by Muon (Jordan et al., 2024), the embedding and the norms by AdamW; a run that
begins with a trained model takes AdamW for all. The rate rises, stays, and falls to zero over the
last fifth of the planned tokens (warm-up, stable, decay: Hu et al., 2024), because such a run can
be given more tokens later: the state where the fall begins is kept as `stable`, and training with a
larger `tokens` goes on from there. State is safetensors and JSON, written beside the old one and
renamed.
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
from infopt.models.language_model.checkpoint import (
    CONTEXT,
    LANGUAGE_MODEL,
    load_language_model,
)

WARM_UP = 60  # steps
DECAY = 0.2  # the share of the planned tokens over which the rate falls
SAVE_EVERY = 300.0  # seconds
# from this share of the planned tokens on: (tokens per step seen as one gradient, window). Small
# steps and short windows first: they are cheaper, and enough while the model knows little
STAGES = {0.0: (4096, 256), 0.25: (8192, 512), 0.75: (8192, CONTEXT)}
# a run that begins with a trained model: whole contexts, the only ones with distances to learn
LATER_STAGES = {0.0: (8192, CONTEXT)}
# this share of the windows repeats parts of itself, which teaches copying from context earlier
# than source alone does (induction heads: Olsson et al., 2022)
REPEATED = 0.5
SHORTEST_PART = 6  # tokens; the longest is a third of the window


@dataclass
class Progress:
    step: int = 0
    tokens: int = 0


class Trainer:
    """The model, its two optimizers and where the run stands.

    begin: the folder of a checkpoint whose weights the run begins with, in place of random ones.
    device: of torch, where the products are; bf16 where it has them.
    """

    def __init__(
        self,
        corpus: Path,
        folder: Path,
        tokens: int,
        begin: Path | None = None,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.ids = np.load(corpus / "train.npy", mmap_mode="r")
        self.folder, self.planned = folder, tokens
        self.stages = LATER_STAGES if begin else STAGES
        if begin:
            self.model = load_language_model(begin).train().requires_grad_(True)
        else:
            self.model = Decoder(LANGUAGE_MODEL)
            self._initialise()
        self.model.to(self.device)
        inner = [p for name, p in self.model.named_parameters() if is_matrix(name, p)]
        rest = [p for name, p in self.model.named_parameters() if not is_matrix(name, p)]
        of_matrices: torch.optim.Optimizer
        if begin:  # what Muon gains is gained early, and its bf16 products are slow on old machines
            of_matrices = torch.optim.AdamW(inner, lr=0.001, betas=(0.9, 0.95), weight_decay=0.01)
        else:
            of_matrices = torch.optim.Muon(inner, lr=0.02, momentum=0.95, weight_decay=0.01)
        of_rest = torch.optim.AdamW(
            rest, lr=0.001 if begin else 0.003, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.optimizers = (of_matrices, of_rest)
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
        return next(sizes for start, sizes in reversed(self.stages.items()) if share >= start)

    def next_windows(self, count: int, window: int) -> Tensor:
        """int64 [count, window + 1], from anywhere in the corpus; the same again for a step."""
        random = np.random.default_rng(self.progress.step)
        starts = random.integers(0, len(self.ids) - window, count)
        rows = np.stack([self.ids[s : s + window + 1] for s in starts]).astype(np.int64)
        for index in np.flatnonzero(random.random(count) < REPEATED):
            repeat_parts(rows[index], random)
        return torch.from_numpy(rows).to(self.device)

    def step(self) -> float:
        """One update; returns the mean loss in nats per token."""
        tokens, window = self.sizes()
        rows = self.next_windows(tokens // window, window)
        total = 0.0
        pieces = rows.split(max(1, 2048 // window))
        for piece in pieces:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=has_bf16(self.device)):
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


def repeat_parts(row: np.ndarray, random: np.random.Generator) -> None:
    """Write up to four parts of the row a second time further on, in place: of any size, short
    ones as often as long ones, at any distance."""
    for _ in range(int(random.integers(1, 5))):
        longest = len(row) // 3
        size = round(SHORTEST_PART * (longest / SHORTEST_PART) ** random.random())
        first = int(random.integers(0, len(row) - 2 * size + 1))
        second = int(random.integers(first + size, len(row) - size + 1))
        row[second : second + size] = row[first : first + size]


def has_bf16(device: torch.device) -> bool:
    """Whether products of bf16 are faster there than those of float32."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type != "cpu" or supported


def is_matrix(name: str, p: Tensor) -> bool:
    return p.dim() == 2 and not name.startswith("token")


def read_metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def train(
    corpus: Path, folder: Path, tokens: int, begin: Path | None = None, device: str = "cpu"
) -> None:
    """Train up to `tokens` tokens, or go on with the run in `folder`, saving as it goes. begin: a
    checkpoint to begin with; its own tokens are not counted. device: of torch."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(corpus, folder, tokens, begin, device)
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
