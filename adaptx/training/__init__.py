"""The Accelerate loop."""
