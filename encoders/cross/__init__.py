"""Cross-encoders: a picture and a caption attend to each other, and one number says how well they match.

A cross-encoder gives no vectors, so nothing can be indexed: each pair costs a forward pass. Use one to re-rank what a
two-tower encoder found.
"""

from encoders.cross.encoder import CrossEncoder, load

__all__ = ["CrossEncoder", "load"]
