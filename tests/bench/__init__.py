"""The performance table of `make bench`: every way of forwarding side by side, in one run, on one machine."""
