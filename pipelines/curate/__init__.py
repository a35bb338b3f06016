"""Looking after what a table holds: duplicates, exploration, exchange with other tools."""
