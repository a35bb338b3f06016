"""HTML pages of rows: cards, galleries, rejected rows."""
