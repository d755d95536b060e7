/* packet.c - bytes to struct packet.  Every length check on hostile bytes lives in this file.
 *
 * What comes from NFQUEUE starts at the IP header and has passed ip_rcv() or its IPv6 twin in the routed case; nothing
 * here relies on it.  The kernel has reassembled fragments (see rules/), so a fragment that still arrives is dropped.
 *
 * An ICMP error is recognised with the tuple of the packet that it quotes.  Not done: transport checksums of quoted
 * packets are not verified (RFC 5508 REQ-3c: a quote may be cut), tunnels are not opened.
 */
#include <arpa/inet.h>
#include <netinet/in.h>

#include "internal.h"

#define IP6_EXT_LIMIT 8            /* extension headers before we call it an attack (RFC 8504 section 5.3 allows a limit) */
#define IP6_FRAGMENT_OFFSET_MORE 0xfff9u
#define IP4_OFFSET_MORE 0x3fffu

#define GRE_PPP 0x880b
#define TCP_SCALE_MAX 14           /* RFC 7323 section 2.3 */

/* An IP header, alone or quoted. */
struct ip_view {
	uint8_t  family;
	uint8_t  proto;
	uint32_t l4;                   /* offset of what follows the IP headers */
	uint32_t len;                  /* what the header claims, from its first byte on */
	bool     first;                /* offset 0: the transport header is here */
	bool     fragment;
	bool     detour;               /* a routing header sends it on from its destination to another */
};

static const uint8_t mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static void map_ip4(uint8_t *address, const uint8_t *ip4)
{
	memcpy(address, mapped_prefix, 12);
	memcpy(address + 12, ip4, 4);
}

static bool ip4_view(const uint8_t *p, uint32_t len, struct ip_view *v)
{
	uint32_t header, offset;

	if (len < 20 || (header = (p[0] & 0x0fu) * 4) < 20 || header > len)
		return false;
	offset = get16(p + 6) & IP4_OFFSET_MORE;
	v->family = 4;
	v->proto = p[9];
	v->l4 = header;
	v->len = get16(p + 2);
	v->fragment = offset != 0;
	v->first = (offset & 0x1fff) == 0;
	v->detour = false;
	return v->len >= header;
}

/* Segments left, or of type 0, which nobody may use (RFC 5095).  Its destination is not the one that policy would judge,
 * nor the one that its checksum covers (RFC 8200 section 8.1). */
static bool is_detour(const uint8_t *routing_header)
{
	return routing_header[2] == 0 || routing_header[3] != 0;
}

/* Walks the extension headers; v->l4 stays 0 where there are too many of them. */
static bool ip6_view(const uint8_t *p, uint32_t len, struct ip_view *v)
{
	uint32_t at = 40;
	uint8_t next;

	v->l4 = 0;
	if (len < 40)
		return false;
	v->family = 6;
	v->len = 40 + get16(p + 4);
	v->first = true;
	v->fragment = false;
	v->detour = false;
	next = p[6];
	for (int i = 0; i <= IP6_EXT_LIMIT; i++) {
		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
			if (at + 8 > len)
				return false;
			v->detour |= next == IPPROTO_ROUTING && is_detour(p + at);
			next = p[at];
			at += (p[at + 1] + 1u) * 8;
			break;
		case IPPROTO_FRAGMENT:
			if (at + 8 > len)
				return false;
			v->fragment |= (get16(p + at + 2) & IP6_FRAGMENT_OFFSET_MORE) != 0;
			v->first &= (get16(p + at + 2) & 0xfff8) == 0;
			next = p[at];
			at += 8;
			break;
		case IPPROTO_AH:
			if (at + 8 > len)
				return false;
			next = p[at];
			at += (p[at + 1] + 2u) * 4;
			break;
		default:
			v->proto = next;
			v->l4 = at;
			return at <= len;
		}
	}
	return true;
}

static bool ip_view(const uint8_t *p, uint32_t len, struct ip_view *v)
{
	if (len < 1)
		return false;
	if (p[0] >> 4 == 4)
		return ip4_view(p, len, v);
	return p[0] >> 4 == 6 && ip6_view(p, len, v);
}

static void key_addresses(struct flow_key *key, const uint8_t *ip, const struct ip_view *v)
{
	memset(key, 0, sizeof(*key));
	key->family = v->family;
	key->proto = v->proto;
	if (v->family == 4) {
		map_ip4(key->src, ip + 12);
		map_ip4(key->dst, ip + 16);
		return;
	}
	memcpy(key->src, ip + 8, 16);
	memcpy(key->dst, ip + 24, 16);
}

static bool is_echo(uint8_t proto, uint8_t type, bool *request)
{
	if (proto == IPPROTO_ICMP) {
		*request = type == 8;
		return type == 8 || type == 0;
	}
	*request = type == 128;
	return type == 128 || type == 129;
}

static bool is_error(uint8_t proto, uint8_t type)
{
	if (proto == IPPROTO_ICMP)
		return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
	return type >= 1 && type <= 4;
}

static void key_echo(struct flow_key *key, uint16_t id, bool request)
{
	if (request)
		key->sport = id;
	else
		key->dport = id;
}

/* Ports of a transport header of which at least 8 bytes are there. */
static void key_ports(struct flow_key *key, const uint8_t *l4)
{
	memcpy(&key->sport, l4, 2);
	memcpy(&key->dport, l4 + 2, 2);
}

/* What a SYN offers, and whether a segment is signed.  The signature of TCP-AO covers the other options (RFC 5925 section
 * 5.1), so beside one the MSS may not be touched; that of MD5 does not (RFC 2385 section 2.0). */
static void tcp_read_options(struct packet *pkt, const uint8_t *option, const uint8_t *end)
{
	bool covered = false;

	for (; (option = tcp_option_at(option, end)); option += option[1]) {
		if (option[0] == TCP_OPTION_SCALE && option[1] == 3)
			pkt->window_scale = option[2] > TCP_SCALE_MAX ? TCP_SCALE_MAX : option[2];
		else if (option[0] == TCP_OPTION_MSS && option[1] == 4 && pkt->tcp_flags & TCP_FLAG_SYN)
			pkt->mss_at = (uint16_t)(option + 2 - pkt->data);
		covered |= option[0] == TCP_OPTION_AO;
		pkt->is_signed |= option[0] == TCP_OPTION_AO || option[0] == TCP_OPTION_MD5;
	}
	if (covered)
		pkt->mss_at = 0;
}

static enum verdict parse_tcp(struct packet *pkt, const struct burst *b)
{
	const uint8_t *tcp = pkt->data + pkt->l4;
	uint32_t len = pkt->ip_len - pkt->l4, header;

	if (len < 20 || (header = (tcp[12] >> 4) * 4u) < 20 || header > len)
		return drop(b, FLOW_PARSE_L4_HDR);
	key_ports(&pkt->key, tcp);
	pkt->l4_checksum = (uint16_t)(pkt->l4 + 16);
	pkt->tcp_flags = tcp[13] & 0x3f;
	if (!pkt->tcp_flags)
		return drop(b, TCP_FLAG_ZERO);
	if ((pkt->tcp_flags & TCP_FLAG_SYN) && (pkt->tcp_flags & (TCP_FLAG_FIN | TCP_FLAG_RST)))
		return drop(b, TCP_FLAG_INVALID);
	if (!(pkt->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_RST | TCP_FLAG_ACK)))
		return drop(b, TCP_FLAG_INVALID);   /* a host ignores it: RFC 9293 section 3.10.7.4 */
	pkt->seq = get32(tcp + 4);
	pkt->ack = get32(tcp + 8);
	pkt->window = get16(tcp + 14);
	pkt->seq_len = len - header + !!(pkt->tcp_flags & TCP_FLAG_SYN) + !!(pkt->tcp_flags & TCP_FLAG_FIN);
	pkt->window_scale = 255;
	if (pkt->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_FIN | TCP_FLAG_RST))
		tcp_read_options(pkt, tcp + 20, tcp + header);
	return VERDICT_CONTINUE;
}

static enum verdict parse_udp(struct packet *pkt, const struct burst *b)
{
	const uint8_t *udp = pkt->data + pkt->l4;
	uint32_t len = pkt->ip_len - pkt->l4;

	if (len < 8 || get16(udp + 4) < 8 || get16(udp + 4) > len)
		return drop(b, FLOW_PARSE_L4_HDR);
	key_ports(&pkt->key, udp);
	pkt->l4_checksum = (uint16_t)(pkt->l4 + 6);
	return VERDICT_CONTINUE;
}

/* The call that an enhanced GRE header belongs to (RFC 2637 section 4.1), which its receiver has chosen. */
static uint16_t gre_call(const uint8_t *gre, uint32_t len)
{
	uint16_t call = 0;

	if (len >= 8 && (gre[1] & 7) == 1 && get16(gre + 2) == GRE_PPP)
		memcpy(&call, gre + 6, 2);
	return call;
}

/* The quoted packet: its IP header and 8 bytes of what follows must be there (RFC 792); it may claim any length. */
static enum verdict parse_quote(struct packet *pkt, const struct burst *b)
{
	uint32_t at = pkt->l4 + 8u, len = pkt->ip_len - at;
	const uint8_t *quote = pkt->data + at;
	struct ip_view v;
	bool request;

	if (pkt->cut || !ip_view(quote, len, &v) || v.family != pkt->key.family || !v.l4 || v.l4 + 8 > len || !v.first)
		return drop(b, FLOW_PARSE_ICMP_QUOTE);
	if (v.family == 4 && checksum_add(quote, v.l4, 0) != 0xffff)
		return drop(b, FLOW_PARSE_ICMP_QUOTE);
	pkt->kind = PACKET_ICMP_ERROR;
	pkt->quoted_l3 = (uint16_t)at;
	pkt->quoted_l4 = (uint16_t)(at + v.l4);
	key_addresses(&pkt->quoted, quote, &v);
	switch (v.proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		key_ports(&pkt->quoted, quote + v.l4);
		break;
	case IPPROTO_GRE:
		pkt->quoted.dport = gre_call(quote + v.l4, len - v.l4);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (is_error(v.proto, quote[v.l4]))
			return drop(b, FLOW_PARSE_ICMP_QUOTE);
		if (is_echo(v.proto, quote[v.l4], &request)) {
			uint16_t id;

			memcpy(&id, quote + v.l4 + 4, 2);
			key_echo(&pkt->quoted, id, request);
		}
		break;
	}
	return VERDICT_CONTINUE;
}

/* Neighbour discovery, redirects with it, is only valid with a hop limit that no router has touched (RFC 4861 section
 * 6.1); listener reports come from link-local sources (RFC 3810 section 5) with hop limit 1. */
static bool is_link_control(const struct packet *pkt)
{
	uint8_t hop_limit = pkt->data[7];

	if (pkt->icmp_type >= 133 && pkt->icmp_type <= ICMPV6_REDIRECT)
		return hop_limit == 255;
	if ((pkt->icmp_type >= 130 && pkt->icmp_type <= 132) || pkt->icmp_type == 143)
		return hop_limit == 1;
	return false;
}

static enum verdict parse_icmp(struct packet *pkt, const struct burst *b)
{
	const uint8_t *icmp = pkt->data + pkt->l4;
	bool request;

	if (pkt->ip_len - pkt->l4 < 8u || (pkt->key.proto == IPPROTO_ICMP) != (pkt->key.family == 4))
		return drop(b, FLOW_PARSE_L4_HDR);
	pkt->icmp_type = icmp[0];
	pkt->l4_checksum = (uint16_t)(pkt->l4 + 2);
	if (pkt->key.proto == IPPROTO_ICMPV6 && is_link_control(pkt))
		pkt->kind = PACKET_LINK_CONTROL;
	else if (is_error(pkt->key.proto, pkt->icmp_type))
		return parse_quote(pkt, b);
	else if (is_echo(pkt->key.proto, pkt->icmp_type, &request)) {
		uint16_t id;

		memcpy(&id, icmp + 4, 2);
		key_echo(&pkt->key, id, request);
		pkt->echo = 1;
	}
	return VERDICT_CONTINUE;
}

/* Protocols that go by addresses alone; where their checksum covers those, translation must find it. */
static enum verdict parse_portless(struct packet *pkt, uint16_t checksum, const struct burst *b)
{
	if (pkt->ip_len - pkt->l4 < checksum + 2u)
		return drop(b, FLOW_PARSE_L4_HDR);
	pkt->l4_checksum = (uint16_t)(pkt->l4 + checksum);
	return VERDICT_CONTINUE;
}

static enum verdict parse_l4(struct packet *pkt, const struct burst *b)
{
	switch (pkt->key.proto) {
	case IPPROTO_TCP:
		return parse_tcp(pkt, b);
	case IPPROTO_UDP:
		return parse_udp(pkt, b);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return parse_icmp(pkt, b);
	case IPPROTO_GRE:
		pkt->call = gre_call(pkt->data + pkt->l4, pkt->ip_len - pkt->l4);
		return VERDICT_CONTINUE;
	case IPPROTO_UDPLITE:
	case IPPROTO_DCCP:
		return parse_portless(pkt, 6, b);
	}
	return VERDICT_CONTINUE;
}

/* The transport header of a packet of which only the beginning is here must be in it whole. */
static bool holds_transport_header(const struct packet *pkt)
{
	return !pkt->cut || pkt->l4 + TCP_HEADER_MAX <= pkt->len;
}

/* Fills in pkt from pkt->data[0..len); VERDICT_CONTINUE if it is well-formed, else a counted drop. */
enum verdict packet_parse(struct packet *pkt, const struct burst *b)
{
	enum verdict v;
	struct ip_view ip;

	pkt->kind = PACKET_FLOW;
	pkt->l4_checksum = 0;
	pkt->tcp_flags = 0;
	pkt->mss_at = 0;
	pkt->is_signed = 0;
	pkt->call = 0;
	pkt->seq_len = 0;
	pkt->echo = 0;
	if (!ip_view(pkt->data, pkt->len, &ip) || (ip.len > pkt->len && !pkt->cut))
		return drop(b, FLOW_PARSE_IP_HDR);
	if (!ip.l4 || ip.l4 > ip.len || ip.detour)
		return drop(b, FLOW_PARSE_EXT_HDR);
	if (ip.fragment)
		return drop(b, FLOW_PARSE_IP_FRAG);
	pkt->ip_len = ip.len;
	pkt->l4 = (uint16_t)ip.l4;
	if (!holds_transport_header(pkt))
		return drop(b, FLOW_PARSE_EXT_HDR);
	key_addresses(&pkt->key, pkt->data, &ip);
	pkt->key.zone = pkt->zone;
	if (pkt->hook != HOOK_OUTPUT && !memcmp(pkt->key.src, pkt->key.dst, 16))
		return drop(b, FLOW_PARSE_LAND);
	if ((v = parse_l4(pkt, b)) != VERDICT_CONTINUE)
		return v;
	if ((pkt->kind == PACKET_ICMP_ERROR || pkt->checksum == CHECKSUM_UNVERIFIED) && !checksum_valid(pkt))
		return drop(b, FLOW_PARSE_L4_CKSM);
	pkt->hash = flow_hash(b->table, &pkt->key);
	pkt->hint = 0;
	return VERDICT_CONTINUE;
}
