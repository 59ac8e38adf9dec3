"""A memory of the user's own things: stored so that nothing acknowledged is lost, recalled by embedding."""

from .arrow_storage import ArrowStorage as ArrowStorage
from .arrow_storage import Recall as Recall
from .database import CorruptStorageError as CorruptStorageError
from .database import StorageError as StorageError
from .hopfield import hopfield_readout as hopfield_readout
from .records import Memory as Memory
