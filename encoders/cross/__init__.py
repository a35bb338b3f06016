"""Cross-encoders: a picture and a caption attend to each other, and one number says how well they match.

They have no vectors, so nothing can be indexed: each pair costs a forward pass. They re-rank what two towers found.
"""

from encoders.cross.encoder import CrossEncoder, load

__all__ = ["CrossEncoder", "load"]
