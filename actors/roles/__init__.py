"""One role a file, plain classes, and what sharded roles share."""
