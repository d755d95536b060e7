"""The tables of `make bench`: ways of forwarding side by side, growth, and a flood, in one run on one machine."""
