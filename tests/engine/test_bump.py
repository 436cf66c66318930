"""What pip finds in the package registry."""

from __future__ import annotations

import pytest

from scripts.bump import releases


def test_pip_knows_the_releases() -> None:
    assert {"1.11.0", "1.12.0"} <= set(releases("runpod"))


def test_unknown_package_is_an_error() -> None:
    with pytest.raises(LookupError, match="no-such-package-of-anyone"):
        releases("no-such-package-of-anyone")
