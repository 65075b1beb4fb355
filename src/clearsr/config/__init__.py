"""Configuration models, one file per subject; `base` holds how they are filled."""
