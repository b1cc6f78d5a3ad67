"""The page at `/`, as a browser gets it: HTML, CSS and JavaScript, without a build step."""
