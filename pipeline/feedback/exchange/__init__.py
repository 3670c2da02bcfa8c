"""Judged items in the formats of other tools, one a module: written for them, and read from what they write.

Whatever a format cannot hold is counted by its reason in the `Report` that comes back. Media travel by two functions of
the caller: `Media` gives a file's bytes when items are written, `Keep` stores them when items are read.
"""
