"""What runs the stages: Ray Data, for all that is large; one process, for what Ray's start would cost more than."""
