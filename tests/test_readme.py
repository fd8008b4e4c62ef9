"""README and docs: every block of code runs, in order, as written; every link leads somewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import documentation
from tests.documentation import DOCUMENTS, ROOT, Reader, blocks


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_code_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    reader = Reader(tmp_path)
    for block in blocks(document):
        reader.follow(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    missing = [str(target) for target in documentation.links(document) if not target.exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for block in blocks(document):
        for target in documentation.make_targets(block) if block.language == "sh" else []:
            assert f"\n{target}:" in makefile, f"{name(document)} line {block.line}: make {target}"


def test_the_op_of_the_guide_is_short() -> None:
    files = [block for block in blocks(ROOT / "docs" / "add-an-op.md") if block.title]
    assert files
    assert all(block.code.count("\n") < 40 for block in files)
