"""The engine: from a picture's bytes to its answers. Only `engine.process` starts it, in a process of its own."""
