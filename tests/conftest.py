"""Property tests draw the same examples on every run: a red CI means a changed program, not an unlucky day."""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
