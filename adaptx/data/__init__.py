"""Files and datasets -> records -> encoded, padded batches. Torch-free: the runtime encodes too."""
