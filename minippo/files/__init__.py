"""Files and folders on disk: weights, tokenizers, model folders, checkpoints, downloads."""
