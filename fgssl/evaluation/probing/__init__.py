"""Classifiers on frozen features: linear, nearest neighbours, few-shot, the paper's SGD."""
