"""Opening tables, their provenance, leases, filters, splits and promotions."""
