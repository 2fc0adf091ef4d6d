"""Property tests draw the same examples on every run: a red CI means a changed program, not an unlucky day."""

import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `slow` or `extras` run when they are asked for: pytest -m slow, make extras."""
    if config.option.markexpr:
        return
    later = [item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("extras")]
    if later:
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if item not in later]
