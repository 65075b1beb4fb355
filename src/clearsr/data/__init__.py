"""Photographs for training: folders, crops, LR/HR pairs."""
