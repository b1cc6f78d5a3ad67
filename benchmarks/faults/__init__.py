"""What goes wrong, done to the real daemon: tests/faults runs the short forms, benchmarks.soak the long ones."""
