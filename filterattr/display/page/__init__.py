"""What the report's page is made of; `filterattr.display.report` is its front door."""
