"""Backfill on many machines: Ray Data hands the pictures out, and each of its engines is one of ours."""
