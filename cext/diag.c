/* diag.c - packet diagnosis: packets that a filter means are followed, copied and counted apart.
 *
 *     worker ─ is anything diagnosed? ─ no ─► the fast path, as if this file did not exist
 *                     │ yes
 *                     └─► meant by a filter, or its session is watched ─► the fast path, with counters of its own
 *                             what those say is the reason ─► ring ─► Python: capture files, flow log
 *
 * While it is off a burst costs one look at one word, t->watching.  While it is on every packet goes through diag_take(),
 * which hands the fast path a shard of counters that is empty: what stands there afterwards has been counted for this
 * packet alone.  So the reason of a drop is known without the fast path having to tell, and the counters of what is meant
 * are had for nothing.
 *
 * A filter means packets as they come, before translation.  A session of which it means a packet is watched
 * (FLAG_WATCHED): so are its answers, whatever addresses they bear.  Watched sessions are not offloaded.
 *
 * The ring holds whole records, many writers and one reader.  A writer takes its place under the lock, fills it without,
 * and sets `ready`; the reader zeroes what it has taken, so that no byte of a packet is ever read as `ready`.  A record for
 * which there is no room is lost and counted, and traffic never waits for the reader.  The lock is the last that anybody
 * takes, and is held for as long as it takes to add a few numbers.
 *
 * The memory stays until the table goes: a worker in the middle of a burst may be looking at it.
 *
 * Not seen: what the kernel drops because a queue is full, and what the firewall itself sends in answer (MARK_OWN).
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

#define ALIGNED(n) (((n) + 7u) & ~7u)
#define COUNTER_WORDS (COUNTERS * sizeof(uint64_t))

enum ready { READY_NOT, READY_RECORD, READY_PADDING };

struct diag {
	uint32_t lock;            /* guards all but the bytes of the ring, and what is the slow path's */
	uint32_t on;              /* a bit for each stage that takes records */
	uint32_t longest;         /* copy that any of them takes */
	struct diag_filter filter[DIAG_FILTERS];
	struct diag_limit limit[DIAG_STAGES];
	struct diag_status status;    /* but for its counters */
	uint64_t counter[COUNTERS];   /* of what is meant; added to atomically */
	uint64_t head;            /* of the ring; both only grow */
	uint64_t tail;            /* written by the reader */
	uint8_t *ring;
	uint64_t before[COUNTERS];    /* the slow path's, when it began with its packet */
	uint8_t came[MAX_SHARDS][DIAG_SNAPLEN];   /* what the fast path may rewrite, one writer each */
};

_Static_assert(sizeof(struct diag_record) % 8 == 0, "what follows a record in the ring is aligned");
_Static_assert((DIAG_RING & (DIAG_RING - 1)) == 0, "places in the ring are found by a mask");

/* A packet that is followed. */
struct watch {
	struct diag *diag;
	struct packet *pkt;
	struct diag_record record;    /* what is known so far */
	uint64_t counter[COUNTERS];   /* what has been counted for it */
	const uint8_t *came;
	uint32_t came_len;
};

static struct diag *diag_create(void)
{
	struct diag *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	d->ring = mmap(NULL, DIAG_RING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (d->ring != MAP_FAILED)
		return d;
	free(d);
	return NULL;
}

void diag_destroy(struct diag *d)
{
	if (!d)
		return;
	munmap(d->ring, DIAG_RING);
	free(d);
}

/* ---- filters ---- */

static bool filter_means(const struct diag_filter *f, const struct flow_key *key, uint32_t ifindex)
{
	return f->used && address_in_range(key->src, f->source[0], f->source[1]) &&
	       address_in_range(key->dst, f->destination[0], f->destination[1]) && (!f->sport || f->sport == key->sport) &&
	       (!f->dport || f->dport == key->dport) && (!f->proto || f->proto == key->proto) &&
	       (!f->family || f->family == key->family) && (!f->ifindex || f->ifindex == ifindex);
}

/* The first filter that means it, from 1; 0: none does. */
static uint8_t filters_mean(struct diag *d, const struct flow_key *key, uint32_t ifindex)
{
	uint8_t found = 0;

	spin_lock(&d->lock);
	for (uint8_t i = 0; i < DIAG_FILTERS && !found; i++)
		if (filter_means(&d->filter[i], key, ifindex))
			found = i + 1;
	spin_unlock(&d->lock);
	return found;
}

static bool filters_mean_session(struct diag *d, const struct session *s)
{
	return filters_mean(d, &s->key[0], s->ingress) ||
	       (!(s->flags & FLAG_ONE_WAY) && filters_mean(d, &s->key[1], s->egress));
}

/* The slot's lock is held. */
static void session_watch(struct table *t, struct session *s)
{
	s->flags |= FLAG_WATCHED;
	offload_take_off(t, s);
}

/* Every session that lives is watched if `wanted` and a filter means it; how many are.  What is watched already stays so
 * unless it is judged afresh.  The first look, without the lock, spares the rest of an empty table. */
static uint32_t sweep(struct table *t, bool wanted, bool afresh)
{
	uint32_t watched = 0;

	for (uint32_t id = 1; id <= t->max_sessions; id++) {
		uint8_t state = __atomic_load_n(&session_at(t, id)->state[0], __ATOMIC_RELAXED);
		struct session *s = state == SESSION_ACTIVE || state == SESSION_DISCARD ? session_alive(t, id, 0) : NULL;

		if (!s)
			continue;
		if (afresh)
			s->flags &= (uint16_t)~FLAG_WATCHED;
		if (wanted && !(s->flags & FLAG_WATCHED) && filters_mean_session(t->diag, s))
			session_watch(t, s);
		watched += !!(s->flags & FLAG_WATCHED);
		session_unlock(s);
	}
	return watched;
}

bool diag_begin(struct table *t, const struct diag_filter *filters)
{
	if (!t->diag && !(t->diag = diag_create()))
		return false;
	spin_lock(&t->diag->lock);
	memcpy(t->diag->filter, filters, sizeof(t->diag->filter));
	spin_unlock(&t->diag->lock);
	for (uint32_t i = 0; i < COUNTERS && !t->watching; i++)
		__atomic_store_n(&t->diag->counter[i], 0, __ATOMIC_RELAXED);
	__atomic_store_n(&t->watching, 1, __ATOMIC_RELEASE);
	sweep(t, true, true);
	return true;
}

void diag_end(struct table *t)
{
	if (!t->diag)
		return;
	__atomic_store_n(&t->watching, 0, __ATOMIC_RELEASE);
	spin_lock(&t->diag->lock);
	memset(t->diag->filter, 0, sizeof(t->diag->filter));
	spin_unlock(&t->diag->lock);
	sweep(t, false, true);
}

/* A worker may have been in the middle of a burst when the filters came: what it let by is found by a later call. */
uint32_t diag_mark(struct table *t)
{
	return t->diag ? sweep(t, t->watching, !t->watching) : 0;
}

/* ---- the ring ---- */

static struct diag_record *record_at(const struct diag *d, uint64_t place)
{
	return (struct diag_record *)(d->ring + (place & (DIAG_RING - 1)));
}

static bool stage_is_on(const struct diag *d, enum diag_stage stage)
{
	return __atomic_load_n(&d->on, __ATOMIC_RELAXED) >> stage & 1;
}

/* The lock is held. */
static void stage_switch(struct diag *d, enum diag_stage stage, bool on)
{
	uint32_t longest = 0;

	__atomic_store_n(&d->on, on ? d->on | 1u << stage : d->on & ~(1u << stage), __ATOMIC_RELAXED);
	for (int i = 0; i < DIAG_TRACE; i++)
		if (stage_is_on(d, i) && d->limit[i].snaplen > longest)
			longest = d->limit[i].snaplen;
	__atomic_store_n(&d->longest, longest, __ATOMIC_RELAXED);
}

static void stage_stop(struct diag *d, enum diag_stage stage)
{
	stage_switch(d, stage, false);
	d->status.stopped[stage] = 1;
}

/* Room for a record that does not cross the end of the ring; NULL: there is none.  The lock is held. */
static struct diag_record *ring_claim(struct diag *d, uint32_t size)
{
	uint32_t to_end = (uint32_t)(DIAG_RING - (d->head & (DIAG_RING - 1))), padding = size > to_end ? to_end : 0;
	struct diag_record *r = record_at(d, d->head);

	if (d->head + padding + size - __atomic_load_n(&d->tail, __ATOMIC_ACQUIRE) > DIAG_RING)
		return NULL;
	if (padding) {
		r->size = padding;
		__atomic_store_n(&r->ready, READY_PADDING, __ATOMIC_RELEASE);
		r = record_at(d, d->head + padding);
	}
	__atomic_store_n(&d->head, d->head + padding + size, __ATOMIC_RELEASE);
	return r;
}

/* The same, where the stage has not had enough yet. */
static struct diag_record *stage_claim(struct diag *d, enum diag_stage stage, uint32_t size, uint32_t copied)
{
	const struct diag_limit *limit = &d->limit[stage];
	struct diag_record *r;

	if (!stage_is_on(d, stage))
		return NULL;
	if (d->status.bytes[stage] + copied > limit->bytes) {
		stage_stop(d, stage);
		return NULL;
	}
	if (!(r = ring_claim(d, size))) {
		d->status.lost[stage]++;
		return NULL;
	}
	d->status.bytes[stage] += copied;
	if (++d->status.packets[stage] == limit->packets)
		stage_stop(d, stage);
	return r;
}

/* A record with a copy of these bytes behind it. */
static void put(struct diag *d, enum diag_stage stage, struct diag_record *record, const uint8_t *data, uint32_t len)
{
	struct diag_record *r;
	uint32_t snaplen, size;

	if (!stage_is_on(d, stage))
		return;
	spin_lock(&d->lock);
	snaplen = d->limit[stage].snaplen;
	record->copied = len < snaplen ? len : snaplen;
	size = ALIGNED((uint32_t)sizeof(*r) + record->copied);
	r = stage_claim(d, stage, size, record->copied);
	spin_unlock(&d->lock);
	if (!r)
		return;
	record->stage = stage;
	r->size = size;
	memcpy(&r->when, &record->when, sizeof(*r) - offsetof(struct diag_record, when));
	if (record->copied)
		memcpy(r + 1, data, record->copied);
	__atomic_store_n(&r->ready, READY_RECORD, __ATOMIC_RELEASE);
}

uint32_t diag_read(struct table *t, uint8_t *out, uint32_t size)
{
	struct diag *d = t->diag;
	uint32_t used = 0;

	while (d && d->tail != __atomic_load_n(&d->head, __ATOMIC_ACQUIRE)) {
		struct diag_record *r = record_at(d, d->tail);
		uint32_t ready = __atomic_load_n(&r->ready, __ATOMIC_ACQUIRE), n = ready ? r->size : 0;

		if (ready == READY_NOT || (ready == READY_RECORD && n > size - used))
			break;
		if (ready == READY_RECORD) {
			memcpy(out + used, r, n);
			used += n;
		}
		memset(r, 0, n);
		__atomic_store_n(&d->tail, d->tail + n, __ATOMIC_RELEASE);
	}
	return used;
}

void diag_set_stage(struct table *t, uint32_t stage, const struct diag_limit *limit)
{
	struct diag *d = t->diag;

	assert(d && stage < DIAG_STAGES && limit->snaplen <= DIAG_SNAPLEN);
	spin_lock(&d->lock);
	if (limit->packets) {
		d->limit[stage] = *limit;
		d->status.packets[stage] = d->status.bytes[stage] = d->status.lost[stage] = 0;
		d->status.stopped[stage] = 0;
	}
	stage_switch(d, stage, limit->packets);
	spin_unlock(&d->lock);
}

void diag_read_status(struct table *t, struct diag_status *status)
{
	memset(status, 0, sizeof(*status));
	if (!t->diag)
		return;
	spin_lock(&t->diag->lock);
	*status = t->diag->status;
	spin_unlock(&t->diag->lock);
	for (uint32_t i = 0; i < COUNTERS; i++)
		status->counter[i] = __atomic_load_n(&t->diag->counter[i], __ATOMIC_RELAXED);
}

/* ---- one packet ---- */

/* What the packet says of itself.  A filter sees no interface in what the firewall itself sends. */
static void watch_begin(struct watch *w, struct diag *d, struct packet *pkt, bool parsed)
{
	struct diag_record *r = &w->record;
	bool ip4 = pkt->len && pkt->data[0] >> 4 == 4;

	w->diag = d;
	w->pkt = pkt;
	w->came = pkt->data;
	w->came_len = pkt->len;
	r->when = wall_clock();
	r->len = pkt->cut && parsed ? pkt->ip_len : pkt->len;
	r->ifindex = pkt->hook == HOOK_OUTPUT ? 0 : pkt->ifindex;
	r->mark = pkt->mark;
	r->reason = COUNTERS;
	r->hook = pkt->hook;
	r->checksum = pkt->checksum;
	r->hops = pkt->len >= 20 ? pkt->data[ip4 ? 8 : 7] : 0;
	r->key = pkt->key;
	r->parsed = parsed;
	r->filter = filters_mean(d, &pkt->key, r->ifindex);
	if (!parsed)
		return;
	r->kind = pkt->kind;
	r->icmp_type = pkt->icmp_type;
	r->tcp_flags = pkt->tcp_flags;
	if (!pkt->tcp_flags)
		return;
	r->seq = pkt->seq;
	r->ack = pkt->ack;
	r->window = pkt->window;
}

static void note_session(struct diag_record *r, const struct session *s, uint32_t id, int dir)
{
	r->session = id;
	r->rule = s->rule;
	r->nat_rule = s->nat_rule;
	r->ingress = s->ingress;
	r->egress = s->egress;
	r->parent = s->parent;
	r->flags = s->flags;
	r->application = s->application;
	r->dir = (uint8_t)dir;
	r->state = s->state[dir];
	r->tcp_state = s->tcp_state;
	r->out = key_mirror(&s->key[!dir], s->key[!dir].zone);
}

/* Looks up whose packet it is; one that a filter means makes its session watched.  An error is nobody's own packet. */
static void watch_session(struct watch *w, const struct burst *b)
{
	int dir;
	struct session *s = w->record.parsed ? fastpath_find(w->pkt, b, &dir) : NULL;

	if (!s)
		return;
	if (w->record.filter && w->pkt->kind == PACKET_FLOW && !(s->flags & FLAG_WATCHED))
		session_watch(b->table, s);
	note_session(&w->record, s, session_id(b->table, s), dir);
	session_unlock(s);
}

static bool is_meant(const struct watch *w)
{
	return w->record.filter || (w->record.session && w->record.flags & FLAG_WATCHED);
}

static uint32_t reason_of(const uint64_t *counter)
{
	for (uint32_t i = FLOW_PARSE_IP_HDR; i < DROPS_END; i++)
		if (counter[i])
			return i;
	return COUNTERS;
}

/* What was counted for the packet belongs to the worker's shard. */
static void settle(const struct watch *w, const struct burst *b)
{
	for (uint32_t i = 0; i < COUNTERS; i++)
		if (w->counter[i])
			count_in(b->counter, i, w->counter[i]);
}

/* What was counted for a packet that is meant; that it is sent the worker will count. */
static void count_apart(const struct watch *w)
{
	for (uint32_t i = 0; i < COUNTERS; i++)
		if (w->counter[i])
			__atomic_fetch_add(&w->diag->counter[i], w->counter[i], __ATOMIC_RELAXED);
	if (w->record.verdict == VERDICT_ACCEPT || w->record.verdict == VERDICT_REWRITTEN)
		__atomic_fetch_add(&w->diag->counter[PKT_SENT], 1, __ATOMIC_RELAXED);
}

/* The fast path may change the bytes, and they are wanted as they came: as many as anybody takes. */
static void keep(struct watch *w, const struct burst *b)
{
	uint32_t longest = __atomic_load_n(&w->diag->longest, __ATOMIC_RELAXED);

	w->came_len = w->pkt->len < longest ? w->pkt->len : longest;
	memcpy(w->diag->came[b->shard], w->pkt->data, w->came_len);
	w->came = w->diag->came[b->shard];
}

/* One that comes round from the slow path was received before. */
static bool is_new(const struct packet *pkt)
{
	return !(pkt->mark & (MARK_SEEN | MARK_TRACKED));
}

/* The interface by which it leaves; 0: it is for the firewall itself, or only the kernel knows. */
static uint32_t egress_of(const struct packet *pkt, const struct diag_record *r)
{
	if (pkt->hook == HOOK_OUTPUT)
		return pkt->ifindex;
	if (!r->session)
		return 0;
	return r->dir ? r->ingress : r->egress;
}

static void put_transmitted(struct watch *w)
{
	w->record.ifindex = egress_of(w->pkt, &w->record);
	put(w->diag, DIAG_TRANSMIT, &w->record, w->pkt->data, w->pkt->len);
}

/* What became of it.  Packets that go to the slow path are copied when they come back. */
static void put_outcome(struct watch *w)
{
	struct diag_record *r = &w->record;

	if (r->verdict == VERDICT_DROP)
		r->reason = reason_of(w->counter);
	put(w->diag, DIAG_TRACE, r, NULL, 0);
	if (r->verdict == VERDICT_PUNT || r->verdict == VERDICT_INSPECT)
		return;
	if (r->session && r->state == SESSION_ACTIVE)
		put(w->diag, DIAG_FIREWALL, r, w->came, w->came_len);
	if (r->verdict == VERDICT_DROP)
		put(w->diag, DIAG_DROP, r, w->came, w->came_len);
	else
		put_transmitted(w);
}

/* What the fast path makes of it, told stage by stage. */
static enum verdict follow(struct watch *w, const struct burst *own, enum verdict v)
{
	struct diag_record *r = &w->record;
	uint32_t session = r->session;

	keep(w, own);
	if (is_new(w->pkt))
		put(w->diag, DIAG_RECEIVE, r, w->came, w->came_len);
	r->tcp_before = r->tcp_state;
	if (v == VERDICT_CONTINUE) {
		v = fastpath_decide(w->pkt, own);
		watch_session(w, own);
	}
	r->begun = r->session != session;
	r->verdict = (uint8_t)v;
	put_outcome(w);
	count_apart(w);
	return v;
}

/* A packet's whole way through the fast path.  `refused`: why it does not even begin; COUNTERS: it does. */
enum verdict diag_take(struct packet *pkt, const struct burst *b, enum counter refused)
{
	struct watch w = {.diag = b->table->diag};
	const struct burst own = {.table = b->table, .counter = w.counter, .shard = b->shard, .now = b->now};
	enum verdict v;

	memset(&pkt->key, 0, sizeof(pkt->key));
	pkt->cut |= refused == FLOW_QUEUE_TRUNCATED;
	v = fastpath_parse(pkt, &own);
	if (v == VERDICT_CONTINUE)
		pkt->hint = flow_hint(b->table, pkt->hash);
	watch_begin(&w, w.diag, pkt, v == VERDICT_CONTINUE);
	watch_session(&w, &own);
	if (refused != COUNTERS) {
		memset(w.counter, 0, sizeof(w.counter));
		v = drop(&own, refused);
	}
	if (is_meant(&w))
		v = follow(&w, &own, v);
	else if (v == VERDICT_CONTINUE)
		v = fastpath_decide(pkt, &own);
	settle(&w, b);
	return v;
}

/* ---- the slow path ---- */

bool diag_slow_begin(struct table *t, struct packet *pkt)
{
	if (!diag_is_on(t))
		return false;
	memcpy(t->diag->before, t->counter[SHARD_SLOW], COUNTER_WORDS);
	memset(&pkt->key, 0, sizeof(pkt->key));
	pkt->len = 0;
	return true;
}

/* What has been counted since diag_slow_begin(). */
static void count_since(const struct diag *d, const uint64_t *now, uint64_t *counter)
{
	for (uint32_t i = 0; i < COUNTERS; i++)
		counter[i] = now[i] - d->before[i];
}

void diag_slow_end(struct table *t, struct packet *pkt, bool repeated, const uint8_t *story, uint32_t len)
{
	struct watch w = {.diag = t->diag};
	uint64_t unused[COUNTERS] = {0};
	const struct burst b = {.table = t, .counter = unused, .shard = SHARD_SLOW, .now = table_now()};
	struct diag_record *r = &w.record;

	pkt->zone = pkt->hook == HOOK_OUTPUT ? ZONE_HOST : table_zone(t, pkt->ifindex);
	watch_begin(&w, t->diag, pkt, packet_parse(pkt, &b) == VERDICT_CONTINUE);
	watch_session(&w, &b);
	if (!is_meant(&w))
		return;
	count_since(w.diag, t->counter[SHARD_SLOW], w.counter);
	r->slow = 1;
	r->verdict = repeated ? VERDICT_CONTINUE : VERDICT_DROP;
	r->begun = r->session && w.counter[SESSION_INSTALLED];
	if (!repeated)
		r->reason = reason_of(w.counter);
	put(w.diag, DIAG_TRACE, r, story, len);
	if (!repeated)
		put(w.diag, DIAG_DROP, r, pkt->data, pkt->len);
	count_apart(&w);
}
