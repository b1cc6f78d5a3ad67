"""The vocabularies of text encoders: a package so that its files are installed."""
