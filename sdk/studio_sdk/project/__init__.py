"""A compute package as a folder: its project file, its archive, its environment, its entry points."""
