"""The first tier leaves out what is there."""

from tiers import RUNS, SLOW, TESTS


def test_what_the_first_tier_leaves_out_exists() -> None:
    assert [name for name in SLOW if not (TESTS / name).exists()] == []
    fixtures = (TESTS / "conftest.py").read_text()
    assert [name for name in RUNS if f"def {name}(" not in fixtures] == []
