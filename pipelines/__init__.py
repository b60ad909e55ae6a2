"""The stages, each from files to files, and the run directory they share."""
