from dataclasses import replace
from pathlib import Path

import pytest

from infopt.compiler.settings import BadSetting, Settings


def test_defaults() -> None:
    settings = Settings.from_environment({"HOME": "/somewhere"})
    assert (settings.debug, settings.check, settings.tune) == (0, 0, 0)
    assert settings.dump is None and settings.cxx is None
    assert settings.skip == frozenset()
    assert settings.cache is None or settings.cache.parts[-2:] == (".cache", "infopt")


def test_every_variable_is_read(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {
            "INFOPT_DEBUG": "4",
            "INFOPT_DUMP": str(tmp_path / "dump"),
            "INFOPT_CHECK": "2",
            "INFOPT_SKIP": "fuse-attention, fold-constants,",
            "INFOPT_CACHE": str(tmp_path),
            "INFOPT_CACHE_SIZE": "300M",
            "INFOPT_TUNE": "0",
            "CXX": "clang++",
        }
    )
    assert settings == Settings(
        debug=4,
        dump=tmp_path / "dump",
        check=2,
        skip=frozenset({"fuse-attention", "fold-constants"}),
        cache=tmp_path,
        cache_size=300 << 20,
        tune=0,
        cxx="clang++",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("INFOPT_DEBUG", "5"), ("INFOPT_DEBUG", "yes"), ("INFOPT_CHECK", "3"), ("INFOPT_TUNE", "-1")],
)
def test_unknown_value_names_variable_and_choices(name: str, value: str) -> None:
    with pytest.raises(BadSetting, match=rf"{name}='{value}': expected one of 0, 1, 2"):
        Settings.from_environment({name: value})


def test_empty_value_is_the_default() -> None:
    assert Settings.from_environment({"INFOPT_DEBUG": "", "INFOPT_CACHE": ""}).debug == 0


def test_the_cache_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert Settings.from_environment({}).cache == tmp_path / ".cache" / "infopt"


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert Settings.from_environment({}).cache is None


def test_relative_cache_does_not_move_with_the_working_folder() -> None:
    cache = Settings.from_environment({"INFOPT_CACHE": "here"}).cache
    assert cache is not None and cache.is_absolute()


@pytest.mark.parametrize("value", ["-1", "1.5G", "lots", "3 MB", "9" * 16])
def test_a_size_is_a_number_with_a_unit(value: str) -> None:
    with pytest.raises(BadSetting, match=r"INFOPT_CACHE_SIZE=.*: expected bytes, or a number with"):
        Settings.from_environment({"INFOPT_CACHE_SIZE": value})


def test_what_is_not_given_is_the_default() -> None:
    asked = Settings.from_environment({"HOME": "/somewhere"})
    assert replace(asked, cache=None) == Settings()
