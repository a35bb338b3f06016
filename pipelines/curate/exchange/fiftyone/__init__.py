"""Exports a table as a FiftyOneDataset on disk, which FiftyOne 1.0 and later read by `fiftyone.Dataset.from_dir`.

OUT/metadata.json   the dataset's document: its fields and their types
OUT/samples.json    {"samples": […]}, one for each row, in MongoDB's extended JSON
OUT/data/…          pictures, if they are exported

Writing does not need FiftyOne itself, which brings a database server.
"""
