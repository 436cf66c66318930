"""What pip and npm find in their registries."""

from __future__ import annotations

import shutil

import pytest

from scripts.bump import PAGE_PLACES, RELEASE, npm_release, releases

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is needed")


def test_pip_knows_the_releases() -> None:
    assert {"1.11.0", "1.12.0"} <= set(releases("runpod"))


def test_unknown_package_is_an_error() -> None:
    with pytest.raises(LookupError, match="no-such-package-of-anyone"):
        releases("no-such-package-of-anyone")


@needs_npm
@pytest.mark.parametrize("package", PAGE_PLACES)
def test_npm_knows_the_page_s_libraries(package: str) -> None:
    assert RELEASE.fullmatch(npm_release(package))


@needs_npm
def test_unknown_package_of_npm_is_an_error() -> None:
    with pytest.raises(LookupError, match="no-such-package-of-anyone"):
        npm_release("no-such-package-of-anyone")
