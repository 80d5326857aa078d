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
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from infopt.models.decoder import Decoder
from infopt.models.language_model import copying
from infopt.models.language_model.checkpoint import (
    CONTEXT,
    LANGUAGE_MODEL,
    load_language_model,
)

WARM_UP = 60  # steps
DECAY = 0.2  # the share of the planned tokens over which the rate falls
SAVE_EVERY = 300.0  # seconds
BEGUN = "begun.json"  # in a run's folder: the sources of the checkpoint it began with
# from this share of the planned tokens on: (tokens per step seen as one gradient, window). Small
# steps and short windows first: they are cheaper, and enough while the model knows little
STAGES = {0.0: (4096, 256), 0.25: (8192, 512), 0.75: (8192, CONTEXT)}
# a run that begins with a trained model: whole contexts, the only ones with distances to learn
LATER_STAGES = {0.0: (8192, CONTEXT)}
REPEATED = 0.5  # the share of the windows that repeats parts of itself
NAMED = 0.7  # of those, in a later run: the share whose parts are short names
COPIED = 3.0  # how much a token counts that the context foretells, in a later run
GUIDANCE = 0.1  # how much the attention of guided heads counts beside the tokens, in a later run


@dataclass
class Progress:
    step: int = 0
    tokens: int = 0
    planned: int = 0  # tokens of the run that it was part of


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
        self.folder = folder
        self.stages = LATER_STAGES if begin else STAGES
        if begin:
            self.model = load_language_model(begin).train().requires_grad_(True)
        else:
            self.model = Decoder(LANGUAGE_MODEL)
            self._initialise()
        self.guidance = copying.Guidance(self.model, copying.GUIDED) if begin else None
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
        self.progress = Progress(planned=tokens)

    def _initialise(self) -> None:
        for name, p in self.model.named_parameters():
            if p.dim() == 2:
                torch.nn.init.normal_(p, std=0.02 if "token" in name else p.shape[1] ** -0.5)
            if name.endswith(("output.weight", "down.weight")):
                torch.nn.init.zeros_(p)  # every layer starts as the identity

    def rate(self) -> float:
        """The factor on the learning rates at this point of the run."""
        done = self.progress
        left = (done.planned - done.tokens) / (DECAY * done.planned)
        return min(1.0, (done.step + 1) / WARM_UP, max(left, 0.0))

    def sizes(self) -> tuple[int, int]:
        """(tokens per step, window) at this point of the run."""
        share = self.progress.tokens / self.progress.planned
        return next(sizes for start, sizes in reversed(self.stages.items()) if share >= start)

    def next_windows(self, count: int, window: int) -> tuple[Tensor, Tensor]:
        """int64 [count, window + 1], from anywhere in the corpus, and how much each token counts,
        f32 likewise; the same again for a step."""
        random = np.random.default_rng(self.progress.step)
        starts = random.integers(0, len(self.ids) - window, count)
        rows = np.stack([self.ids[s : s + window + 1] for s in starts]).astype(np.int64)
        copied = np.zeros(rows.shape, bool)
        for index in np.flatnonzero(random.random(count) < REPEATED):
            row, mark = rows[index], copied[index]
            if self.guidance and random.random() < NAMED:
                copying.repeat_names(row, mark, LANGUAGE_MODEL.vocabulary, random)
            else:
                copying.repeat_parts(row, mark, random)
        worth = torch.ones(rows.shape)
        if self.guidance:
            worth[torch.from_numpy(copied)] = COPIED
        return torch.from_numpy(rows).to(self.device), worth.to(self.device)

    def step(self) -> float:
        """One update; returns the mean loss in nats per token."""
        tokens, window = self.sizes()
        rows, worth = self.next_windows(tokens // window, window)
        total, size = 0.0, max(1, 2048 // window)
        for piece, counts in zip(rows.split(size), worth[:, 1:].split(size), strict=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=has_bf16(self.device)):
                logits = self.model(piece[:, :-1])
            wanted = piece[:, 1:]
            nats = F.cross_entropy(
                logits.float().flatten(0, 1), wanted.flatten(), reduction="none"
            ).view_as(wanted)
            total += nats.mean().item() * len(piece) / len(rows)
            loss = (nats * counts).sum() / counts.sum()
            if self.guidance:
                loss = loss + GUIDANCE * self.guidance.loss(piece[:, :-1])
            (loss * (len(piece) / len(rows))).backward()
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
        self.progress = replace(read_progress(path), planned=self.progress.planned)
        return True


def has_bf16(device: torch.device) -> bool:
    """Whether products of bf16 are faster there than those of float32."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type != "cpu" or supported


def is_matrix(name: str, p: Tensor) -> bool:
    return p.dim() == 2 and not name.startswith("token")


def read_progress(path: Path) -> Progress:
    with safe_open(path, "pt") as file:
        return Progress(**json.loads(file.metadata()["progress"]))


def train(
    corpus: Path, folder: Path, tokens: int, begin: Path | None = None, device: str = "cpu"
) -> None:
    """Train up to `tokens` tokens, or go on with the run in `folder`, saving as it goes. begin: a
    checkpoint to begin with; its own tokens are not counted. device: of torch."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(corpus, folder, tokens, begin, device)
    if begin:
        shutil.copy(begin / "sources.json", folder / BEGUN)
    if not trainer.resume(state_to_go_on_from(folder, tokens)):
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
    return weights, read_progress(path)


def state_to_go_on_from(folder: Path, tokens: int) -> str:
    """`latest`; `stable` where that one is inside the fall of a run planned for fewer tokens."""
    if not (folder / "stable.safetensors").exists():
        return "latest"
    done = read_progress(folder / "latest.safetensors")
    fell = done.planned < tokens and done.tokens > (1 - DECAY) * done.planned
    return "stable" if fell else "latest"
