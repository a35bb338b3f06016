"""The names that a command line takes; apart from what builds, so that a help text loads none of it."""

from typing import Literal

CorpusName = Literal["openmoji", "emoji-google", "emoji-twitter", "openclipart"]
Captions = Literal["label", "label+tags"]
