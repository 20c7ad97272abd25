"""Why an adapter answers as it does: words, layers and sites."""
