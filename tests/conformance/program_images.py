"""Parts of image and audio models as runs of statements: convolutions, pools, and their norms."""

from __future__ import annotations

from typing import Any

CHANNELS = (1, 2, 3, 4, 8, 16, 17)
Drawing = Any


def _image(d: Drawing, dims: int) -> str | None:
    """A value [N, C, L] or [N, C, H, W], a new one where none fits."""
    x = d.some("f", dims + 2)
    if x is not None and len(d.shape_of(x)) == dims + 2 and d.chance(60):
        return str(x)
    batch, channels = d.pick((1, 2, 3)), d.pick(CHANNELS)
    shapes = tuple(
        (batch, channels, *(d.pick((1, 3, 5, 8, 9, 12)) for _ in range(dims)))
        for _ in range(d.calls if d.dynamic else 1)
    )
    return str(d.input(shapes if d.dynamic else shapes * d.calls, d.floats[0], "normal"))


def convolution(d: Drawing) -> None:
    """A convolution of one or two dims, with what often follows it."""
    dims = d.pick((1, 2, 2))
    x = _image(d, dims)
    channels = {d.shape_of(x, c)[1] for c in range(d.calls)}
    if len(channels) > 1 or 0 in channels:
        return
    (given,) = channels
    groups = d.pick([g for g in (1, 1, 1, 2, given) if given % g == 0])
    made = groups * d.pick((1, 2, 3, 8))
    window = tuple(d.pick((1, 1, 2, 3, 5)) for _ in range(dims))
    dtype = d.envs[0][x].dtype
    w = d.input(((made, given // groups, *window),) * d.calls, dtype, "small")
    bias = d.input(((made,),) * d.calls, dtype, "small")
    more = ["", ", stride=2", ", padding=1", ", padding='same'", ", stride=2, padding=1"]
    more += [", dilation=2", ", stride=3"]
    options = f"{d.pick(more)}, groups={groups}"
    given_bias = "{2}" if d.chance(60) else "None"
    y = d.emit(f"F.conv{dims}d({{0}}, {{1}}, {given_bias}{options})", x, w, bias)
    if y and d.chance(40):
        rows = tuple((made,) for _ in range(d.calls))
        mean, scale, shift = (d.input(rows, dtype, "small") for _ in range(3))
        spread = d.input(rows, dtype, "positive")
        y = d.emit("F.batch_norm({0}, {1}, {2}, {3}, {4})", y, mean, spread, scale, shift)
    if y and d.chance(60):
        after = ("{0}.relu()", "F.gelu({0})", "F.silu({0})", "F.hardswish({0})", "{0} * 0.5")
        y = d.emit(d.pick(after), y)
    if y and d.shape_of(y) == d.shape_of(x) and d.chance(60):
        d.emit("{0} + {1}", y, x)


def pool(d: Drawing) -> None:
    """Pools, norms over channels, and other sizes."""
    dims = d.pick((1, 2, 2))
    x = _image(d, dims)
    codes = [
        "F.avg_pool<n>d({0}, 2)",
        "F.avg_pool<n>d({0}, 3, stride=2, padding=1)",
        "F.avg_pool<n>d({0}, 3, stride=1, padding=1, count_include_pad=False)",
        "F.max_pool<n>d({0}, 2) + 0",
        "F.max_pool<n>d({0}, 3, stride=2, padding=1) + 0",
        "F.adaptive_avg_pool<n>d({0}, 1)",
        "F.adaptive_avg_pool<n>d({0}, 3)",
        "F.adaptive_max_pool<n>d({0}, 2) + 0",
        "F.group_norm({0}, 1)",
        "F.instance_norm({0})",
        "F.interpolate({0}, scale_factor=2, mode='nearest')",
    ]
    if dims == 2:
        codes += ["F.interpolate({0}, size=(4, 6), mode='bilinear')", "F.pixel_unshuffle({0}, 2)"]
        codes += ["F.unfold({0}, 2)", "F.pad({0}, (1, 1, 2, 0), mode='reflect')"]
    code = d.pick(codes).replace("<n>", str(dims))
    d.emit(code, x, kind="exact" if "max" in code or "unfold" in code else "free")


IMAGE_PARTS = (convolution, convolution, pool)
