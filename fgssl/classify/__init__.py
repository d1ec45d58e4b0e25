"""Classes named by a few labelled pictures: a classifier above an encoder in one file, and new pictures classified.

labelled pictures -> features -> linear classifier -> temperature (`calibration`) -> file (`classifier`) -> `predict`.
"""
