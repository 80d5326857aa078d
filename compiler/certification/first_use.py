"""A user's pass is certified when it is first used: once per content and process."""

from __future__ import annotations

from collections.abc import Iterable

from infopt.compiler.certification.certify import Certificate, certify
from infopt.compiler.certification.gallery import GALLERY
from infopt.compiler.fx_pass import FxPass
from infopt.compiler.pipeline import Pass
from infopt.compiler.report import Report
from infopt.compiler.rewrite import Rule
from infopt.compiler.settings import Settings

_SECONDS = 0.2
_known: dict[str, Certificate] = {}  # by the digest of a pass's content


def certify_new(passes: Iterable[Pass], settings: Settings, report: Report) -> None:
    """Certify each pass that is not infopt's own and was not seen before, for a fifth of a second.

    Rules are given programs of their pattern, other passes those of gallery.py. Where none of them
    lets a pass apply, or it fails loudly on one of them, a note in the report says so.
    INFOPT_CERTIFY=0 leaves it out. Raises NotCertified with a counterexample where a pass gives
    wrong results or another contract of its own is broken silently.
    """
    if not settings.certify:
        return
    for p in passes:
        if _is_own(p) or p.name in settings.skip:
            continue
        digest = p.content.digest
        if digest not in _known:
            programs = () if isinstance(p, Rule) else GALLERY
            _known[digest] = certify(p, programs, draws=6, strict=False, seconds=_SECONDS)
        told = _known[digest]
        if told.failed:
            reason, count = told.failed.most_common(1)[0]
            report.notes.append(f"pass {p.name} on {count} generated graphs: {reason}")
        if not told.applied:
            report.notes.append(
                f"pass {p.name} could not be certified: no generated graph lets it apply; "
                f"infopt.testing.certify takes programs of yours"
            )


def _is_own(p: Pass) -> bool:
    return type(p).__module__.startswith("infopt.") and not isinstance(p, FxPass)
