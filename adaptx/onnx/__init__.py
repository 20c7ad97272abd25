"""Export to ONNX, and the proof that the export answers alike."""
