"""The manual, made from what it describes: commands from click's tree, the configuration from its pydantic model.

    python -m dataplane.manual DIRECTORY       writes dataplane.1, a page for each of its commands, firewall.yaml.5

There is a generator for click (click-man), but it escapes nothing, knows no arguments, and writes a page for each of
the smallest commands. Neither the daemon nor a command imports this package.
"""
