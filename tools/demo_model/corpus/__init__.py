"""The text the demo model learns from, written by a seeded generator."""

from demo_model.corpus.dialogue import Conversation, make_conversation
from demo_model.corpus.render import Segment, render

__all__ = ["Conversation", "Segment", "make_conversation", "render"]
