"""`dataplane` and `python -m dataplane`."""

from dataplane import cli


def main() -> None:
    cli.main(prog_name="dataplane")


if __name__ == "__main__":
    main()
