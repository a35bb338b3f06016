"""A table as a FiftyOneDataset on disk, which FiftyOne 1.0 and later read by `fiftyone.Dataset.from_dir`.

OUT/metadata.json   the dataset's document: its fields and their types
OUT/samples.json    {"samples": […]}, one for each row, in MongoDB's extended JSON
OUT/data/…          pictures, where they come along

FiftyOne itself, which brings a database server, is not needed to write it.
"""
