"""IPv6-to-IPv6 network prefix translation (NPTv6, RFC 6296): one prefix stands for another of the same length.

What the new prefix adds to the one's complement sum over the address is taken out of it again in one 16-bit word, so no
transport checksum changes and no session needs a port. The word is the subnet (bits 48 to 63) where the prefix leaves
it free, and for a longer prefix the first word of the interface identifier that is not 0xFFFF.

    /48 or shorter  |      prefix      | word | interface identifier |
    /49 to /64      |         prefix          | word  |  or word ... |

0xFFFF and 0 are one number in that sum. So that the way back finds the word again, 0xFFFF is never translated, and a
result of 0xFFFF is written as 0.
"""

from dataclasses import dataclass

LONGEST = 64
"""Bits of prefix: the word must lie behind it."""
_WORD = 0xFFFF
_SUBNET = 64
"""Bits behind the subnet word."""
_IDENTIFIER = (48, 32, 16, 0)
"""Bits behind each word of an interface identifier."""


class Unmappable(Exception):
    """An address all of whose words that could take the adjustment are 0xFFFF; RFC 6296 lets no packet of it pass."""


@dataclass(frozen=True, slots=True)
class PrefixMap:
    """Original to translated addresses by prefix; both prefixes are the first addresses of their blocks."""

    source: int
    target: int
    length: int

    def translate(self, address: int) -> int:
        """The translation of an address inside `source`. Raises Unmappable."""
        host = (1 << 128 - self.length) - 1
        at = self._word(address)
        word = _fold((address >> at & _WORD) + _sum(self.source) + (_sum(self.target) ^ _WORD))
        moved = self.target | address & host & ~(_WORD << at)
        return moved | (0 if word == _WORD else word) << at

    def reverse(self) -> "PrefixMap":
        """Translated to original addresses."""
        return PrefixMap(self.target, self.source, self.length)

    @property
    def segments(self) -> tuple[tuple[int, int, int], ...]:
        """The block and where it goes, as one of AddressMap's segments."""
        return ((self.source, self.source + (1 << 128 - self.length) - 1, self.target),)

    def _word(self, address: int) -> int:
        """Bits behind the word that takes the adjustment."""
        for at in (_SUBNET,) if self.length <= 48 else _IDENTIFIER:
            if address >> at & _WORD != _WORD:
                return at
        raise Unmappable(address)


def _sum(address: int) -> int:
    return _fold(sum(address >> at & _WORD for at in range(0, 128, 16)))


def _fold(total: int) -> int:
    while total > _WORD:
        total = (total & _WORD) + (total >> 16)
    return total
