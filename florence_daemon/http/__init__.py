"""The HTTP API: Falcon resources on Waitress, over the same queue as the folders."""
