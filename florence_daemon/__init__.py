"""Florence Daemon: captions the pictures people drop into folders, with Florence-2."""

__version__ = "0.1.0"
