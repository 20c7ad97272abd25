"""Opening a bundle with onnxruntime and predicting: no torch, no transformers."""
