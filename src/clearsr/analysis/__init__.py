"""The paper's evidence about the inside of a network, read through forward hooks; no model is changed.

Control signals (Figures 2 and 8), spectra of features (4 and 9), the course of sampling (5).
"""
