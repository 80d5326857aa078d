"""Targets: detection, parsing with its errors, levels, reasons."""

import pytest

from infopt.compiler.errors import BadOption
from infopt.compiler.target import LEVELS, Target


def test_detect_describes_this_machine() -> None:
    target = Target.detect()
    assert target.kind == "cpu" and target.cores >= 1
    assert target.level in LEVELS
    assert target.lacks(target.level) is None
    assert all(size > 0 for size in target.caches)
    assert Target.parse("native") == target == Target.parse("cpu")


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_includes_those_before_it(level: str) -> None:
    target = Target.parse(f"cpu:{level}")
    assert target.level == level
    names = list(LEVELS)
    below = names[: names.index(level) + 1]
    assert target.lacks(*below, *(f for n in below for f in LEVELS[n])) is None


def test_several_levels_mean_the_highest() -> None:
    assert Target.parse("cpu:avx512,amx").level == "amx"
    assert Target.parse("cpu:amx, scalar").level == "amx"


def test_lacks_gives_a_reason() -> None:
    reason = Target.parse("cpu:avx2").lacks("avx2", "amx_tile")
    assert reason == "cpu:avx2 has no amx_tile"


def test_more_capable_is_faster_and_differs_in_key() -> None:
    targets = [Target.parse(f"cpu:{level}") for level in LEVELS]
    speeds = [t.peak_of("bf16") for t in targets]
    assert speeds == sorted(speeds)
    assert len({t.key for t in targets}) == len(targets)


def test_cores_scale_the_peak() -> None:
    one, four = Target.parse("cpu:avx2,cores=1"), Target.parse("cpu:avx2,cores=4")
    assert four.peak["f32"] == 4 * one.peak["f32"] and four.cores == 4
    assert Target.parse("cpu:cores=3").level == Target.detect().level


@pytest.mark.parametrize(
    "text", ["tpu", "cpu:avx1024", "cpu:cores=0", "cpu:cores=x", "native:x", ""]
)
def test_unknown_targets_list_what_is_possible(text: str) -> None:
    with pytest.raises(BadOption, match="avx512_bf16") as error:
        Target.parse(text)
    assert repr(text) in str(error.value)


def test_a_partial_avx512_is_not_the_level() -> None:
    made = Target._cpu("x", "x86_64", ["avx2", "fma", "f16c", "avx512f"], 2, (1, 2, 3))
    assert made.level == "avx2" and made.lacks("avx512") == "x has no avx512"
    assert hash(made) == hash(Target._cpu("x", "x86_64", made.features, 2, (1, 2, 3)))


def test_a_target_says_what_it_is() -> None:
    text = str(Target.parse("cpu:avx2,cores=3"))
    assert "(avx2, 3 cores, about f32 " in text and text.endswith(" GFLOP/s)")
