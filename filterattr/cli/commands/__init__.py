"""What the commands do; each module has `run`, which is loaded when its command is called."""
