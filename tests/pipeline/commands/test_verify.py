"""``d2nas verify``: names that are none of a store, a version or a bundle."""

import pytest
from toy import Place, expect_error


def test_a_mistyped_store_is_not_one_without_damage(
    capfd: pytest.CaptureFixture[str], place: Place
) -> None:
    assert "there is no store" in expect_error(capfd, place, 2, "verify")
    assert not place.store.exists()


def test_a_mistyped_bundle_is_not_looked_for_among_versions(
    capfd: pytest.CaptureFixture[str], place: Place
) -> None:
    place.store.mkdir()
    assert "no bundle" in expect_error(capfd, place, 2, "verify", "exported/nope")
    for version in ("toy/search@v1", "toy/search-state", "toy/evaluate@v2"):
        assert "no version" in expect_error(capfd, place, 2, "verify", version)
