"""Sample corpora of real pictures, built from packages with open licences."""
