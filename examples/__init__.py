"""Workers of one's own, each in a folder with handler, Dockerfile and README; `check` runs one against a platform."""
