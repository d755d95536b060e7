/* rewrite.c - translation written into a packet.
 *
 * A direction's translation is a pair of tuples: how the packet arrives and how it leaves.  Checksums change by the
 * difference between the two (RFC 1624), computed once per session.
 *
 * A sender that leaves the checksum to its NIC sums the pseudo header only (CHECKSUM_PARTIAL).  The kernel forgets that
 * once the payload is handed back, so the rest is done here.  Not so for a super-packet: on its way out the kernel cuts
 * it, or prepares it for a device that will, and each segment's checksum begins with the pseudo header's sum that it
 * finds (__udp_gso_segment(); tcp4_gso_segment() makes a new one).  One that is delivered to the host is not cut and
 * needs a whole checksum.
 *
 * ICMP errors are rare and short: outer and quoted header are rewritten word by word and the outer checksum made anew.
 * The quoted packet travelled the other way, so its tuple is the mirror of the translation's.
 */
#include <arpa/inet.h>
#include <netinet/in.h>

#include "internal.h"

static uint16_t fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* One's complement sum of len bytes plus sum, folded.  Native byte order: the result can be stored as it is.
 * Four accumulators of 32-bit words let the compiler use vector registers. */
uint16_t checksum_add(const uint8_t *p, uint32_t len, uint32_t sum)
{
	uint64_t total = sum;
	uint32_t word;
	uint16_t half;

	while (len >= 32) {
		uint64_t block = 0;
		uint32_t n = len & ~31u;

		for (uint32_t i = 0; i < n; i += 4) {
			memcpy(&word, p + i, 4);
			block += word;
		}
		total += block;
		p += n;
		len -= n;
	}
	for (; len >= 2; p += 2, len -= 2) {
		memcpy(&half, p, 2);
		total += half;
	}
	if (len)
		total += htons((uint16_t)(*p << 8));
	return fold(total);
}

/* What the transport checksum covers: a datagram may be shorter than its IP packet. */
static uint32_t l4_len(const struct packet *pkt)
{
	if (pkt->key.proto == IPPROTO_UDP)
		return get16(pkt->data + pkt->l4 + 4);
	return pkt->ip_len - pkt->l4;
}

/* The part of a transport checksum that comes from the IP header; 0 where the protocol has none (ICMP). */
static uint16_t checksum_pseudo(const struct packet *pkt)
{
	uint32_t sum;

	if (pkt->key.proto == IPPROTO_ICMP)
		return 0;
	sum = htons((uint16_t)l4_len(pkt)) + htons(pkt->key.proto);
	if (pkt->key.family == 4)
		return checksum_add(pkt->data + 12, 8, sum);
	return checksum_add(pkt->data + 8, 32, sum);
}

/* The transport checksum of a packet whose checksum is complete on the wire; of one that is cut nobody can tell. */
bool checksum_valid(const struct packet *pkt)
{
	uint16_t check;

	if (!pkt->l4_checksum || pkt->cut || pkt->checksum == CHECKSUM_PARTIAL || pkt->checksum == CHECKSUM_SUPER)
		return true;
	if (pkt->key.proto == IPPROTO_UDPLITE || pkt->key.proto == IPPROTO_DCCP)   /* they cover what their header says */
		return true;
	memcpy(&check, pkt->data + pkt->l4_checksum, 2);
	if (pkt->key.proto == IPPROTO_UDP && !check)
		return true;
	return checksum_add(pkt->data + pkt->l4, l4_len(pkt), checksum_pseudo(pkt)) == 0xffff;
}

/* RFC 1624 equation 3: HC' = ~(~HC + ~m + m'); delta is the sum of all ~m + m'. */
static void checksum_adjust(uint8_t *at, uint16_t delta)
{
	uint16_t check;

	if (delta == 0xffff)       /* nothing has changed: over bytes that are all 0 even adding it would */
		return;
	memcpy(&check, at, 2);
	check = (uint16_t)~fold((uint64_t)(uint16_t)~check + delta);
	memcpy(at, &check, 2);
}

static uint64_t difference(const void *old, const void *new, uint32_t len)
{
	return (uint64_t)(uint16_t)~checksum_add(old, len, 0) + checksum_add(new, len, 0);
}

static bool has_pseudo_header(uint8_t proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_ICMPV6 || proto == IPPROTO_UDPLITE ||
	       proto == IPPROTO_DCCP;
}

/* What changing `from` into `to` adds to the IPv4 header's checksum and to the transport's. */
void translation_deltas(const struct flow_key *from, const struct flow_key *to, uint16_t *l3, uint16_t *l4)
{
	uint64_t addresses = difference(from->src, to->src, 16) + difference(from->dst, to->dst, 16);
	uint64_t ports = difference(&from->sport, &to->sport, 2) + difference(&from->dport, &to->dport, 2);

	*l3 = fold(addresses);
	*l4 = fold(has_pseudo_header(from->proto) ? addresses + ports : ports);
}

static void write_addresses(uint8_t *ip, const struct flow_key *to)
{
	if (to->family == 4) {
		memcpy(ip + 12, to->src + 12, 4);
		memcpy(ip + 16, to->dst + 12, 4);
		return;
	}
	memcpy(ip + 8, to->src, 16);
	memcpy(ip + 24, to->dst, 16);
}

/* Ports, the identifier of an echo, which stands in whichever port is not 0, or the id of a PPTP call. */
static void write_ports(uint8_t *l4, const struct flow_key *from, const struct flow_key *to)
{
	switch (to->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		memcpy(l4, &to->sport, 2);
		memcpy(l4 + 2, &to->dport, 2);
		break;
	case IPPROTO_GRE:
		if (from->dport != to->dport)
			memcpy(l4 + 6, &to->dport, 2);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (from->sport != to->sport)
			memcpy(l4 + 4, &to->sport, 2);
		else if (from->dport != to->dport)
			memcpy(l4 + 4, &to->dport, 2);
		break;
	}
}

/* A UDP checksum of 0 means "none": a computed 0 is sent as its other form, 0xffff (RFC 768). */
static void udp_avoid_zero(uint8_t *check)
{
	if (!check[0] && !check[1])
		memset(check, 0xff, 2);
}

static void checksum_complete(struct packet *pkt)
{
	uint8_t *at = pkt->data + pkt->l4_checksum;
	uint16_t check;

	memset(at, 0, 2);
	check = (uint16_t)~checksum_add(pkt->data + pkt->l4, l4_len(pkt), checksum_pseudo(pkt));
	memcpy(at, &check, 2);
}

static void checksum_begin(struct packet *pkt)
{
	uint16_t check = checksum_pseudo(pkt);

	memcpy(pkt->data + pkt->l4_checksum, &check, 2);
}

/* delivered: to the host, see struct translation. */
static void l4_checksum_update(struct packet *pkt, uint16_t delta, bool delivered)
{
	uint8_t *at = pkt->data + pkt->l4_checksum;
	bool udp = pkt->key.proto == IPPROTO_UDP;

	if (!pkt->l4_checksum || (udp && !at[0] && !at[1]))
		return;
	if (pkt->checksum == CHECKSUM_SUPER && !delivered) {
		checksum_begin(pkt);
		return;
	}
	if (pkt->checksum == CHECKSUM_PARTIAL || pkt->checksum == CHECKSUM_SUPER)
		checksum_complete(pkt);
	else
		checksum_adjust(at, delta);
	if (udp)
		udp_avoid_zero(at);
}

/* Makes a parsed packet leave as nat->to. */
void nat_rewrite(struct packet *pkt, const struct translation *nat)
{
	write_addresses(pkt->data, &nat->to);
	if (pkt->key.family == 4)
		checksum_adjust(pkt->data + 10, nat->l3_delta);
	write_ports(pkt->data + pkt->l4, &nat->from, &nat->to);
	l4_checksum_update(pkt, nat->l4_delta, nat->delivered);
}

/* Lowers the MSS that a SYN offers to at most `mss`; false if it is not higher.  Comes before nat_rewrite(). */
bool mss_clamp(struct packet *pkt, uint16_t mss, bool delivered)
{
	uint8_t *at = pkt->data + pkt->mss_at, lowered[2] = {(uint8_t)(mss >> 8), (uint8_t)mss};
	uint16_t delta;

	if (get16(at) <= mss)
		return false;
	delta = fold(difference(at, lowered, 2));
	if ((pkt->mss_at - pkt->l4) & 1)       /* the option may lie across two words of the sum (RFC 1071 section 2 B) */
		delta = __builtin_bswap16(delta);
	memcpy(at, lowered, 2);
	l4_checksum_update(pkt, delta, delivered);
	return true;
}

/* len bytes of the transport header, an even number, are not what they were. */
void header_changed(struct packet *pkt, const uint8_t *old, uint32_t len, bool delivered)
{
	l4_checksum_update(pkt, fold(difference(old, pkt->data + pkt->l4, len)), delivered);
}

void packet_sum(struct packet *pkt)
{
	uint16_t check;

	if (pkt->key.family == 4) {
		memset(pkt->data + 10, 0, 2);
		check = (uint16_t)~checksum_add(pkt->data, (pkt->data[0] & 15) * 4u, 0);
		memcpy(pkt->data + 10, &check, 2);
	}
	if (pkt->l4_checksum)
		checksum_complete(pkt);
	if (pkt->l4_checksum && pkt->key.proto == IPPROTO_UDP)
		udp_avoid_zero(pkt->data + pkt->l4_checksum);
}

/* Offset of the checksum in a quoted transport header; 0: none, or beyond what is quoted. */
static uint32_t quoted_checksum(const struct packet *pkt)
{
	uint32_t offset, there = pkt->ip_len - pkt->quoted_l4;

	switch (pkt->quoted.proto) {
	case IPPROTO_TCP:
		offset = 16;
		break;
	case IPPROTO_UDP:
		offset = 6;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		offset = 2;
		break;
	default:
		return 0;
	}
	return offset + 2 <= there ? pkt->quoted_l4 + offset : 0;
}

static void rewrite_quote(struct packet *pkt, const struct flow_key *from, const struct flow_key *to)
{
	uint8_t *ip = pkt->data + pkt->quoted_l3, *check;
	uint32_t at = quoted_checksum(pkt);
	uint16_t l3, l4;

	translation_deltas(from, to, &l3, &l4);
	write_addresses(ip, to);
	if (to->family == 4)
		checksum_adjust(ip + 10, l3);
	write_ports(pkt->data + pkt->quoted_l4, from, to);
	if (!at)
		return;
	check = pkt->data + at;
	if (to->proto == IPPROTO_UDP && !check[0] && !check[1])
		return;
	checksum_adjust(check, l4);
	if (to->proto == IPPROTO_UDP)
		udp_avoid_zero(check);
}

/* An ICMP error that travels in the direction of `nat` and quotes a packet of the other direction: the quote becomes
 * what the receiver sent, the outer addresses what the receiver knows.  A sender behind a translated source, be it the
 * host or a router before it, appears as the translated source, so that nothing from inside leaks. */
void nat_rewrite_error(struct packet *pkt, const struct translation *nat)
{
	struct flow_key quoted_from = key_mirror(&nat->from, 0), quoted_to = key_mirror(&nat->to, 0);
	struct flow_key outer = pkt->key;
	uint16_t l3, l4;

	memcpy(outer.dst, nat->to.dst, 16);
	if (memcmp(nat->from.src, nat->to.src, 16))
		memcpy(outer.src, nat->to.src, 16);
	translation_deltas(&pkt->key, &outer, &l3, &l4);
	write_addresses(pkt->data, &outer);
	if (outer.family == 4)
		checksum_adjust(pkt->data + 10, l3);
	rewrite_quote(pkt, &quoted_from, &quoted_to);
	checksum_complete(pkt);
}
