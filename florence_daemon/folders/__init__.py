"""Folders of pictures: finding them, waiting until they are whole, and writing what was said about them."""
