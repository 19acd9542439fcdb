"""One call over many samples: shared over processes, kept on disk, taken up where it stopped."""
