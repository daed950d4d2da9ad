"""Raw files to a store on disk to batches."""
