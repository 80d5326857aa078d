"""Whose native code may run."""

import os
import stat

import pytest

from infopt.runtime.trust import refusal

ME = os.geteuid()


def status(owner=ME, mode=stat.S_IFREG | 0o644, names=1):
    return os.stat_result((mode, 1, 1, names, owner, 0, 10, 0, 0, 0))


FOLDER = stat.S_IFDIR | 0o755


def test_an_artifact_of_this_user_or_root():
    files = [("the folder", status(mode=FOLDER, names=4)), ("manifest.json", status(owner=0))]
    assert refusal("same-owner", False, files) is None


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (status(owner=ME + 1), "belongs to another user: expected user id 0 or"),
        (status(mode=stat.S_IFREG | 0o646), "can be written by every user"),
        (status(mode=stat.S_IFDIR | 0o777), "can be written by every user"),
        (status(names=2), r"has 2 names \(hard links\): expected 1"),
    ],
)
def test_what_others_may_have_made(found, reason):
    files = [("manifest.json", status()), ("plans/avx2.json", found)]
    with pytest.raises(AssertionError, match=reason):  # pytest's way to match a text
        raise AssertionError(refusal("same-owner", False, files))
    assert refusal("same-owner", True, files) is None
    assert refusal("any", False, files) is None


def test_a_folder_like_tmp_is_everybodys_but_guarded():
    folder = status(mode=stat.S_IFDIR | stat.S_ISVTX | 0o777, names=9)
    assert refusal("same-owner", False, [("the folder", folder)]) is None


def test_policies():
    own = [("manifest.json", status())]
    assert "native='never'" in refusal("never", True, own)
    assert "no key was given" in refusal("signed", False, own)
    assert refusal("signed", True, own) is None
    with pytest.raises(ValueError, match="native: expected one of"):
        refusal("sure", False, own)
