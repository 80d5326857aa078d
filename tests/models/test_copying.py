"""What teaches copying: parts that stand twice, and attention that is told where to look."""

import numpy as np
import torch

from infopt.models.decoder import Decoder, DecoderConfig
from infopt.models.language_model import copying

TINY = DecoderConfig(vocabulary=50, width=32, layers=2, heads=4, kv_heads=2, hidden=48)


def foretold(row: np.ndarray, copied: np.ndarray) -> bool:
    """Whether most of the marked tokens stand behind the same two tokens further to the left."""
    three = {tuple(row[i - 2 : i + 1]): i for i in range(len(row) - 1, 1, -1)}
    marked = np.flatnonzero(copied)
    return bool(np.mean([three[tuple(row[i - 2 : i + 1])] < i for i in marked]) > 0.5)


def test_repeated_parts_stand_twice() -> None:
    sizes = []
    for seed in range(100):
        row, copied = np.arange(257), np.zeros(257, bool)
        copying.repeat_parts(row, copied, np.random.default_rng(seed))
        assert foretold(row, copied)
        _, counts = np.unique(row, return_counts=True)
        assert len(row) == 257 and row.min() >= 0 and row.max() < 257
        sizes.append(int((counts > 1).sum()))
    assert min(sizes) >= 1 and min(sizes) < 30 < max(sizes)  # short ones and long ones


def test_names_stand_twice_and_some_are_not_of_the_text() -> None:
    foreign = 0
    for seed in range(50):
        row, copied = np.arange(1000, 1257), np.zeros(257, bool)
        copying.repeat_names(row, copied, 1000, np.random.default_rng(seed))
        assert copied.any()
        _, counts = np.unique(row, return_counts=True)
        assert len(row) == 257 and row.min() >= 1 and (counts > 1).any()
        foreign += int((row < 1000).sum())
    assert foreign > 0


def test_followers_stand_behind_the_same_two_tokens() -> None:
    ids = [5, 7, 9, 1, 5, 7, 2, 5, 7, 7]
    found = copying.followers(torch.tensor([ids]))[0]
    expected = {
        (i, j)
        for i in range(1, len(ids))
        for j in range(2, i + 1)
        if (ids[j - 2], ids[j - 1]) == (ids[i - 1], ids[i])
    }
    assert {(i, j) for i, j in found.nonzero().tolist()} == expected
    assert expected == {(5, 2), (8, 2), (8, 6)}


def attention(model: Decoder, ids: torch.Tensor, layer: int, head: int) -> torch.Tensor:
    """[T, T] of one head, as the module itself computes it: its values name their positions."""
    seen = {}
    module = model.layers[layer].attention
    width = model.config.head_width
    assert ids.shape[1] == width

    def name_positions(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return torch.eye(width).repeat(1, model.config.kv_heads)[None]

    def keep(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        seen["y"] = args[0]

    hooks = (
        module.value.register_forward_hook(name_positions),
        module.output.register_forward_pre_hook(keep),
    )
    model(ids)
    for hook in hooks:
        hook.remove()
    return seen["y"][0, :, head * width : (head + 1) * width]


def test_the_loss_is_the_attention_that_misses_the_followers() -> None:
    torch.manual_seed(0)
    model = Decoder(TINY)
    guidance = copying.Guidance(model, {1: (0, 3)})
    ids = torch.tensor([[3, 4, 8, 3, 4, 9, 3, 4]])
    model(ids)
    loss = guidance.loss(ids)
    right = copying.followers(ids)[0]
    losses = []
    for head in (0, 3):
        seen = attention(model, ids, 1, head)
        assert torch.allclose(seen.sum(-1), torch.ones(8), atol=1e-5)
        on = (seen * right).sum(-1)[right.any(-1)]
        losses.append(-on.log().mean())
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_guided_heads_learn_where_to_look() -> None:
    torch.manual_seed(0)
    model = Decoder(TINY)
    guidance = copying.Guidance(model, {1: (2,)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        first = torch.randint(50, (4, 10))
        ids = torch.cat((first, first), 1)
        model(ids)
        loss = guidance.loss(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_text_without_repetition_asks_for_nothing() -> None:
    model = Decoder(TINY)
    guidance = copying.Guidance(model, {0: (0,), 1: (3,)})
    ids = torch.arange(12)[None]
    model(ids)
    assert guidance.loss(ids).item() == 0
