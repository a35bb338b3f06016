"""Search, and the page that shows what was found."""
