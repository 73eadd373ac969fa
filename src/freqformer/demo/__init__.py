"""The page of ``freqformer demo``: what a model says of an image, and of what is left of it without some frequencies.

``subject`` loads the model, ``uploads`` reads what visitors send, ``examples`` makes images to choose from, ``looking``
computes what the page shows, ``app`` lays it out and ``serving`` puts it on an address.
"""

from .looking import Looked, attention_of, filters_of, look
from .serving import Address, address, serve
from .subject import Subject, load
from .uploads import read_upload, uploaded

__all__ = [
    "Address",
    "Looked",
    "Subject",
    "address",
    "attention_of",
    "filters_of",
    "load",
    "look",
    "read_upload",
    "serve",
    "uploaded",
]
