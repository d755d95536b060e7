/* fuzz_packet.c - any bytes as a packet, among sessions of every kind; `make fuzz` runs it under libFuzzer, ASan, UBSan.
 *
 *     input   how how how | packet            how: hook, interface, checksum state, mark, time, repairs
 *
 * Each input meets the same table: after it, slots, hash and lists are put back as they were made, so that an input that
 * fails does so alone.  What it may not do:
 *
 *     - get another verdict than one of four, or be counted otherwise than once
 *     - change, or make longer, what is not to be rewritten; change anything but addresses, ports and checksums otherwise
 *     - leave with a wrong checksum where it came with a right one
 *     - leave a lock taken, a session that its keys do not find, or a list that does not hold what it should
 *
 * Memory of a packet is exactly its size.  A packet that asks for the slow path gets a session of a kind that its key
 * picks, and goes round.  The clock is ours (--wrap=table_now).  tests/fuzz_seeds.py writes what to begin with.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>

#include "internal.h"

#define SLOTS 128
#define CONTROL 3                     /* bytes of an input before its packet */
#define INSIDE 1                      /* interface and zone */
#define OUTSIDE 2
#define PUBLIC_PORT 2000              /* plus the kind: what DIPP is made to choose */
#define PROTOCOLS 4

enum kind { ROUTED, STATIC, DIPP, SERVER, BOTH, HOST, DENIED, KINDS };

static const uint8_t protocols[PROTOCOLS] = {IPPROTO_UDP, IPPROTO_TCP, IPPROTO_ICMP, IPPROTO_GRE};

/* By family, 0 for IPv4: who talks to whom, and as whom. */
struct net {
	uint8_t client[16];               /* its last byte: the kind, plus one */
	uint8_t asked[16];
	uint8_t public[16];
	uint8_t real[16];
};

static const struct net nets[2] = {
	{
		.client = {[10] = 0xff, 0xff, 10, 0, 0, 0},
		.asked = {[10] = 0xff, 0xff, 8, 8, 8, 8},
		.public = {[10] = 0xff, 0xff, 192, 0, 2, 1},
		.real = {[10] = 0xff, 0xff, 10, 1, 1, 1},
	},
	{
		.client = {0xfd},
		.asked = {0x20, 0x01, 0x0d, 0xb8, [15] = 8},
		.public = {0x20, 0x01, 0x0d, 0xb8, [15] = 1},
		.real = {0xfd, 0x01, [15] = 1},
	},
};

static struct table *table;
static uint32_t now = 1000;
static bool made_new;                     /* this input has installed a session */

/* What an input may change, as it was before: the head up to the zones, then slots, buckets and overflow. */
static uint8_t *head_before, *sessions_before;

uint32_t __wrap_table_now(void);
uint32_t __wrap_table_now(void)
{
	return now;
}

/* ---- the table ---- */

static const struct net *net_of(const struct flow_key *key)
{
	return &nets[key->family == 6];
}

static void decide(struct decision *d, const struct flow_key *key, enum kind kind)
{
	const struct net *net = net_of(key);

	memset(d, 0, sizeof(*d));
	d->egress_zone = kind == HOST ? ZONE_HOST : OUTSIDE;
	d->ingress = INSIDE;
	d->egress = OUTSIDE;
	d->flags = kind == HOST ? FLAG_HOST : 0;
	d->discard = kind == DENIED;
	d->first_len = 40;
	if (kind == STATIC || kind == DIPP || kind == BOTH) {
		d->source_nat = kind == STATIC ? SOURCE_STATIC : SOURCE_PORT;
		memcpy(d->source, net->public, 16);
		d->port_min = d->port_max = (uint16_t)(PUBLIC_PORT + kind);
	}
	if (kind == SERVER || kind == BOTH || kind == HOST) {
		d->destination_nat = 1;
		memcpy(d->destination, net->real, 16);
		if (key->proto == IPPROTO_TCP || key->proto == IPPROTO_UDP)
			d->destination_port = htons(8053);
	}
}

static struct flow_key client_key(int family, enum kind kind, uint8_t proto)
{
	struct flow_key key = {.zone = INSIDE, .family = family ? 6 : 4, .proto = proto};

	memcpy(key.src, nets[family].client, 16);
	memcpy(key.dst, nets[family].asked, 16);
	key.src[15] = (uint8_t)(kind + 1);
	if (proto == IPPROTO_ICMP && family)
		key.proto = IPPROTO_ICMPV6;
	if (proto != IPPROTO_GRE)
		key.sport = htons(4000);
	if (proto == IPPROTO_TCP || proto == IPPROTO_UDP)
		key.dport = htons(53);
	return key;
}

/* Connections in every state: the kind of translation picks it. */
static void set_tcp_state(struct session *s, enum kind kind)
{
	s->tcp_state = (uint8_t)kind;
	if (s->tcp_state == TCP_NEW)
		return;
	for (int dir = 0; dir < 2; dir++) {
		s->window_scale[dir] = (uint8_t)kind;
		s->tcp[dir] = (struct tcp_flow){.end = 1000, .max_end = 66000, .ack = 1000, .max_window = 65000};
	}
	if (s->tcp_state == TCP_SYN_SENT)
		memset(&s->tcp[1], 0, sizeof(s->tcp[1]));
}

static void install_all(void)
{
	for (int family = 0; family < 2; family++)
		for (int kind = 0; kind < KINDS; kind++)
			for (int i = 0; i < PROTOCOLS; i++) {
				struct flow_key key = client_key(family, kind, protocols[i]);
				struct decision d;
				int64_t id;

				decide(&d, &key, kind);
				id = session_install(table, SHARD_SLOW, &key, &d);
				if (id == INSTALL_CLASH || id == INSTALL_NO_PORT)   /* by addresses alone, one host at a time */
					continue;
				assert(id > 0);
				if (key.proto == IPPROTO_TCP && kind < TCP_STATES && kind != DENIED)
					set_tcp_state(session_at(table, (uint32_t)id), kind);
			}
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct timers timers = {5, 10, 360, 120, 15, 30, 30, 6, 30, 90, 60, 60};
	struct settings settings = {.reject_non_syn = 1, .aging_threshold = 80, .aging_factor = 2};
	struct origin own = {.zone = ZONE_HOST};

	(void)argc;
	(void)argv;
	table = table_create(SLOTS, 1);
	if (!table)
		abort();
	memset(table->secret, 0x5a, sizeof(table->secret));
	wheel_init(table, now);
	table_set_timers(table, 0, &timers);
	table_set_settings(table, &settings);
	table_set_zones(table, (uint32_t[]){INSIDE, OUTSIDE}, (uint8_t[]){INSIDE, OUTSIDE}, 2);
	memcpy(own.first, nets[1].real, 16);
	memcpy(own.last, nets[1].real, 16);
	table_set_origins(table, &own, 1);
	for (int family = 0; family < 2; family++)
		natpool_open(table, nets[family].public);
	install_all();
	head_before = malloc(offsetof(struct table, zones));
	sessions_before = malloc(table->pools - table->slots);
	if (!head_before || !sessions_before)
		abort();
	memcpy(head_before, table, offsetof(struct table, zones));
	memcpy(sessions_before, (char *)table + table->slots, table->pools - table->slots);
	return 0;
}

static void restore(void)
{
	struct natpool *pools = (struct natpool *)((char *)table + table->pools);

	memcpy(table, head_before, offsetof(struct table, zones));
	memcpy((char *)table + table->slots, sessions_before, table->pools - table->slots);
	if (!made_new)
		return;
	made_new = false;
	memset(pools, 0, table->pool_count * sizeof(*pools));
	for (uint32_t id = 1; id <= SLOTS; id++) {
		struct session *s = session_at(table, id);

		if (session_matches(s) && s->pool) {
			uint16_t port = ntohs(s->key[1].dport);
			int32_t taken = natpool_lend(table, s->pool - 1u, s->key[1].proto, port, port, port);

			assert(taken == port);
		}
	}
}

/* ---- what must hold ---- */

static void check_session(struct session *s, uint32_t id)
{
	for (int dir = 0; dir < 2; dir++) {
		int found_dir;
		struct session *found = table_lookup(table, &s->key[dir], &found_dir);

		assert(found == s && found_dir == dir && session_id(table, found) == id);
		session_unlock(found);
	}
	assert(s->wheel_due && s->last_seen <= now && s->end_reason <= END_NONE && s->tcp_state < TCP_STATES);
}

static void check_table(void)
{
	uint32_t alive = 0, free = 0, scheduled = 0, counted = 0;

	for (uint32_t id = 1; id <= SLOTS; id++) {
		struct session *s = session_at(table, id);

		assert(!s->lock);
		scheduled += s->state[0] != SESSION_INIT;
		if (!session_matches(s))
			continue;
		alive++;
		check_session(s, id);
	}
	for (uint32_t id = table->free_head; id; id = session_at(table, id)->wheel_next)
		free++;
	for (int i = 0; i < 6; i++)
		counted += table->count[i];
	assert(!table->free_lock && !table->discard_lock && !table->wheel_lock && !table->overflow_lock);
	assert(table->allocated + free == SLOTS && counted == alive && table->wheel_scheduled == scheduled);
}

struct books {
	uint64_t received, bytes, punted, dropped;
};

static struct books read_books(void)
{
	const uint64_t *c = table->counter[0];
	struct books b = {c[PKT_RECV], c[BYTES_RECV], c[PKT_PUNT], 0};

	for (int i = FLOW_PARSE_IP_HDR; i < DROPS_END; i++)
		b.dropped += c[i];
	return b;
}

static void check_books(enum verdict v, uint32_t len, const struct books *before)
{
	struct books after = read_books();

	assert(v == VERDICT_ACCEPT || v == VERDICT_REWRITTEN || v == VERDICT_PUNT || v == VERDICT_DROP);
	assert(after.received == before->received + 1 && after.bytes == before->bytes + len);
	assert(after.dropped - before->dropped == (v == VERDICT_DROP));
	assert(after.punted - before->punted == (v == VERDICT_PUNT));
}

/* ---- checksums, the slow way and from the bytes alone ---- */

static uint16_t sum(const uint8_t *p, uint32_t len, uint32_t total)
{
	for (uint32_t i = 0; i < len; i++)
		total += i & 1 ? p[i] : (uint32_t)p[i] << 8;
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	return (uint16_t)total;
}

static void put16(uint8_t *p, uint16_t n)
{
	p[0] = (uint8_t)(n >> 8);
	p[1] = (uint8_t)n;
}

/* Where a transport header has its checksum and how much that covers; len 0: none. */
struct cover {
	uint32_t l4;
	uint32_t len;
	uint32_t at;
	uint32_t pseudo;
};

static struct cover find_cover(const uint8_t *p, uint32_t len, uint32_t l4, uint8_t proto)
{
	struct cover c = {.l4 = l4};
	bool four = p[0] >> 4 == 4;
	uint32_t end = four ? get16(p + 2) : 40u + get16(p + 4), there;

	end = end < len ? end : len;
	there = end > l4 ? end - l4 : 0;
	switch (proto) {
	case IPPROTO_TCP:
		c.at = 16;
		break;
	case IPPROTO_UDP:
		c.at = 6;
		there = there >= 8 && get16(p + l4 + 4) < there ? get16(p + l4 + 4) : there;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		c.at = 2;
		break;
	default:
		return c;
	}
	if (there < c.at + 2)
		return c;
	c.len = there;
	c.at += l4;
	if (proto == IPPROTO_ICMP)
		return c;
	c.pseudo = proto + c.len + (four ? sum(p + 12, 8, 0) : sum(p + 8, 32, 0));
	return c;
}

static bool l4_valid(const uint8_t *p, const struct cover *c)
{
	return sum(p + c->l4, c->len, c->pseudo) == 0xffff;
}

static bool ip_valid(const uint8_t *p)
{
	return p[0] >> 4 != 4 || sum(p, (p[0] & 15u) * 4, 0) == 0xffff;
}

/* Bytes that translation may write in one header and the transport header behind it. */
static void mark_writable(uint8_t *writable, const uint8_t *p, uint32_t len, uint32_t l3, uint32_t l4, uint8_t proto)
{
	bool ports = proto == IPPROTO_TCP || proto == IPPROTO_UDP;
	struct { uint32_t from, n; } parts[] = {
		{l3 + 10, p[l3] >> 4 == 4 ? 2 : 0},
		{p[l3] >> 4 == 4 ? l3 + 12 : l3 + 8, p[l3] >> 4 == 4 ? 8 : 32},
		{l4, ports ? 4 : 0},
		{proto == IPPROTO_TCP ? l4 + 16 : l4 + 6, ports || proto == IPPROTO_UDPLITE || proto == IPPROTO_DCCP ? 2 : 0},
		{l4 + 2, proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6 ? 4 : 0},
	};

	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
		for (uint32_t at = parts[i].from; at < parts[i].from + parts[i].n && at < len; at++)
			writable[at] = 1;
}

static void check_untouched(const struct packet *pkt, const uint8_t *before)
{
	uint8_t *writable = calloc(1, pkt->len);

	if (!writable)
		abort();
	mark_writable(writable, before, pkt->len, 0, pkt->l4, pkt->key.proto);
	if (pkt->kind == PACKET_ICMP_ERROR)
		mark_writable(writable, before, pkt->len, pkt->quoted_l3, pkt->quoted_l4, pkt->quoted.proto);
	for (uint32_t i = 0; i < pkt->len; i++)
		assert(writable[i] || pkt->data[i] == before[i]);
	free(writable);
}

/* A UDP datagram without a checksum keeps none; a sender that left it to the NIC gets it whole unless its NIC will see to
 * each segment; else right stays right. */
static void check_checksums(const struct packet *pkt, const uint8_t *before)
{
	struct cover old = find_cover(before, pkt->len, pkt->l4, pkt->key.proto);
	struct cover new = find_cover(pkt->data, pkt->len, pkt->l4, pkt->key.proto);

	assert(!ip_valid(before) || ip_valid(pkt->data));
	if (pkt->kind == PACKET_ICMP_ERROR) {
		assert(l4_valid(pkt->data, &new) && ip_valid(pkt->data + pkt->quoted_l3));
		return;
	}
	if (!new.len || (pkt->key.proto == IPPROTO_UDP && !get16(before + old.at))) {
		assert(!new.len || !get16(pkt->data + new.at));
		return;
	}
	if (pkt->checksum == CHECKSUM_PARTIAL)
		assert(l4_valid(pkt->data, &new));
	else if (pkt->checksum == CHECKSUM_SUPER)
		assert(l4_valid(pkt->data, &new) || get16(pkt->data + new.at) == sum(NULL, 0, new.pseudo) ||
		       (pkt->key.proto == IPPROTO_ICMP && !get16(pkt->data + new.at)));
	else
		assert(!l4_valid(before, &old) || l4_valid(pkt->data, &new));
}

/* ---- one input ---- */

static void repair_checksum(uint8_t *p, const struct cover *c)
{
	uint16_t check;

	if (!c->len)
		return;
	put16(p + c->at, 0);
	check = (uint16_t)~sum(p + c->l4, c->len, c->pseudo);
	put16(p + c->at, check ? check : 0xffff);
}

static void repair_ip4(uint8_t *p, uint32_t len)
{
	uint32_t header = (p[0] & 15u) * 4;

	if (header < 20 || header > len)
		return;
	put16(p + 10, 0);
	put16(p + 10, (uint16_t)~sum(p, header, 0));
}

/* Lengths and checksums made right, so that what lies behind them is reached; no extension headers. */
static void repair(uint8_t *p, uint32_t len)
{
	bool four;
	uint32_t l4;
	uint8_t proto;
	struct cover c;

	if (len < 48)
		return;
	four = p[0] >> 4 == 4;
	l4 = four ? (p[0] & 15u) * 4 : 40;
	proto = four ? p[9] : p[6];
	put16(p + (four ? 2 : 4), (uint16_t)(four ? len : len - 40));
	if (l4 < 20 || l4 + 28 > len)
		return;
	if (proto == IPPROTO_UDP)
		put16(p + l4 + 4, (uint16_t)(len - l4));
	if (proto == IPPROTO_ICMP && p[l4 + 8] >> 4 == 4)
		repair_ip4(p + l4 + 8, len - l4 - 8);
	if (four)
		repair_ip4(p, len);
	c = find_cover(p, len, l4, proto);
	repair_checksum(p, &c);
}

static uint8_t *copy(const uint8_t *data, uint32_t len)
{
	uint8_t *p = malloc(len ? len : 1);

	if (!p)
		abort();
	memcpy(p, data, len);
	return p;
}

static enum verdict take(struct packet *pkt, const uint8_t *before)
{
	struct books books = read_books();
	enum verdict v = fastpath_take(table, 0, pkt, now);

	check_books(v, pkt->len, &books);
	if (v != VERDICT_REWRITTEN) {
		assert(!memcmp(pkt->data, before, pkt->len));
		return v;
	}
	check_untouched(pkt, before);
	check_checksums(pkt, before);
	return v;
}

/* As the slow path does with a miss; the packet that comes round finds its session and is not sent here again. */
static void go_round(struct packet *pkt, const uint8_t *before)
{
	struct decision d;
	enum verdict v = slowpath_look(table, pkt);
	int64_t id;

	assert(v == VERDICT_PUNT);
	decide(&d, &pkt->key, pkt->key.src[15] % KINDS);
	d.port_max += 3;
	id = session_install(table, SHARD_SLOW, &pkt->key, &d);
	made_new = true;
	if (id < 0)
		return;
	pkt->mark = MARK_SEEN;
	v = take(pkt, before);
	assert(v != VERDICT_PUNT && (!d.discard || v == VERDICT_DROP));
}

/* A packet of which the slow queue holds only the beginning. */
static void look_at_beginning(struct packet *pkt)
{
	enum verdict v;

	pkt->cut = 1;
	v = slowpath_look(table, pkt);
	assert(v == VERDICT_PUNT || v == VERDICT_ACCEPT || v == VERDICT_DROP);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	uint32_t len = (uint32_t)size - CONTROL;
	struct packet pkt = {.len = len};
	uint8_t *before;

	if (size < CONTROL)
		return 0;
	pkt.hook = input[0] & 0x80 ? HOOK_OUTPUT : HOOK_PREROUTING;
	pkt.ifindex = input[0] & 3;
	pkt.checksum = input[1] & 3;
	pkt.mark = input[1] & 0x80 ? MARK_SEEN : 0;
	now = 1000 + input[2] / 8;
	before = copy(input + CONTROL, len);
	if (input[1] & 0x40)
		repair(before, len);
	pkt.data = copy(before, len);
	if (input[2] & 1)
		look_at_beginning(&pkt);
	else if (take(&pkt, before) == VERDICT_PUNT)
		go_round(&pkt, before);
	check_table();
	restore();
	free(pkt.data);
	free(before);
	return 0;
}
