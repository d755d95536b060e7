"""The row of the `netfilterqueue` package: every packet is accepted by a Python callback."""

from netfilterqueue import NetfilterQueue, Packet

QUEUE = 0


def accept(packet: Packet) -> None:
    """The least that a firewall in Python could do."""
    packet.accept()


def main() -> None:
    """Serve the queue until the process is ended."""
    queue = NetfilterQueue()
    queue.bind(QUEUE, accept)
    queue.run()


if __name__ == "__main__":
    main()
