"""Studies and timings. Each is a module with a main(); `make bench` runs those of the first capability."""
