"""From videos on disk to batches of faces: data sets, preparation, shards, protocols, loaders."""
