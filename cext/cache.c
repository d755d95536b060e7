/* cache.c - the dispatch cache: what Python has decided for one packet of a class is repeated here for the next.
 *
 *     class = interface, zone, family, protocol, echo or not x interval of source, of destination, of destination port
 *
 * The starts of the intervals are Python's (dispatch.py): every address and port at which any rule, translation or route
 * begins or ends.  So two packets of a class cannot be told apart by anything that a decision looks at, and the decision
 * for one, a template, is that for the other.  What is not a matter of the class is never made a template.
 *
 * A worker whose packet no session claims finds the class by three bisections, the template in a hash, and installs the
 * session itself, translated port included.  Where it cannot (no template, no room, no port, a clash, a full ring) the
 * packet goes the long way through Python, which refuses as ever.  While anything is predicted all of them do.
 *
 * Locks: a worker holds its own guard from the look-up until the session is installed and its record is in the ring.  Who
 * empties the cache takes every guard, so that afterwards no session comes into being by what was decided before; who
 * wants every record of the sessions that have ended takes and releases each guard.  `lock` keeps Python's threads apart.
 * Templates are added under `lock` alone, published by their slot.  The epoch counts how often the cache was opened or
 * closed: a decision made before that never enters after it.
 *
 * Rings are per worker, one writer and one reader.  Hits are counted per security rule and per NAT
 * rule, and outlive the templates.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <netinet/in.h>

#include "internal.h"

#define MAX_TEMPLATES 32768           /* then it begins anew, so that a scan cannot keep others out */
#define TEMPLATE_SLOTS (2 * MAX_TEMPLATES)
#define RING 65536                    /* records of a worker that wait for Python */

struct line {
	uint32_t n;
	struct number { uint64_t high, low; } start[MAX_STARTS];
};

struct port_line {
	uint32_t n;
	uint16_t start[PORT_STARTS];
};

/* Compared and hashed as bytes. */
struct class {
	uint32_t ifindex;
	uint32_t source;              /* interval */
	uint32_t destination;         /* interval, and in the top bits family and echo */
	uint16_t port;                /* interval */
	uint8_t  proto;
	uint8_t  zone;
};

struct template {
	struct class class;
	struct decision decision;
	uint32_t spread;
	bool logged;
};

struct ring {
	uint32_t head __attribute__((aligned(64)));      /* written by the worker */
	uint32_t tail __attribute__((aligned(64)));      /* written by the reader */
	struct session_copy record[RING];
};

struct cache {
	uint32_t lock;
	uint32_t epoch;
	uint32_t open;                /* 1: it answers and learns */
	uint32_t templates;
	uint32_t rules[2];            /* security, NAT: one more than the highest that may have been hit */
	struct guard {
		uint32_t lock __attribute__((aligned(64)));
	} guard[SHARD_SLOW];
	struct line address[2];       /* source, destination */
	struct port_line port[2];     /* TCP, UDP */
	uint32_t slot[TEMPLATE_SLOTS];     /* open addressing by class; number plus one, 0: empty */
	struct template template[MAX_TEMPLATES];
	uint64_t hits[2][MAX_HIT_RULES];   /* security, NAT */
	struct ring ring[SHARD_SLOW];
};

_Static_assert(sizeof(struct class) == 16, "the class is hashed as bytes");

uint64_t cache_bytes(void)
{
	return sizeof(struct cache);
}

static struct cache *cache_of(const struct table *t)
{
	return (struct cache *)((char *)t + t->cache);
}

/* ---- classes ---- */

static struct number number_of(const uint8_t *address)
{
	uint64_t word[2];

	memcpy(word, address, sizeof(word));
	return (struct number){be64toh(word[0]), be64toh(word[1])};
}

static bool begins_by(const struct number *start, const struct number *value)
{
	return start->high < value->high || (start->high == value->high && start->low <= value->low);
}

/* The interval of an address: the last that begins at it or before.  The first begins at 0. */
static uint32_t line_find(const struct line *line, const uint8_t *address)
{
	struct number value = number_of(address);
	uint32_t low = 0;

	for (uint32_t n = line->n; n > 1; n -= n / 2)
		low += begins_by(&line->start[low + n / 2], &value) ? n / 2 : 0;
	return low;
}

static uint16_t port_find(const struct port_line *line, uint16_t port)
{
	uint32_t low = 0;

	for (uint32_t n = line->n; n > 1; n -= n / 2)
		low += line->start[low + n / 2] <= port ? n / 2 : 0;
	return (uint16_t)low;
}

static struct class class_of(const struct cache *c, const struct packet *pkt)
{
	const struct flow_key *key = &pkt->key;
	uint32_t kind = (key->family == 6) << 1 | (pkt->echo != 0);
	struct class class = {
		.ifindex = pkt->ifindex,
		.source = line_find(&c->address[0], key->src),
		.destination = line_find(&c->address[1], key->dst) | kind << 30,
		.proto = key->proto,
		.zone = key->zone,
	};

	if (key->proto == IPPROTO_TCP || key->proto == IPPROTO_UDP)
		class.port = port_find(&c->port[key->proto == IPPROTO_UDP], ntohs(key->dport));
	return class;
}

/* The slot of a class: where it stands, or the empty one where it would. */
static uint32_t slot_of(const struct table *t, const struct cache *c, const struct class *class, struct template **found)
{
	uint32_t slot = (uint32_t)table_hash16(t, (const uint8_t *)class) % TEMPLATE_SLOTS;

	for (;; slot = (slot + 1) % TEMPLATE_SLOTS) {
		uint32_t number = __atomic_load_n(&c->slot[slot], __ATOMIC_ACQUIRE);

		*found = number ? (struct template *)&c->template[number - 1] : NULL;
		if (!*found || !memcmp(&(*found)->class, class, sizeof(*class)))
			return slot;
	}
}

/* ---- what Python says ---- */

static void guards_lock(struct cache *c)
{
	for (int i = 0; i < SHARD_SLOW; i++)
		spin_lock(&c->guard[i].lock);
}

static void guards_unlock(struct cache *c)
{
	for (int i = 0; i < SHARD_SLOW; i++)
		spin_unlock(&c->guard[i].lock);
}

/* Under every lock. */
static void cache_empty(struct cache *c)
{
	c->templates = 0;
	memset(c->slot, 0, sizeof(c->slot));
}

static void line_load(struct line *line, const uint8_t *starts, uint32_t n)
{
	assert(n && n <= MAX_STARTS);
	for (uint32_t i = 0; i < n; i++)
		line->start[i] = number_of(starts + i * 16ul);
	line->n = n;
}

static void port_load(struct port_line *line, const uint16_t *starts, uint32_t n)
{
	assert(n && n <= PORT_STARTS);
	memcpy(line->start, starts, n * sizeof(*starts));
	line->n = n;
}

void cache_close(struct table *t)
{
	struct cache *c = cache_of(t);

	spin_lock(&c->lock);
	guards_lock(c);
	cache_empty(c);
	c->epoch++;
	__atomic_store_n(&c->open, 0, __ATOMIC_RELAXED);
	guards_unlock(c);
	spin_unlock(&c->lock);
}

uint32_t cache_open(struct table *t, const struct class_starts *starts)
{
	struct cache *c = cache_of(t);
	uint32_t epoch;

	spin_lock(&c->lock);
	guards_lock(c);
	cache_empty(c);
	epoch = ++c->epoch;
	for (int i = 0; i < 2; i++) {
		line_load(&c->address[i], starts->address[i], starts->addresses[i]);
		port_load(&c->port[i], starts->port[i], starts->ports[i]);
	}
	__atomic_store_n(&c->open, 1, __ATOMIC_RELAXED);
	guards_unlock(c);
	spin_unlock(&c->lock);
	return epoch;
}

static void note_rule(uint32_t *rules, uint32_t rule)
{
	if (rule >= *rules)
		__atomic_store_n(rules, rule + 1, __ATOMIC_RELAXED);
}

static void cache_enter(struct table *t, struct cache *c, const struct template *template)
{
	struct template *found;
	uint32_t slot = slot_of(t, c, &template->class, &found);

	if (found)
		return;
	if (c->templates == MAX_TEMPLATES) {
		guards_lock(c);
		cache_empty(c);
		guards_unlock(c);
		slot = slot_of(t, c, &template->class, &found);
	}
	c->template[c->templates++] = *template;
	note_rule(&c->rules[0], template->decision.rule);
	note_rule(&c->rules[1], template->decision.nat_rule);
	__atomic_store_n(&c->slot[slot], c->templates, __ATOMIC_RELEASE);
}

bool cache_learn(struct table *t, uint32_t epoch, const struct packet *pkt, const struct decision *d, uint32_t spread, bool logged)
{
	struct cache *c = cache_of(t);
	struct template template = {.decision = *d, .spread = spread, .logged = logged};
	bool current;

	if (d->rule >= MAX_HIT_RULES || d->nat_rule >= MAX_HIT_RULES)
		return false;
	template.decision.flags |= FLAG_CACHED;
	spin_lock(&c->lock);
	current = c->open && c->epoch == epoch;
	if (current) {
		template.class = class_of(c, pkt);
		cache_enter(t, c, &template);
		count_in(t->counter[SHARD_SLOW], DISPATCH_LEARNED, 1);
	}
	spin_unlock(&c->lock);
	return current;
}

/* Of NAT rules sessions hold the number plus one. */
uint32_t cache_take_hits(struct table *t, bool nat, uint32_t *rules, uint64_t *hits, uint32_t n)
{
	struct cache *c = cache_of(t);
	uint32_t found = 0, end = __atomic_load_n(&c->rules[nat], __ATOMIC_RELAXED);

	for (uint32_t rule = nat; rule < end && found < n; rule++) {
		if (!__atomic_load_n(&c->hits[nat][rule], __ATOMIC_RELAXED))
			continue;
		rules[found] = rule - nat;
		hits[found++] = __atomic_exchange_n(&c->hits[nat][rule], 0, __ATOMIC_RELAXED);
	}
	return found;
}

/* A worker inside has a session that may have ended already, but not yet its record. */
static uint32_t ring_take(struct cache *c, int shard, struct session_copy *out, uint32_t n)
{
	struct ring *ring = &c->ring[shard];
	uint32_t tail = ring->tail, waiting;

	spin_lock(&c->guard[shard].lock);
	waiting = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) - tail;
	spin_unlock(&c->guard[shard].lock);
	n = n < waiting ? n : waiting;
	for (uint32_t i = 0; i < n; i++)
		out[i] = ring->record[(tail + i) % RING];
	__atomic_store_n(&ring->tail, tail + n, __ATOMIC_RELEASE);
	return n;
}

uint32_t cache_take_begun(struct table *t, struct session_copy *out, uint32_t n)
{
	uint32_t found = 0;

	for (int shard = 0; shard < SHARD_SLOW && found < n; shard++)
		found += ring_take(cache_of(t), shard, out + found, n - found);
	return found;
}

/* ---- what a worker does ---- */

static bool ring_is_full(const struct ring *ring)
{
	return ring->head - __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE) == RING;
}

/* The address of the pool that nat.py would choose: by a multiplicative hash of the source, so that one source always
 * gets the same. */
static void spread_source(struct decision *d, const uint8_t *src, uint32_t size)
{
	struct number first = number_of(d->source), source = number_of(src);
	uint64_t position = (uint64_t)((unsigned __int128)(source.low * ADDRESS_SPREAD) * size >> 64);
	uint64_t low = first.low + position;
	uint64_t word[2] = {htobe64(first.high + (low < first.low)), htobe64(low)};

	memcpy(d->source, word, sizeof(word));
}

static int64_t template_install(const struct template *template, const struct packet *pkt, const struct burst *b)
{
	struct cache *c = cache_of(b->table);
	struct ring *ring = &c->ring[b->shard];
	struct decision d = template->decision;
	int64_t id;

	if (template->logged && ring_is_full(ring))
		return INSTALL_FULL;
	d.first_len = pkt->ip_len;
	if (template->spread)
		spread_source(&d, pkt->key.src, template->spread);
	if (d.source_nat == SOURCE_PORT && natpool_find(b->table, d.source) < 0 && natpool_open(b->table, d.source) < 0)
		return INSTALL_NO_PORT;
	id = session_begin(b, &pkt->key, &d, template->logged ? &ring->record[ring->head % RING] : NULL);
	if (id < 0)
		return id;
	count_in(b->counter, SESSION_CACHED, 1);
	__atomic_fetch_add(&c->hits[0][d.rule], 1, __ATOMIC_RELAXED);
	if (d.nat_rule)
		__atomic_fetch_add(&c->hits[1][d.nat_rule], 1, __ATOMIC_RELAXED);
	if (template->logged)
		__atomic_store_n(&ring->head, ring->head + 1, __ATOMIC_RELEASE);
	return id;
}

/* Python is asked, and this is why. */
static int64_t missed(const struct burst *b, enum counter why)
{
	count_in(b->counter, why, 1);
	return 0;
}

int64_t cache_begin(const struct packet *pkt, const struct burst *b)
{
	struct table *t = b->table;
	struct cache *c = cache_of(t);
	struct template *template = NULL;
	struct class class;
	int64_t id = 0;

	if (b->shard >= SHARD_SLOW || pkt->hook == HOOK_OUTPUT)
		return 0;
	if (!__atomic_load_n(&c->open, __ATOMIC_RELAXED))
		return missed(b, DISPATCH_CLOSED);
	if (__atomic_load_n(&t->count[COUNT_PREDICT], __ATOMIC_RELAXED))
		return missed(b, DISPATCH_PREDICT);
	spin_lock(&c->guard[b->shard].lock);
	if (c->open) {
		class = class_of(c, pkt);
		slot_of(t, c, &class, &template);
	}
	if (template)
		id = template_install(template, pkt, b);
	spin_unlock(&c->guard[b->shard].lock);
	if (id > 0 || id == INSTALL_EXISTS)
		return id;
	return missed(b, template ? DISPATCH_REFUSED : DISPATCH_UNKNOWN);
}
