"""People who judge: the rating page on Ray Serve, and completions on their way to it."""
