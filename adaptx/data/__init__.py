"""Files -> examples -> encoded, padded batches. Torch-free: the runtime encodes with it too."""
