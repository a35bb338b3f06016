"""The stages of a run: read, decode, encode, block by block. Functions of plain data that run on any engine."""
