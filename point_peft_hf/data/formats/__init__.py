"""One file a format: each reader takes a path and returns `(points, faces)`, `faces` being None for a cloud."""
