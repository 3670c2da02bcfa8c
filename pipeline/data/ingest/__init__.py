"""What a user has becomes the prompt table: files -> shards -> raw rows -> drafts -> checked rows -> split files."""
