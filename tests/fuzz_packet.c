/* fuzz_packet.c - any bytes as a packet, among sessions of every kind; `make fuzz` runs it under libFuzzer, ASan, UBSan.
 *
 *     input   how how how | packet            how: table, hook, interface, checksum state, mark, time, repairs, company
 *
 * There are four tables: ports are shared or not, and ALGs read what is in it or not; where they do, texts have been
 * edited, and sessions are expected.  Each input meets one of them as it was made: after it, slots, hash, lists, ports
 * and edits are put back, so that an input that fails does so alone.  A crowd may come before the packet and take what
 * ports there are, half of the sessions may end; all may end after it, and it comes again.  What may not happen:
 *
 *     - a packet gets another verdict than one of five, or is counted otherwise than once
 *     - it changes, or becomes longer, unless it is rewritten; then more than addresses, ports, checksums and MSS changes,
 *       or where texts are edited than sequence numbers and options
 *     - it leaves with a wrong checksum where it came with a right one
 *     - a lock stays taken, a session is not found by its keys, or a list does not hold what it should
 *     - somebody gets a port that is reserved, or lent to another, or his already who has the same destination
 *     - a port is lost, or the edits of a session
 *     - what an ALG has read is read again
 *     - a record of a packet that is diagnosed, as all are where ports are shared, is not whole
 *
 * Memory of a packet is exactly its size.  A packet that asks for the slow path gets a session of a kind that its key
 * picks, and goes round; so does one that is to be read.  The clock is ours (--wrap=table_now).  tests/fuzz_seeds.py
 * writes what to begin with.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>

#include "internal.h"

#define SLOTS 88                      /* so few that a crowd fills them, and DISCARD sessions make room */
#define CONTROL 3                     /* bytes of an input before its packet */
#define INSIDE 1                      /* interface and zone */
#define OUTSIDE 2
#define PUBLIC_PORT 2000              /* plus the kind: what DIPP is made to choose */
#define SPARE_PORTS 5                 /* besides that one, for who comes later: kinds compete for them */
#define RESERVED_PORT 2007            /* of UDP: a socket of ours has it */
#define CROWD 48                      /* who come later together */
#define MSS 1200
#define LONGEST_TIMER (360 * TENTHS)
#define PROTOCOLS 4
#define PLANES 2                      /* most of them */
#define ALL_PLANES PLANES
#define WORLDS 4                      /* those with an odd number share ports, the last two are read by ALGs */
#define EDITS_LINE 16                 /* places of edits from those of one session to those of the next */
#define CALLBACK_PORT 6000            /* of the public address: somebody is expected there */

enum kind { ROUTED, STATIC, DIPP, SERVER, BOTH, HOST, BOUND, DENIED, KINDS };

_Static_assert((int)DENIED == (int)TCP_STATES, "all other kinds have a state of TCP each");

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

/* By session: the port that its source is lent, as a binding holds it; 0: none. */
struct loans {
	uint16_t port[SLOTS + 1];
};

/* A table and what an input may change of it, as it was before: the head up to the zones; slots, buckets and overflow;
 * the ports of each plane; sharers; loans; edits by session. */
struct world {
	struct table *table;
	bool reading;
	struct loans loans;
	struct adjust edits[SLOTS + 1];
	uint8_t *head;
	uint8_t *sessions;
	uint8_t *ports[PLANES];
	uint8_t *sharers;
};

static struct world worlds[WORLDS];
static struct table *table;               /* the one that this input meets, and its loans */
static struct loans loans;
static uint32_t now = 1000;
static bool ports_moved;                  /* this input has begun or ended a session */
static bool reading;                      /* ALGs read in this table */

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

/* One family of each kind, so that there are texts that are edited and read, read alone, and edited alone. */
static bool is_read(const struct flow_key *key, enum kind kind)
{
	return reading && (key->proto == IPPROTO_TCP || key->proto == IPPROTO_UDP) && (kind + (key->family == 6)) & 1;
}

static void decide(struct decision *d, const struct flow_key *key, enum kind kind)
{
	const struct net *net = net_of(key);

	memset(d, 0, sizeof(*d));
	d->egress_zone = kind == HOST ? ZONE_HOST : OUTSIDE;
	d->ingress = INSIDE;
	d->egress = OUTSIDE;
	d->flags = (kind == HOST ? FLAG_HOST : 0) | (is_read(key, kind) ? FLAG_INSPECTED : 0);
	d->discard = kind == DENIED;
	d->first_len = 40;
	if (kind == STATIC || kind == DIPP || kind == BOTH || kind == BOUND) {
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

/* As bindings do, one for each session: the port is lent first, and goes back if no session comes of it. */
static int64_t install_bound(const struct flow_key *key, struct decision *d)
{
	uint32_t pool = (uint32_t)natpool_find(table, d->source);
	int32_t port = natpool_lend(table, pool, key->proto, d->port_min, d->port_max, ntohs(key->sport));
	int64_t id;

	if (port < 0)
		return INSTALL_NO_PORT;
	assert(port >= d->port_min && port <= d->port_max);
	d->source_nat = SOURCE_BOUND;
	d->port_min = (uint16_t)port;
	id = session_install(table, SHARD_SLOW, key, d);
	if (id > 0)
		loans.port[id] = (uint16_t)port;
	else
		natpool_take_back(table, pool, key->proto, (uint16_t)port);
	return id;
}

/* predicted: the PREDICT session that it was expected as, or 0. */
static int64_t install(const struct flow_key *key, enum kind kind, uint16_t spare, uint32_t predicted)
{
	bool has_port = key->proto == IPPROTO_TCP || key->proto == IPPROTO_UDP || key->sport;
	struct decision d;

	decide(&d, key, kind);
	d.port_max += spare;
	d.predicted = predicted;
	d.predicted_generation = predicted ? session_at(table, predicted)->generation : 0;
	return kind == BOUND && has_port ? install_bound(key, &d) : session_install(table, SHARD_SLOW, key, &d);
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

/* Two edits in each direction, before what comes next; all of them have been acknowledged. */
static void edit_text(uint32_t id)
{
	for (uint32_t dir = 0; dir < 2; dir++) {
		session_adjust(table, id, 0, dir, 980, 985, 7);
		session_adjust(table, id, 0, dir, 990, 1000, -3);
	}
}

/* Somebody will call back, from a port that is not known. */
static void expect(int family, uint8_t proto)
{
	struct flow_key keys[2] = {client_key(family, ROUTED, proto), client_key(family, ROUTED, proto)};
	struct decision d = {.egress_zone = INSIDE, .ingress = OUTSIDE, .egress = INSIDE, .flags = FLAG_PREDICTED};

	memcpy(keys[0].src, nets[family].asked, 16);
	memcpy(keys[0].dst, nets[family].public, 16);
	keys[0].sport = keys[1].dport = 0;
	keys[0].dport = htons(CALLBACK_PORT);
	keys[0].zone = OUTSIDE;
	assert(session_predict(table, SHARD_SLOW, keys, &d, 60) > 0);
}

static void install_all(void)
{
	for (int family = 0; family < 2; family++)
		for (int kind = 0; kind < KINDS; kind++)
			for (int i = 0; i < PROTOCOLS; i++) {
				struct flow_key key = client_key(family, kind, protocols[i]);
				int64_t id = install(&key, kind, 0, 0);

				if (id == INSTALL_CLASH || id == INSTALL_NO_PORT)   /* by addresses alone, one host at a time */
					continue;
				assert(id > 0);
				if (key.proto != IPPROTO_TCP || kind == DENIED)
					continue;
				set_tcp_state(session_at(table, (uint32_t)id), kind);
				if (reading)
					edit_text((uint32_t)id);
			}
	for (int family = 0; family < 2 && reading; family++)
		for (int i = 0; i < 2; i++)
			expect(family, protocols[i]);
}

static struct natpool *ports_of(uint32_t plane)
{
	return (struct natpool *)((char *)table + table->pools) + plane * MAX_POOLS;
}

/* Ids are so few that none of them shares a line of places. */
static struct adjust *edits_of(uint32_t id)
{
	return (struct adjust *)((char *)table + table->adjusts) + id * EDITS_LINE;
}

static uint8_t *copy(const void *data, size_t len)
{
	uint8_t *p = malloc(len ? len : 1);

	if (!p)
		abort();
	memcpy(p, data, len);
	return p;
}

static void make_table(uint32_t planes)
{
	struct timers timers = {5, 10, 360, 120, 15, 30, 30, 6, 30, 90, 60, 60};
	struct settings settings = {.reject_non_syn = 1, .aging_threshold = 80, .aging_factor = 2,
				    .reset_non_syn = {[OUTSIDE] = 1}};
	struct origin own = {.zone = ZONE_HOST};

	table = table_create(SLOTS, planes);
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
	natpool_set_reserved(table, (uint64_t[PORT_WORDS]){0},
			     (uint64_t[PORT_WORDS]){[RESERVED_PORT / 64] = 1ull << RESERVED_PORT % 64});
	table_set_clamps(table, (uint32_t[]){OUTSIDE}, (uint16_t[]){MSS}, 1);
	for (int family = 0; family < 2; family++)
		natpool_open(table, nets[family].public);
}

static void save(struct world *w)
{
	w->table = table;
	w->reading = reading;
	w->loans = loans;
	w->head = copy(table, offsetof(struct table, zones));
	w->sessions = copy((char *)table + table->slots, table->pools - table->slots);
	w->sharers = copy((char *)table + table->sharers, table->adjusts - table->sharers);
	for (uint32_t id = 1; id <= SLOTS; id++)
		w->edits[id] = *edits_of(id);
	for (uint32_t plane = 0; plane < table->planes; plane++)
		w->ports[plane] = copy(ports_of(plane), table->pool_count * sizeof(struct natpool));
}

static void enter(const struct world *w)
{
	table = w->table;
	reading = w->reading;
	loans = w->loans;
	ports_moved = false;
}

static void restore(const struct world *w)
{
	memcpy(table, w->head, offsetof(struct table, zones));
	memcpy((char *)table + table->slots, w->sessions, table->pools - table->slots);
	for (uint32_t id = 1; id <= SLOTS && reading; id++)
		if (table->adjust_owner[id * EDITS_LINE])
			*edits_of(id) = w->edits[id];
	if (!ports_moved)
		return;
	memcpy((char *)table + table->sharers, w->sharers, table->adjusts - table->sharers);
	for (uint32_t plane = 0; plane < table->planes; plane++)
		memcpy(ports_of(plane), w->ports[plane], table->pool_count * sizeof(struct natpool));
}

/* Every packet is followed, and a copy of it is kept at every stage. */
static void diagnose_all(void)
{
	struct diag_filter filters[DIAG_FILTERS] = {{.used = 1}};
	struct diag_limit limit = {.packets = UINT64_MAX, .bytes = UINT64_MAX, .snaplen = 100};

	memset(filters[0].source[1], 0xff, 16);
	memset(filters[0].destination[1], 0xff, 16);
	assert(diag_begin(table, filters));
	for (uint32_t stage = 0; stage < DIAG_STAGES; stage++)
		diag_set_stage(table, stage, &limit);
}

/* What was written down about this input's packets. */
static void check_records(void)
{
	static uint8_t records[1 << 16];
	uint32_t n, at;

	while ((n = diag_read(table, records, sizeof(records))))
		for (at = 0; at < n; at += ((struct diag_record *)(records + at))->size) {
			const struct diag_record *r = (const struct diag_record *)(records + at);

			assert(r->size >= sizeof(*r) + r->copied && r->size <= n - at && r->stage < DIAG_STAGES);
			assert(r->copied <= 100 && r->reason <= COUNTERS && (r->stage != DIAG_DROP || r->reason != COUNTERS));
		}
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	for (uint32_t i = 0; i < WORLDS; i++) {
		loans = (struct loans){0};
		reading = i >= WORLDS / 2;
		make_table(1 + i % PLANES);
		install_all();
		if (i % PLANES)
			diagnose_all();
		save(&worlds[i]);
	}
	return 0;
}

/* ---- what must hold ---- */

/* How many of its flows are in the hash. */
static int flows_of(const struct session *s)
{
	if (s->type == SESSION_PREDICT)
		return 0;
	return s->flags & FLAG_ONE_WAY ? 1 : 2;
}

static void check_session(struct session *s, uint32_t id)
{
	assert(s->state[1] == (s->type == SESSION_PREDICT ? SESSION_OPENING : s->state[0]));
	for (int dir = 0; dir < flows_of(s); dir++) {
		int found_dir;
		struct session *found = table_lookup(table, &s->key[dir], &found_dir);

		assert(found == s && found_dir == dir && session_id(table, found) == id);
		session_unlock(found);
	}
	assert(s->wheel_due && s->last_seen <= now && s->end_reason <= END_NONE && s->tcp_state < TCP_STATES);
}

/* Marks a port in the books of one plane, or of all (ALL_PLANES): nobody else has it there. */
static void mark_port(struct natpool books[PLANES][2], uint32_t plane, uint32_t pool, uint8_t proto, uint16_t port)
{
	int space = proto == IPPROTO_TCP ? 0 : proto == IPPROTO_UDP ? 1 : 2;
	uint64_t bit = 1ull << (port % 64);

	assert(proto != IPPROTO_UDP || port != RESERVED_PORT);
	for (uint32_t i = 0; i < table->planes; i++) {
		uint64_t *word = &books[i][pool].taken[space][port / 64];

		if (plane != ALL_PLANES && i != plane)
			continue;
		assert(!(*word & bit));
		*word |= bit;
	}
}

static bool holds_port(const struct session *s)
{
	return s->pool && s->state[0] != SESSION_INIT;
}

/* No session but this one has its port towards the same destination. */
static void check_unshared(const struct session *s, uint32_t id)
{
	for (uint32_t other = id + 1; other <= SLOTS; other++) {
		const struct session *o = session_at(table, other);

		assert(!holds_port(o) || o->pool != s->pool || o->key[1].proto != s->key[1].proto ||
		       o->key[1].dport != s->key[1].dport || memcmp(o->key[1].src, s->key[1].src, 16));
	}
}

/* Chains of sharers hold each session that has a port once. */
static void check_sharers(uint32_t holders)
{
	const struct sharer *sharers = (const struct sharer *)((char *)table + table->sharers);

	if (table->planes == 1)
		return;
	for (uint32_t chain = 0; chain <= SLOTS; chain++)
		for (uint32_t id = sharers[chain].head; id; id = sharers[id].next, holders--)
			assert(holders && holds_port(session_at(table, id)));
	assert(!holders);
	for (int i = 0; i < SHARE_LOCKS; i++)
		assert(!table->share_lock[i]);
}

/* What is marked is what sessions hold and bindings are lent, each by itself. */
static void check_ports(void)
{
	static struct natpool books[PLANES][2];
	uint32_t holders = 0;

	memset(books, 0, sizeof(books));
	for (uint32_t id = 1; id <= SLOTS; id++) {
		struct session *s = session_at(table, id);
		uint16_t port = ntohs(s->key[1].dport);

		if (loans.port[id]) {
			assert(loans.port[id] == port && !s->pool && s->state[0] != SESSION_INIT);
			mark_port(books, ALL_PLANES, (uint32_t)natpool_find(table, s->key[1].dst), s->key[1].proto, port);
		}
		if (!holds_port(s))
			continue;
		holders++;
		mark_port(books, s->plane, s->pool - 1u, s->key[1].proto, port);
		check_unshared(s, id);
	}
	assert(table->pool_count == 2);
	for (uint32_t plane = 0; plane < table->planes; plane++)
		assert(!memcmp(books[plane], ports_of(plane), sizeof(books[plane])));
	check_sharers(holders);
}

/* Every session whose text was edited has its place, and nobody else has one. */
static void check_edits(void)
{
	uint32_t edited = 0, owners = 0;

	for (uint32_t id = 1; id <= SLOTS; id++) {
		const struct session *s = session_at(table, id);
		bool has = s->state[0] != SESSION_INIT && s->flags & FLAG_ADJUSTED;

		edited += has;
		assert(table->adjust_owner[id * EDITS_LINE] == (has ? id : 0));
		for (int dir = 0; dir < 2 && has; dir++)
			assert(edits_of(id)->flow[dir].n <= MAX_EDITS);
	}
	for (uint32_t i = 0; i < MAX_ADJUSTED; i++)
		owners += table->adjust_owner[i] != 0;
	assert(owners == edited && !table->adjust_lock);
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
	check_edits();
	if (ports_moved)
		check_ports();
}

struct books {
	uint64_t received, bytes, punted, inspected, dropped;
};

static struct books read_books(void)
{
	const uint64_t *c = table->counter[0];
	struct books b = {c[PKT_RECV], c[BYTES_RECV], c[PKT_PUNT], c[PKT_INSPECT], 0};

	for (int i = FLOW_PARSE_IP_HDR; i < DROPS_END; i++)
		b.dropped += c[i];
	return b;
}

static void check_books(enum verdict v, uint32_t len, const struct books *before)
{
	struct books after = read_books();

	assert(v == VERDICT_ACCEPT || v == VERDICT_REWRITTEN || v == VERDICT_PUNT || v == VERDICT_INSPECT ||
	       v == VERDICT_DROP);
	assert(after.received == before->received + 1 && after.bytes == before->bytes + len);
	assert(after.dropped - before->dropped == (v == VERDICT_DROP));
	assert(after.punted - before->punted == (v == VERDICT_PUNT));
	assert(after.inspected - before->inspected == (v == VERDICT_INSPECT));
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

/* All sessions cross to the outside: a SYN offers no more than fits there, and no less than it did if that does, but for
 * the room that a text may need. */
static void check_mss(const struct packet *pkt, const uint8_t *before)
{
	uint16_t offered = get16(before + pkt->mss_at), left = get16(pkt->data + pkt->mss_at);
	uint16_t limit = pkt->key.family == 6 ? MSS - 20 : MSS;

	if (offered < limit)
		limit = offered;
	assert(left <= limit && left + (reading ? INSPECT_ROOM : 0) >= limit);
}

/* Numbers and options of an edited connection. */
static void mark_numbers(uint8_t *writable, const struct packet *pkt)
{
	memset(writable + pkt->l4 + 4, 1, 8);
	memset(writable + pkt->l4 + 20, 1, (pkt->data[pkt->l4 + 12] >> 4) * 4u - 20);
}

static void check_untouched(const struct packet *pkt, const uint8_t *before)
{
	uint8_t *writable = calloc(1, pkt->len);

	if (!writable)
		abort();
	mark_writable(writable, before, pkt->len, 0, pkt->l4, pkt->key.proto);
	if (pkt->kind == PACKET_ICMP_ERROR)
		mark_writable(writable, before, pkt->len, pkt->quoted_l3, pkt->quoted_l4, pkt->quoted.proto);
	if (pkt->mss_at) {
		check_mss(pkt, before);
		memset(writable + pkt->mss_at, 1, 2);
	}
	if (reading && pkt->kind == PACKET_FLOW && pkt->key.proto == IPPROTO_TCP)
		mark_numbers(writable, pkt);
	if (reading && pkt->kind == PACKET_ICMP_ERROR && pkt->quoted.proto == IPPROTO_TCP)
		memset(writable + pkt->quoted_l4 + 4, 1, 4);      /* the sequence number that it quotes */
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

/* What the slow path answers by a RST: a segment from where that is wanted, never a RST itself. */
static void check_reset(const struct packet *pkt)
{
	assert(pkt->zone == OUTSIDE && pkt->key.proto == IPPROTO_TCP && !(pkt->tcp_flags & TCP_FLAG_RST));
}

/* As the slow path does with what is to be read; an ALG may send more than it has read. */
static void read_text(struct packet *pkt, const uint8_t *before)
{
	enum verdict v;

	pkt->mark = MARK_SEEN | MARK_TRACKED;
	v = slowpath_look(table, pkt);
	assert(v == VERDICT_ACCEPT && pkt->session);
	if (pkt->key.proto == IPPROTO_TCP && pkt->seq_len > 1)
		session_adjust(table, pkt->session, pkt->generation, pkt->dir, pkt->seq, pkt->seq + pkt->seq_len, 5);
	v = take(pkt, before);
	assert(v == VERDICT_ACCEPT || v == VERDICT_REWRITTEN || v == VERDICT_DROP);
}

/* Something that is expected; 0: nothing is. */
static uint32_t find_expected(void)
{
	for (uint32_t id = 1; id <= SLOTS; id++)
		if (session_matches(session_at(table, id)) && session_at(table, id)->type == SESSION_PREDICT)
			return id;
	return 0;
}

/* As the slow path does with a miss; the packet that comes round finds its session and is not sent here again. */
static void go_round(struct packet *pkt, const uint8_t *before)
{
	enum verdict v = slowpath_look(table, pkt);
	enum kind kind = pkt->key.src[15] % KINDS;

	if (v == VERDICT_RESET) {
		check_reset(pkt);
		return;
	}
	if (pkt->mark & MARK_TRACKED) {
		assert(v == VERDICT_DROP);
		return;
	}
	assert(v == VERDICT_PUNT);
	ports_moved = true;
	if (install(&pkt->key, kind, SPARE_PORTS, kind == DENIED ? 0 : find_expected()) < 0)
		return;
	pkt->mark = MARK_SEEN;
	v = take(pkt, before);
	assert(v != VERDICT_PUNT && (kind != DENIED || v == VERDICT_DROP));
	if (v == VERDICT_INSPECT)
		read_text(pkt, before);
}

/* A packet of which the slow queue holds only the beginning. */
static void look_at_beginning(struct packet *pkt)
{
	enum verdict v;

	pkt->cut = 1;
	v = slowpath_look(table, pkt);
	assert(v == VERDICT_PUNT || v == VERDICT_ACCEPT || v == VERDICT_DROP || v == VERDICT_RESET);
	if (v == VERDICT_RESET)
		check_reset(pkt);
	check_table();
}

/* Other clients, towards two servers and two ports of each, who want more ports than there are; first those who are seen
 * with such ports of their own choice, which are in no pool. */
static void let_crowd_in(int family)
{
	static const enum kind kinds[] = {DIPP, BOTH, BOUND};

	ports_moved = true;
	for (int i = 0; i < CROWD; i++) {
		enum kind kind = i < CROWD / 4 ? STATIC : kinds[i % 3];
		struct flow_key key = client_key(family, kind, protocols[i / 3 % 3]);

		key.sport = htons((uint16_t)(kind == STATIC ? PUBLIC_PORT + DIPP + i : 5000 + i));
		key.dst[15] += (uint8_t)(i & 1);
		key.dport += htons((uint16_t)(key.dport ? i & 2 : 0));
		install(&key, kind, SPARE_PORTS, 0);
	}
}

/* As the ager does: what sessions were lent goes back just before their slots do. */
static void age(void)
{
	struct session_copy ended[SLOTS];
	uint32_t ids[SLOTS], n = table_expire(table, now, ended, SLOTS);

	ports_moved = true;
	for (uint32_t i = 0; i < n; i++) {
		const struct flow_key *back = &ended[i].session.key[1];
		uint16_t *lent = &loans.port[ids[i] = ended[i].id];

		if (*lent)
			natpool_take_back(table, (uint32_t)natpool_find(table, back->dst), back->proto, *lent);
		*lent = 0;
	}
	session_free(table, ids, n);
}

/* Ports become free below others that are not, and the crowd comes again. */
static void end_half(int family)
{
	for (uint32_t id = 1; id <= SLOTS; id += 2)
		session_close(table, id, 0, END_UNKNOWN);
	age();
	check_table();
	let_crowd_in(family);
}

static void end_all(void)
{
	now += LONGEST_TIMER + 1;
	age();
	assert(!table->allocated);
	check_table();
}

static void meet(struct packet *pkt, const uint8_t *before)
{
	enum verdict v;

	memcpy(pkt->data, before, pkt->len);
	v = take(pkt, before);
	if (v == VERDICT_PUNT)
		go_round(pkt, before);
	else if (v == VERDICT_INSPECT)
		read_text(pkt, before);
	check_table();
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	uint32_t len = (uint32_t)size - CONTROL;
	struct packet pkt = {.len = len};
	const struct world *world;
	uint8_t *before;
	int family;

	if (size < CONTROL)
		return 0;
	world = &worlds[(input[0] >> 6 & 1) + (input[0] & 0x10 ? PLANES : 0)];
	enter(world);
	pkt.hook = input[0] & 0x80 ? HOOK_OUTPUT : input[0] & 0x20 ? HOOK_FORWARD : HOOK_PREROUTING;
	pkt.ifindex = input[0] & 3;
	pkt.checksum = input[1] & 3;
	pkt.mark = (input[1] & 0x80 ? MARK_SEEN : 0) | (input[1] & 0x20 ? MARK_TRACKED : 0);
	now = 1000 + input[2] / 8;
	before = copy(input + CONTROL, len);
	if (input[1] & 0x40)
		repair(before, len);
	pkt.data = copy(before, len);
	family = len && before[0] >> 4 == 6;
	if (input[2] & 2)
		let_crowd_in(family);
	if (input[1] & 4)
		end_half(family);
	if (input[2] & 1)
		look_at_beginning(&pkt);
	else
		meet(&pkt, before);
	if (input[2] & 4) {
		end_all();
		pkt.mark = pkt.cut = 0;
		meet(&pkt, before);
	}
	check_records();
	restore(world);
	free(pkt.data);
	free(before);
	return 0;
}
