"""Input pipeline: image folders to batches of views, labels and patch masks."""
