"""Tables: opening, provenance, lease, filters, splits, promotion."""
