"""The Hugging Face Hub: what is pushed, with which card, and what makes it run without our import."""

from .model_card import CardFacts as CardFacts
from .pushing import PushMixin as PushMixin
from .pushing import push_adapter as push_adapter
from .upload import push_folder as push_folder
