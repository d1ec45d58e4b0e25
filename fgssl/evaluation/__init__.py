"""What an encoder is worth: embeddings, retrieval, probes, comparison, label-free signals."""
