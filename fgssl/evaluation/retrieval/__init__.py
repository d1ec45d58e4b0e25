"""Exact retrieval: ranking, metrics, scored splits, search by example."""
