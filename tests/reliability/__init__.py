"""The numbered cases of the reliability page, run against the library and against two naive drafts."""
