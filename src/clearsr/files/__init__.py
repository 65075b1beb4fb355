"""Files in, files out: which picture becomes which file, and what is done with one picture."""
