"""The commands. Each module has a function `run` and is imported when its command is called."""
