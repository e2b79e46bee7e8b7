"""One file per paper, in a folder per family."""
