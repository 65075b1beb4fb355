"""Training: stages (what is learned), engine (the loop), run_folder (checkpoints), report (what one sees)."""
