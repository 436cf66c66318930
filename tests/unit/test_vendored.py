"""The page's libraries are the ones that scripts/vendor fetched, unchanged."""

from __future__ import annotations

import json
import re

from local_runpod.pages import PAGE, VENDORED, policy_of
from scripts.vendor import PACKAGES, RECORD, digest


def test_vendored_files_are_those_of_the_pinned_packages() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert set(record) == {f"{package.name}@{package.version}" for package in PACKAGES}
    recorded = {name: value for files in record.values() for name, value in files.items()}
    present = {path.name: digest(path.read_bytes()) for path in VENDORED.iterdir() if path != RECORD}
    assert present == recorded


def test_page_asks_this_server_for_everything() -> None:
    html = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"""\b(?:src|href)=["'][^/#$].*""", html) == []
    assert "@import" not in html
    assert "url(" not in html


def test_policy_names_the_pages_own_script_and_style() -> None:
    policy = policy_of("<style>a</style><script src='x'></script><script>b</script>")
    # printf a | openssl dgst -sha256 -binary | base64
    assert "style-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='" in policy
    assert "script-src 'self' 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='" in policy
