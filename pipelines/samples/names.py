"""The choices that the command line offers. Kept apart from the builders, so that a help text loads none of them."""

from typing import Literal

CorpusName = Literal["openmoji", "emoji-google", "emoji-twitter", "openclipart"]
Captions = Literal["label", "label+tags"]
