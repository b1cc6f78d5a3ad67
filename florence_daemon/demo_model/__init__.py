"""The embedded demo model: a package so that its files are installed."""
