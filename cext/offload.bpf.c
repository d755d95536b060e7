/* offload.bpf.c - tier 0: the kernel repeats for an established session what C would do.
 *
 * Attached to the ingress of the zones' interfaces, behind everybody else's filters.  What it does not understand, and
 * whatever could begin, end or change a session, goes on (UP) and meets the queues: other protocols, VLAN tags, IP
 * options and extension headers, fragments, the last hop of a time to live, SYN, FIN, RST and URG, segments outside the
 * windows (tcp.c's in_window()), what is too large for where it leaves, and frames that are not for this host.
 *
 *     flow key ─► bucket of flows: tag, index << 1 | direction ─► offloaded[index].flow[direction]
 *
 * The tables are arrays that the daemon writes while this runs.  A slot may be stale, but never the entry that it leads
 * to: the whole key is compared there, and an entry rests before another session gets it.
 *
 * Nothing is written before the last check has passed.  Sequence numbers only grow and are raised atomically: directions
 * meet each other here, and both meet C, on different processors.
 *
 * A checksum of which only the pseudo header is summed, the device doing the rest, is adjusted in place; any other one by
 * the helpers, which know what state it is in.  A complete one that neither the device nor the kernel has verified is
 * verified here as packet.c does: what nobody will accept must not move a window.
 *
 * Compiled twice.  With KERNEL_TYPES the state is read from the kernel's own packet (Linux 6.2, with BTF), which saves the
 * helper's call, the dearest of all; without, it is told by what the helper has done, and what looks like the sum of the
 * pseudo header is taken for it.
 */
#include <stdbool.h>
#include <stdint.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "session.h"
#include "offloadhash.h"

#ifdef KERNEL_TYPES
#include <bpf/bpf_core_read.h>

struct sk_buff {
	uint8_t ip_summed : 2;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *) __ksym;
#endif

#define UP TC_ACT_UNSPEC
#define INLINE static __attribute__((always_inline)) inline
#define IP4_HEADER 20
#define IP6_HEADER 40
#define TCP_HEADER 20
#define IP4_MTU_MIN 68             /* bytes: RFC 791 */
#define IP6_MTU_MIN 1280           /* RFC 8200 section 5 */
#define ACK_WINDOW 66000u          /* as in tcp.c */
#define ECHO_CHECK 2
#define RAISE_TRIES 4
#define SUM_CHUNK 512              /* bytes that one call sums: the limit of older kernels */
#define SUM_CHUNKS 4
#define HEADERS_MAX (ETH_HLEN + IP6_HEADER + TCP_HEADER)

const volatile struct offload_secret secret SEC(".rodata.secret");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);            /* the daemon says how many */
	__type(key, uint32_t);
	__type(value, struct offload_bucket);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, uint32_t);
	__type(value, struct offloaded);
} offloaded SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OFFLOAD_PORTS);
	__type(key, uint32_t);
	__type(value, struct offload_port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, uint32_t);
	__type(value, uint8_t[SUM_CHUNK]);
} scratch SEC(".maps");

/* As linux/skbuff.h numbers them. */
enum summed { SUMMED_UNNECESSARY = 1, SUMMED_PARTIAL = 3, SUMMED_UNKNOWN };

/* What the program has read of a packet. */
struct view {
	struct flow_key key;
	uint32_t ip_len;
	uint32_t l4_len;
	uint32_t pseudo;           /* sum of the pseudo header */
	uint32_t headers;          /* of IP and of a segment that a super-packet is cut into */
	uint16_t check;            /* as it stands in the packet */
	uint16_t check_at;         /* offset in the transport header */
	bool     is_tcp;
	bool     is_fin;
	bool     unchecked;        /* UDP without a checksum */
	bool     is_reply;         /* ICMP echo */
	uint8_t  summed;           /* enum summed, or something else */
	uint16_t window;
	uint32_t seq;
	uint32_t ack;
	uint32_t seq_len;
};

INLINE bool before(uint32_t a, uint32_t b) { return (int32_t)(a - b) < 0; }

INLINE uint16_t fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

INLINE const struct offload_port *find_port(uint32_t ifindex)
{
#pragma unroll
	for (uint32_t i = 0; i < OFFLOAD_PROBES; i++) {
		uint32_t place = (ifindex + i) % OFFLOAD_PORTS;
		const struct offload_port *port = bpf_map_lookup_elem(&ports, &place);

		if (port && port->ifindex == ifindex)
			return port;
	}
	return NULL;
}

INLINE bool read_tcp(struct view *v, const uint8_t *tcp)
{
	uint32_t header = (tcp[12] >> 4) * 4u, flags = tcp[13] & 0x3f;

	if ((flags & ~(uint32_t)(TCP_FLAG_PSH | TCP_FLAG_FIN)) != TCP_FLAG_ACK || header < TCP_HEADER || header > v->l4_len)
		return false;
	v->is_tcp = true;
	v->is_fin = flags & TCP_FLAG_FIN;
	v->key.sport = *(const uint16_t *)tcp;
	v->key.dport = *(const uint16_t *)(tcp + 2);
	v->seq = bpf_ntohl(*(const uint32_t *)(tcp + 4));
	v->ack = bpf_ntohl(*(const uint32_t *)(tcp + 8));
	v->window = bpf_ntohs(*(const uint16_t *)(tcp + 14));
	v->check = *(const uint16_t *)(tcp + 16);
	v->check_at = 16;
	v->seq_len = v->l4_len - header + v->is_fin;
	v->headers += header;
	return true;
}

/* To leave the checksum out is IPv4's privilege. */
INLINE bool read_udp(struct view *v, const uint8_t *udp, int family)
{
	uint32_t len = bpf_ntohs(*(const uint16_t *)(udp + 4));

	if (len < 8 || len != v->l4_len)
		return false;
	v->key.sport = *(const uint16_t *)udp;
	v->key.dport = *(const uint16_t *)(udp + 2);
	v->check = *(const uint16_t *)(udp + 6);
	v->check_at = 6;
	v->unchecked = !v->check;
	v->headers += 8;
	return family == 4 || v->check;
}

/* The pseudo header is part of ICMPv6's checksum alone. */
INLINE bool read_echo(struct view *v, const uint8_t *icmp, int family)
{
	uint8_t request = family == 4 ? 8 : 128, reply = family == 4 ? 0 : 129;

	if (v->l4_len < 8 || (icmp[0] != request && icmp[0] != reply))
		return false;
	v->is_reply = icmp[0] == reply;
	if (v->is_reply)
		v->key.dport = *(const uint16_t *)(icmp + 4);
	else
		v->key.sport = *(const uint16_t *)(icmp + 4);
	v->check = *(const uint16_t *)(icmp + 2);
	v->check_at = ECHO_CHECK;
	if (family == 4)
		v->pseudo = 0;
	return v->key.sport | v->key.dport;
}

/* ip_rcv() has not seen the header yet. */
INLINE bool read_ip4(struct view *v, const uint8_t *ip)
{
	const uint32_t *words = (const uint32_t *)ip;
	const uint16_t *halves = (const uint16_t *)ip;
	uint64_t addresses = (uint64_t)words[3] + words[4];

	v->ip_len = bpf_ntohs(halves[1]);
	if (ip[0] != 0x45 || v->ip_len < IP4_HEADER || halves[3] & bpf_htons(0x3fff))
		return false;
	if (fold(addresses + words[0] + words[1] + words[2]) != 0xffff)
		return false;
	v->key.family = 4;
	v->key.proto = ip[9];
	*(uint16_t *)(v->key.src + 10) = 0xffff;
	*(uint16_t *)(v->key.dst + 10) = 0xffff;
	*(uint32_t *)(v->key.src + 12) = words[3];
	*(uint32_t *)(v->key.dst + 12) = words[4];
	v->l4_len = v->ip_len - IP4_HEADER;
	v->headers = IP4_HEADER;
	v->pseudo = fold(addresses + bpf_htons(v->l4_len) + bpf_htons(ip[9]));
	return true;
}

INLINE bool read_ip6(struct view *v, const uint8_t *ip)
{
	uint64_t sum = 0;

	if (ip[0] >> 4 != 6)
		return false;
	v->l4_len = bpf_ntohs(*(const uint16_t *)(ip + 4));
	v->ip_len = IP6_HEADER + v->l4_len;
	v->key.family = 6;
	v->key.proto = ip[6];
	__builtin_memcpy(v->key.src, ip + 8, 16);
	__builtin_memcpy(v->key.dst, ip + 24, 16);
#pragma unroll
	for (int i = 8; i < IP6_HEADER; i += 4)
		sum += *(const uint32_t *)(ip + i);
	v->headers = IP6_HEADER;
	v->pseudo = fold(sum + bpf_htons(v->l4_len) + bpf_htons(ip[6]));
	return true;
}

INLINE bool read_transport(struct view *v, const uint8_t *l4, const uint8_t *end, int family)
{
	if (l4 + 8 > end)
		return false;
	switch (v->key.proto) {
	case IPPROTO_TCP:
		return l4 + TCP_HEADER <= end && read_tcp(v, l4);
	case IPPROTO_UDP:
		return read_udp(v, l4, family);
	case IPPROTO_ICMP:
		return family == 4 && read_echo(v, l4, family);
	case IPPROTO_ICMPV6:
		return family == 6 && read_echo(v, l4, family);
	}
	return false;
}

/* Sums the transport part; what is longer than SUM_CHUNKS goes up. */
INLINE bool sum_is_right(struct __sk_buff *skb, const struct view *v, uint32_t l4)
{
	uint32_t zero = 0, at = 0;
	int64_t sum = v->pseudo;
	uint8_t *bytes = bpf_map_lookup_elem(&scratch, &zero);

	if (!bytes)
		return false;
#pragma unroll
	for (int i = 0; i < SUM_CHUNKS; i++) {
		uint32_t len = v->l4_len - at;

		if (at >= v->l4_len)
			break;
		if (len > SUM_CHUNK - 4)
			len = SUM_CHUNK - 4;
		*(uint32_t *)(bytes + (len & ~3u)) = 0;
		barrier_var(len);          /* the verifier wants to see both bounds, which the compiler knows */
		if (len < 1 || len > SUM_CHUNK - 4 || bpf_skb_load_bytes(skb, l4 + at, bytes, len))
			return false;
		sum = bpf_csum_diff(NULL, 0, (uint32_t *)bytes, (len + 3) & ~3u, (uint32_t)sum);
		if (sum < 0)
			return false;
		at += len;
	}
	return at == v->l4_len && fold((uint64_t)sum) == 0xffff;
}

INLINE uint8_t summed(struct __sk_buff *skb)
{
#ifdef KERNEL_TYPES
	const struct sk_buff *packet = bpf_cast_to_kern_ctx(skb);

	return BPF_CORE_READ_BITFIELD(packet, ip_summed);
#else
	(void)skb;
	return SUMMED_UNKNOWN;
#endif
}

/* Only the pseudo header is summed: the rest is left to the device. */
INLINE bool is_partial(const struct view *v)
{
	if (v->check_at == ECHO_CHECK)
		return false;
	return v->summed == SUMMED_UNKNOWN ? v->check == v->pseudo : v->summed == SUMMED_PARTIAL;
}

INLINE bool is_verified(struct __sk_buff *skb, const struct view *v)
{
	return v->summed == SUMMED_UNKNOWN ? bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0 : v->summed == SUMMED_UNNECESSARY;
}

/* Super-packets are the kernel's own work, or GRO's, which verifies. */
INLINE bool has_good_sum(struct __sk_buff *skb, const struct view *v, uint32_t l4)
{
	return skb->gso_size || v->unchecked || is_partial(v) || is_verified(skb, v) || sum_is_right(skb, v, l4);
}

/* hop.mtu may be the route's; the device's may have become smaller since, but not smaller than the protocol allows. */
INLINE bool fits(struct __sk_buff *skb, const struct view *v, const struct offload_flow *flow, int family)
{
	uint32_t len = skb->gso_size ? v->headers + skb->gso_size : v->ip_len, mtu = 0;

	if (len > flow->hop.mtu)
		return false;
	return v->ip_len <= (family == 4 ? IP4_MTU_MIN : IP6_MTU_MIN) ||
	       bpf_check_mtu(skb, flow->hop.ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) == BPF_MTU_CHK_RET_SUCCESS;
}

INLINE uint32_t now(uint32_t *at)
{
	return *(volatile uint32_t *)at;
}

INLINE bool in_window(const struct view *v, struct tcp_flow *sender, struct tcp_flow *receiver)
{
	uint32_t window = now(&sender->max_window), oldest = window > ACK_WINDOW ? window : ACK_WINDOW;
	uint32_t end = now(&receiver->end);

	return !before(now(&sender->max_end), v->seq) &&
	       !before(v->seq + v->seq_len, now(&sender->end) - now(&receiver->max_window)) &&
	       !before(end, v->ack) && !before(v->ack, end - oldest);
}

/* False if others raise the same number all the time. */
INLINE bool raise(uint32_t *at, uint32_t value)
{
	uint32_t old = now(at);

	for (int i = 0; i < RAISE_TRIES; i++) {
		uint32_t seen;

		if (!before(old, value))
			return true;
		seen = __sync_val_compare_and_swap(at, old, value);
		if (seen == old)
			return true;
		old = seen;
	}
	return false;
}

INLINE bool advance(const struct view *v, struct offload_flow *sender, struct offload_flow *receiver)
{
	uint32_t window = (uint32_t)v->window << (sender->window_scale & 15);

	return raise(&sender->tcp.end, v->seq + v->seq_len) && raise(&sender->tcp.max_window, window) &&
	       raise(&sender->tcp.ack, v->ack) && raise(&receiver->tcp.max_end, v->ack + (window ? window : 1));
}

/* A FIN moves the windows like any segment and is then C's to judge: what comes behind it is forwarded here, perhaps
 * before it. */
INLINE bool track(const struct view *v, struct offload_flow *sender, struct offload_flow *receiver)
{
	return !v->is_tcp || (in_window(v, &sender->tcp, &receiver->tcp) && advance(v, sender, receiver) && !v->is_fin);
}

/* Who sees the packet counted also sees when it came.  The clock is read once in two of the kernel's own ticks. */
INLINE void count(const struct view *v, struct offload_flow *flow)
{
	uint32_t moment = (uint32_t)bpf_jiffies64() | 1;

	if (flow->moment != moment) {
		*(volatile uint64_t *)&flow->last_seen = bpf_ktime_get_coarse_ns();
		*(volatile uint32_t *)&flow->moment = moment;
	}
	__sync_fetch_and_add(&flow->packets, 1);
	__sync_fetch_and_add(&flow->bytes, v->ip_len);
}

/* Whether only the pseudo header is summed, seen by what the helper has just done to the checksum: to a complete one, which
 * is an inverted sum, it would have done the opposite. */
INLINE bool was_partial(const struct __sk_buff *skb, const struct view *v, const struct offload_flow *flow, uint32_t l4)
{
	const uint8_t *data = (const uint8_t *)(long)skb->data, *end = (const uint8_t *)(long)skb->data_end;
	const uint8_t *at = data + l4 + (v->is_tcp ? 16 : 6);

	return (v->check == v->pseudo || skb->gso_size) && at + 2 <= end &&
	       *(const uint16_t *)at == fold((uint64_t)v->check + flow->address_delta);
}

/* The sum of a pseudo header is no inverted one, and has no ports in it. */
INLINE bool adjust_partial(struct __sk_buff *skb, const struct view *v, const struct offload_flow *flow, uint32_t l4)
{
	uint8_t *at = (uint8_t *)(long)skb->data + l4 + (v->is_tcp ? 16 : 6);

	if (at + 2 > (uint8_t *)(long)skb->data_end)
		return false;
	if (flow->address_delta != 0xffff)
		*(uint16_t *)at = fold((uint64_t)v->check + flow->address_delta);
	return true;
}

/* The transport checksum: what the pseudo header adds, and, unless the device will do that, what the ports add. */
INLINE bool adjust_sum(struct __sk_buff *skb, const struct view *v, const struct offload_flow *flow, uint32_t l4, int family)
{
	uint64_t keep_zero = v->key.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	uint32_t at = l4 + v->check_at;

	if (v->unchecked)
		return true;
	if (v->summed == SUMMED_PARTIAL && v->check_at != ECHO_CHECK)
		return adjust_partial(skb, v, flow, l4);
	if (!(family == 4 && v->key.proto == IPPROTO_ICMP) && flow->address_delta != 0xffff) {
		if (bpf_l4_csum_replace(skb, at, 0, flow->address_delta, BPF_F_PSEUDO_HDR | keep_zero))
			return false;
		if (v->summed == SUMMED_UNKNOWN && v->check_at != ECHO_CHECK && was_partial(skb, v, flow, l4))
			return true;
	}
	return flow->port_delta == 0xffff || !bpf_l4_csum_replace(skb, at, 0, flow->port_delta, keep_zero);
}

INLINE void write_ports(const struct view *v, const struct offload_flow *flow, uint8_t *l4)
{
	if (v->key.proto == IPPROTO_ICMP || v->key.proto == IPPROTO_ICMPV6) {
		*(uint16_t *)(l4 + 4) = v->is_reply ? flow->dport : flow->sport;
		return;
	}
	*(uint16_t *)l4 = flow->sport;
	*(uint16_t *)(l4 + 2) = flow->dport;
}

INLINE void write_ip4(const struct offload_flow *flow, uint8_t *ip, bool wire)
{
	uint32_t sum = (uint16_t)~*(uint16_t *)(ip + 10);

	if (flow->translated) {
		*(uint32_t *)(ip + 12) = *(const uint32_t *)(flow->src + 12);
		*(uint32_t *)(ip + 16) = *(const uint32_t *)(flow->dst + 12);
		sum += flow->address_delta == 0xffff ? 0 : flow->address_delta;
	}
	if (!wire) {
		ip[8]--;
		sum += (uint16_t)~bpf_htons(0x0100);
	}
	*(uint16_t *)(ip + 10) = (uint16_t)~fold(sum);
}

INLINE void write_ip6(const struct offload_flow *flow, uint8_t *ip, bool wire)
{
	if (flow->translated) {
		__builtin_memcpy(ip + 8, flow->src, 16);
		__builtin_memcpy(ip + 24, flow->dst, 16);
	}
	if (!wire)
		ip[7]--;
}

/* The helpers may have moved the packet, so it is looked at anew. */
INLINE bool rewrite(struct __sk_buff *skb, const struct view *v, const struct offload_flow *flow, bool wire, int family)
{
	const uint32_t l4 = ETH_HLEN + (family == 4 ? IP4_HEADER : IP6_HEADER);
	uint8_t *data, *end;

	if (flow->translated && !adjust_sum(skb, v, flow, l4, family))
		return false;
	data = (uint8_t *)(long)skb->data;
	end = (uint8_t *)(long)skb->data_end;
	if (data + l4 + 8 > end)
		return false;
	if (!wire)
		__builtin_memcpy(data, flow->hop.link, sizeof(flow->hop.link));
	if (flow->translated)
		write_ports(v, flow, data + l4);
	if (family == 4)
		write_ip4(flow, data + ETH_HLEN, wire);
	else
		write_ip6(flow, data + ETH_HLEN, wire);
	return true;
}

/* Whether the packet is of this flow; its key stands in `back`. */
INLINE bool is_flow(const struct view *v, const struct offload_flow *flow, const struct offload_flow *back, int family)
{
	const uint64_t *src = (const uint64_t *)v->key.src, *dst = (const uint64_t *)v->key.dst;
	const uint64_t *from = (const uint64_t *)back->dst, *to = (const uint64_t *)back->src;

	if (flow->proto != (v->key.proto | (family == 6 ? OFFLOAD_IPV6 : 0)) || flow->zone != v->key.zone)
		return false;
	if (v->key.sport != back->dport || v->key.dport != back->sport || src[1] != from[1] || dst[1] != to[1])
		return false;
	return family == 4 || (src[0] == from[0] && dst[0] == to[0]);
}

/* The flow that a packet is of, and the one that comes back; false: none that is offloaded. */
INLINE bool find_flow(const struct view *v, struct offload_flow **flow, struct offload_flow **back, int family)
{
	uint64_t hash = offload_hash(&v->key, &secret, family);
	uint32_t at = offload_bucket_of(hash, &secret), tag = offload_slot(hash, 0);
	struct offload_bucket *bucket = bpf_map_lookup_elem(&flows, &at);

	if (!bucket)
		return false;
#pragma clang loop unroll(disable)
	for (int i = 0; i < OFFLOAD_SLOTS; i++) {
		uint32_t ref = now(&bucket->slot[i]) ^ tag, index = ref >> 1;
		struct offloaded *entry;

		if (ref >> OFFLOAD_REF_BITS)
			continue;
		entry = bpf_map_lookup_elem(&offloaded, &index);
		if (!entry)
			return false;
		*flow = ref & 1 ? &entry->flow[1] : &entry->flow[0];
		*back = ref & 1 ? &entry->flow[0] : &entry->flow[1];
		if (is_flow(v, *flow, *back, family))
			return true;
	}
	return false;
}

INLINE int forward(struct __sk_buff *skb, const struct offload_port *port, int family)
{
	const uint32_t l4 = ETH_HLEN + (family == 4 ? IP4_HEADER : IP6_HEADER);
	const uint8_t *data = (const uint8_t *)(long)skb->data, *end = (const uint8_t *)(long)skb->data_end;
	struct offload_flow *flow, *back;
	struct view v = {0};
	bool wire = port->wire;

	if (data + l4 > end)
		return UP;
	if (family == 4 ? !read_ip4(&v, data + ETH_HLEN) : !read_ip6(&v, data + ETH_HLEN))
		return UP;
	if (ETH_HLEN + v.ip_len > skb->len || (!wire && data[ETH_HLEN + (family == 4 ? 8 : 7)] <= 1))
		return UP;
	if (!read_transport(&v, data + l4, end, family))
		return UP;
	v.key.zone = port->zone;
	v.summed = summed(skb);
	if (!find_flow(&v, &flow, &back, family))
		return UP;
	if (!fits(skb, &v, flow, family) || !has_good_sum(skb, &v, l4) || !track(&v, flow, back))
		return UP;
	if (!rewrite(skb, &v, flow, wire, family))
		return TC_ACT_SHOT;
	count(&v, flow);
	return bpf_redirect(flow->hop.ifindex, 0);
}

/* Some drivers leave all but the Ethernet header in pages. */
INLINE bool has_headers(struct __sk_buff *skb)
{
	uint32_t linear = skb->data_end - skb->data, wanted = skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX;

	return linear >= wanted || !bpf_skb_pull_data(skb, wanted);
}

SEC("tc")
int offload(struct __sk_buff *skb)
{
	const struct offload_port *port = find_port(skb->ifindex);

	if (!port || skb->vlan_present)
		return UP;
	if (skb->pkt_type != PACKET_HOST && !(port->wire && skb->pkt_type == PACKET_OTHERHOST))
		return UP;
	if (!has_headers(skb))
		return UP;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return forward(skb, port, 4);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return forward(skb, port, 6);
	return UP;
}

char _license[] SEC("license") = "GPL";
