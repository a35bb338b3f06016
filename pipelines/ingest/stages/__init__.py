"""What a run does with rows, block by block: read, decode, encode. Functions of plain data, wherever they run."""
