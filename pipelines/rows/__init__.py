"""What a row is: its columns, the blocks it travels in, the pace at which rows are made."""
