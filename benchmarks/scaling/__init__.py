"""What benchmarks.scale measures, a room for each kind of row, and the page that says it."""
