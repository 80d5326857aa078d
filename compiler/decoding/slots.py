"""A cache of so many slots: new tokens take the place of older ones, by their age or worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infopt.codegen.kernels.kv_parts import merge_parts
from infopt.compiler.decoding.policy import LayerCache, LayerShape, Policy, Store
from infopt.compiler.errors import BadOption, TraceDeclined


class SlotPolicy(Policy):
    """Stores beside keys and values: "places" int64 [H, S, 1], where in the text a slot's token
    stands, -1 for none. Which slots the new tokens get is the subclass's."""

    group = 1  # what was overwritten cannot come back
    forgets = True

    def slots(self) -> int:
        """How many slots a head has."""
        raise NotImplementedError

    def choose(self, cache: LayerCache, new: Tensor) -> Tensor:
        """Slots int64 [B, H, T] of the call's tokens, which stand at new [B, T] (-1: padding)."""
        raise NotImplementedError

    def given_away(self, cache: LayerCache, slots: Tensor) -> None:
        """What is done with the tokens in slots [B, H, T] (-1: none) that are written over next."""

    def stores(self, shape: LayerShape, max_length: int) -> dict[str, Store]:
        heads, slots = shape.heads, self.slots()
        return {
            "keys": Store((heads, slots, shape.key_width), shape.dtype),
            "values": Store((heads, slots, shape.value_width), shape.dtype),
            "places": Store((heads, slots, 1), torch.int64, -1),
        }

    def append(self, cache: LayerCache, k: Tensor, v: Tensor) -> None:
        write, new = torch.ops.infopt.kv_write, cache.new_places(k.shape[2])
        slots = self.choose(cache, new)
        slots = torch.where(new[:, None] >= 0, slots, -1)
        self.given_away(cache, slots)
        places = new[:, None, :, None].expand(-1, k.shape[1], -1, 1)
        for name, x in (("keys", k), ("values", v), ("places", places)):
            cache[name] = write(cache[name], x, slots)

    def seen(self, cache: LayerCache, q: Tensor, window: int) -> Tensor:
        """bool [B, H * groups, T, S]: the slots whose tokens a query may see."""
        place = cache["places"][:, :, None, :, 0]
        at = cache.starts[:, None] + torch.arange(q.shape[2], device=q.device)
        at = at[:, None, :, None]
        seen = (place >= 0) & (place <= at)
        if window:
            seen = seen & (place > at - window)
        return seen.repeat_interleave(q.shape[1] // seen.shape[1], 1)


@dataclass(frozen=True)
class Ring(SlotPolicy):
    """The first few tokens, which softmax rests on, and a window of the newest ones
    (StreamingLLM, Xiao et al., 2024).

    A query meets the first tokens no farther away than the window is long: as in the paper, their
    distance is that within the cache. It is the query that is turned back, by the rotary
    frequencies that the model has; so texts may be longer than the positions that it knows. Where
    no frequencies are found (learned positions), distances stay those in the text.
    """

    sinks: int = 4
    window: int = 1020
    chunk: int = 64  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 1 or self.chunk < 1:
            raise BadOption(f"expected 0 sinks or more and a window of 1 or more, found {self}")

    def slots(self) -> int:
        return self.sinks + self.window + self.chunk

    def endless(self, shape: LayerShape) -> bool:
        return shape.rotary

    def choose(self, cache: LayerCache, new: Tensor) -> Tensor:
        turning = self.sinks + (new - self.sinks) % (self.window + self.chunk)
        slots = torch.where(new < self.sinks, new, turning)
        return slots[:, None].expand(-1, cache.shape.heads, -1)

    def attend(
        self, cache: LayerCache, q: Tensor, *, scale: float, window: int, softcap: float
    ) -> Tensor:
        if softcap:
            raise TraceDeclined("a ring has no form with capped scores")
        seen = self.seen(cache, q, min(window or self.window, self.window))
        parts, keys, values = [], cache["keys"], cache["values"]
        part, cut = torch.ops.infopt.attention_part, self.sinks
        if cut:
            near = self._turned(cache, q)
            first = self.seen(cache, q, 0)[..., :cut]
            parts.append(part(near, keys[:, :, :cut], values[:, :, :cut], first, scale=scale))
        rest = part(q, keys[:, :, cut:], values[:, :, cut:], seen[..., cut:], scale=scale)
        return merge_parts([*parts, rest])

    def _turned(self, cache: LayerCache, q: Tensor) -> Tensor:
        """The queries as if they stood at the end of the cache, where they stand behind it."""
        if cache.inverse_frequencies is None:
            return q
        at = cache.starts[:, None] + torch.arange(q.shape[2], device=q.device)
        back = (at - (self.sinks + self.window - 1)).clamp(min=0).float()[:, None, :, None]
        angles = back * cache.inverse_frequencies
        angles = torch.cat((angles, angles), -1)
        width = angles.shape[-1]
        rotary, rest = q[..., :width].float(), q[..., width:]
        one, two = rotary.chunk(2, -1)
        turned = rotary * angles.cos() + torch.cat((two, -one), -1) * angles.sin()
        return torch.cat((turned.to(q.dtype), rest), -1)


@dataclass(frozen=True)
class Evict(SlotPolicy):
    """So many tokens per head; a new one takes the slot of the one with the lowest score, which
    here is the attention that it got in all (H2O, Zhang et al., 2023). Heads differ in what they
    keep.

    tokens  slots of each head
    recent  the newest tokens, which stay
    """

    tokens: int = 1024
    recent: int = 128
    chunk: int = 64  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.recent < 0 or self.tokens < self.recent + 2 * self.chunk:
            raise BadOption(f"expected tokens >= recent + 2 * chunk, found {self}")

    def slots(self) -> int:
        return self.tokens

    def score(self, cache: LayerCache) -> Tensor:
        """f32 [B, H, S]: the lowest goes. Stores: "mass", "squares" and "steps", [B, H, S, 1]: the
        attention that each slot got, the sum of its squares, and how many queries saw it."""
        return cache["mass"][..., 0]

    def stores(self, shape: LayerShape, max_length: int) -> dict[str, Store]:
        sizes = (shape.heads, self.tokens, 1)
        counted = {n: Store(sizes, torch.float32) for n in ("mass", "squares", "steps")}
        return super().stores(shape, max_length) | counted

    def choose(self, cache: LayerCache, new: Tensor) -> Tensor:
        place = cache["places"][..., 0]
        recent = place > cache.starts[:, None, None] - self.recent
        score = torch.where(recent, math.inf, self.score(cache))
        score = torch.where(place < 0, -math.inf, score)  # empty slots first, in short texts too
        order = torch.ops.infopt.top_places(-score, count=self.chunk + 1, by_place=False)
        return order.narrow(2, 0, new.shape[1])  # fewer than there are: else torch fixes the size

    def append(self, cache: LayerCache, k: Tensor, v: Tensor) -> None:
        slots_before = cache["places"]
        super().append(cache, k, v)
        fresh = slots_before != cache["places"]
        for name in ("mass", "squares", "steps"):
            cache[name] = torch.where(fresh, 0.0, cache[name])

    def attend(
        self, cache: LayerCache, q: Tensor, *, scale: float, window: int, softcap: float
    ) -> Tensor:
        if softcap:
            raise TraceDeclined("eviction has no form with capped scores")
        seen, groups = self.seen(cache, q, window), q.shape[1] // cache.shape.heads
        keys = cache["keys"]
        out, logsum = torch.ops.infopt.attention_part(q, keys, cache["values"], seen, scale=scale)
        rows = q.unflatten(1, (-1, groups))
        scores = (rows @ keys[:, :, None].transpose(3, 4)).float() * scale
        scores = scores - logsum.unflatten(1, (-1, groups))[..., None]
        real = torch.arange(q.shape[2], device=q.device) < cache.counts[:, None]
        counted = (seen & real[:, None, :, None]).unflatten(1, (-1, groups))
        weights = torch.where(counted, scores.exp(), 0.0)
        for name, x in (
            ("mass", weights),
            ("squares", weights * weights),
            ("steps", counted.float()),
        ):
            cache[name] = cache[name] + x.sum((2, 3))[..., None]
        return out


@dataclass(frozen=True)
class RoCo(Evict):
    """Evict by the mean of the attention since a token came, which does not favour old ones; tokens
    of which it varies most are safe (RoCo, Ren and Zhu, 2024).

    varied  how many standard deviations of score the least varied of the safe ones has
    """

    varied: float = 1.0

    def score(self, cache: LayerCache) -> Tensor:
        steps = cache["steps"][..., 0].clamp(min=1)
        mean = cache["mass"][..., 0] / steps
        deviation = (cache["squares"][..., 0] / steps - mean * mean).clamp(min=0).sqrt()
        middle = deviation.mean(-1, keepdim=True)
        spread = (deviation - middle).square().mean(-1, keepdim=True).sqrt()
        safe = deviation > middle + self.varied * spread
        return torch.where(safe, mean + 1.0, mean)  # a mean is 1 at most: after all the others
