"""Images, models by name and the frozen file: everything that is read from outside."""
