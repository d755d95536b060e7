/* table.c - slots, flow hash, install, look-up, removal.
 *
 * Everything lives in one shared mapping: head, slots, hash, overflow buckets, pools.  Links are indices.
 *
 * The flow hash holds two entries per session, (slot, direction) with a 16-bit tag, nine to a cache-line bucket; a
 * bucket that overflows chains buckets from a small pool and gives them back when they are empty.  The hash is keyed
 * with a random secret: whoever chooses our keys cannot choose our buckets.
 *
 * Look-up: read the bucket without a lock (its seq is a version), follow entries whose tag fits to their slots, lock the
 * slot and compare the whole key.  An entry may be stale by then; the key decides.  If nothing matched and the version
 * moved, read again.  A hit costs two cache misses, bucket and slot.
 *
 * Lock order: bucket, then slot, then wheel / discard list / free list.  Nobody takes a bucket while holding a slot.
 * Slots are type-stable: memory of a slot is always a struct session, whatever life it is in.
 *
 * Life: INIT -> OPENING -> ACTIVE | DISCARD -> CLOSING -> CLOSED -> FREE -> INIT, one function per step.  The free list
 * is first in, first out, so an ended session can be shown for as long as possible.
 */
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>

#include "internal.h"

#define ENTRIES_PER_BUCKET_MEAN 5     /* at a full table; nine fit, so 3 % of the buckets overflow */
#define CHAIN_LIMIT 64
#define PORT_TRIES 64                 /* ports whose return key clashes before we give up */
#define DISCARD_SHARE 10              /* at most a tenth of the table */

_Static_assert(sizeof(struct flow_key) == 40, "the key is compared as bytes");
_Static_assert(sizeof(struct session) == 224, "the budget: 224 + 2 * 64 / 5 + overflow <= 256 bytes a session");
_Static_assert(sizeof(struct bucket) == 64, "a bucket is a cache line");
_Static_assert(offsetof(struct session, lock) == 80, "keys and lock share two lines");

/* ---- locks ---- */

void lock_wait(uint32_t *lock)
{
	do {
		for (int i = 0; i < 100 && __atomic_load_n(lock, __ATOMIC_RELAXED); i++)
			__builtin_ia32_pause();
		if (__atomic_load_n(lock, __ATOMIC_RELAXED))
			sched_yield();
	} while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE));
}

void session_unlock(struct session *s)
{
	spin_unlock(&s->lock);
}

static void bucket_lock(struct bucket *b)
{
	uint32_t seq = __atomic_load_n(&b->seq, __ATOMIC_RELAXED);

	for (;;) {
		if (!(seq & 1) && __atomic_compare_exchange_n(&b->seq, &seq, seq + 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return;
		sched_yield();
		seq = __atomic_load_n(&b->seq, __ATOMIC_RELAXED);
	}
}

static void bucket_unlock(struct bucket *b)
{
	__atomic_fetch_add(&b->seq, 1, __ATOMIC_RELEASE);
}

/* ---- making and measuring ---- */

uint32_t table_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint32_t)((uint64_t)ts.tv_sec * TENTHS + (uint64_t)ts.tv_nsec / (1000000000 / TENTHS));
}

static uint64_t align(uint64_t n)
{
	return (n + 4095) & ~4095ull;
}

static struct bucket *bucket_at(const struct table *t, uint32_t i)
{
	return (struct bucket *)((char *)t + t->buckets) + i;
}

static struct bucket *overflow_at(const struct table *t, uint32_t i)
{
	return (struct bucket *)((char *)t + t->overflow) + i;
}

uint32_t session_id(const struct table *t, const struct session *s)
{
	return (uint32_t)(s - (const struct session *)((const char *)t + t->slots));
}

static void fill_free_lists(struct table *t)
{
	for (uint32_t id = 1; id <= t->max_sessions; id++) {
		session_at(t, id)->wheel_next = id < t->max_sessions ? id + 1 : 0;
		session_at(t, id)->end_reason = END_NONE;
	}
	t->free_head = 1;
	t->free_tail = t->max_sessions;
	for (uint32_t i = 0; i < t->overflow_count; i++)
		overflow_at(t, i)->next = i + 1 < t->overflow_count ? i + 2 : 0;
	t->overflow_head = t->overflow_count ? 1 : 0;
}

/* Memory for sessions is touched here, once, so that no packet ever waits for a page; pools are touched when used. */
struct table *table_create(uint32_t max_sessions)
{
	uint32_t buckets = max_sessions * 2ull / ENTRIES_PER_BUCKET_MEAN + 1;
	uint32_t overflow = buckets / 6 + 8;   /* a full table under churn uses 13 %; a small one varies more */
	uint64_t slots_at = align(sizeof(struct table));
	uint64_t buckets_at = slots_at + align((max_sessions + 1ull) * sizeof(struct session));
	uint64_t overflow_at_ = buckets_at + align((uint64_t)buckets * sizeof(struct bucket));
	uint64_t pools_at = overflow_at_ + align((uint64_t)overflow * sizeof(struct bucket));
	uint64_t size = pools_at + (uint64_t)MAX_POOLS * sizeof(struct natpool);
	struct table *t;

	if (!max_sessions || max_sessions > 1u << 30) {
		errno = EINVAL;
		return NULL;
	}
	t = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (t == MAP_FAILED)
		return NULL;
	if (getrandom(t->secret, sizeof(t->secret), 0) != sizeof(t->secret)) {
		munmap(t, size);
		return NULL;
	}
	t->size = size;
	t->slots = slots_at;
	t->buckets = buckets_at;
	t->overflow = overflow_at_;
	t->pools = pools_at;
	t->max_sessions = max_sessions;
	t->bucket_count = buckets;
	t->overflow_count = overflow;
	memset((char *)t + buckets_at, 0, pools_at - buckets_at);
	fill_free_lists(t);
	wheel_init(t, table_now());
	return t;
}

void table_destroy(struct table *t)
{
	munmap(t, t->size);
}

void table_set_settings(struct table *t, const struct settings *settings)
{
	t->settings = *settings;
}

void table_set_timers(struct table *t, uint32_t application, const struct timers *timers)
{
	assert(application < MAX_APPLICATIONS);
	t->timers[application] = *timers;
}

/* One writer. */
void table_set_zones(struct table *t, const uint32_t *ifindex, const uint8_t *zone, uint32_t n)
{
	struct zone_map *map = &t->zones;
	uint32_t seq = map->seq;

	assert(n <= 250);
	__atomic_store_n(&map->seq, seq + 1, __ATOMIC_RELAXED);
	for (uint32_t i = 0; i < n; i++) {
		__atomic_store_n(&map->ifindex[i], ifindex[i], __ATOMIC_RELEASE);
		__atomic_store_n(&map->zone[i], zone[i], __ATOMIC_RELEASE);
	}
	__atomic_store_n(&map->n, n, __ATOMIC_RELEASE);
	__atomic_store_n(&map->seq, seq + 2, __ATOMIC_RELEASE);
}

static uint8_t zone_find(const struct zone_map *map, uint32_t ifindex)
{
	uint32_t n = __atomic_load_n(&map->n, __ATOMIC_ACQUIRE);

	for (uint32_t i = 0; i < n; i++)
		if (__atomic_load_n(&map->ifindex[i], __ATOMIC_ACQUIRE) == ifindex)
			return __atomic_load_n(&map->zone[i], __ATOMIC_ACQUIRE);
	return ZONE_NONE;
}

uint8_t table_zone(const struct table *t, uint32_t ifindex)
{
	for (;;) {
		uint32_t seq = __atomic_load_n(&t->zones.seq, __ATOMIC_ACQUIRE);
		uint8_t zone = zone_find(&t->zones, ifindex);

		if (!(seq & 1) && __atomic_load_n(&t->zones.seq, __ATOMIC_RELAXED) == seq)
			return zone;
	}
}

/* The highest zone id in use; one that is on its way out may be counted. */
uint8_t table_zone_max(const struct table *t)
{
	uint32_t n = __atomic_load_n(&t->zones.n, __ATOMIC_ACQUIRE);
	uint8_t max = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint8_t zone = __atomic_load_n(&t->zones.zone[i], __ATOMIC_RELAXED);

		max = zone > max ? zone : max;
	}
	return max;
}

/* One writer.  The list is read for packets without a session only, so a reader that meets the writer waits. */
void table_set_origins(struct table *t, const struct origin *origins, uint32_t n)
{
	struct origin_list *list = &t->origins;

	assert(n <= MAX_ORIGINS);
	spin_lock(&list->lock);
	memcpy(list->origin, origins, n * sizeof(*origins));
	list->n = n;
	spin_unlock(&list->lock);
}

static bool in_address_range(const uint8_t *address, const uint8_t *first, const uint8_t *last)
{
	return memcmp(address, first, 16) >= 0 && memcmp(address, last, 16) <= 0;
}

/* Whether the address lies in an origin of that zone, and whether in one of another. */
static void find_origins(const struct table *t, const uint8_t *address, uint8_t zone, bool *here, bool *elsewhere)
{
	struct origin_list *list = (struct origin_list *)&t->origins;

	*here = *elsewhere = false;
	spin_lock(&list->lock);
	for (uint32_t i = 0; i < list->n; i++) {
		if (!in_address_range(address, list->origin[i].first, list->origin[i].last))
			continue;
		if (list->origin[i].zone == zone)
			*here = true;
		else
			*elsewhere = true;
	}
	spin_unlock(&list->lock);
}

/* An address that the firewall itself has. */
bool table_is_own(const struct table *t, const uint8_t *address)
{
	bool own, other;

	find_origins(t, address, ZONE_HOST, &own, &other);
	return own;
}

/* An address that cannot be in this zone, because it is another's; overlapping subnets belong to both. */
bool table_is_foreign(const struct table *t, const uint8_t *address, uint8_t zone)
{
	bool here, elsewhere;

	find_origins(t, address, zone, &here, &elsewhere);
	return elsewhere && (!here || table_is_own(t, address));
}

void table_read_stats(struct table *t, struct table_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	stats->max_sessions = t->max_sessions;
	stats->allocated = __atomic_load_n(&t->allocated, __ATOMIC_RELAXED);
	stats->tcp = __atomic_load_n(&t->count[COUNT_TCP], __ATOMIC_RELAXED);
	stats->udp = __atomic_load_n(&t->count[COUNT_UDP], __ATOMIC_RELAXED);
	stats->icmp = __atomic_load_n(&t->count[COUNT_ICMP], __ATOMIC_RELAXED);
	stats->other = __atomic_load_n(&t->count[COUNT_OTHER], __ATOMIC_RELAXED);
	stats->predict = __atomic_load_n(&t->count[COUNT_PREDICT], __ATOMIC_RELAXED);
	stats->discard = __atomic_load_n(&t->count[COUNT_DISCARD], __ATOMIC_RELAXED);
	stats->scheduled = __atomic_load_n(&t->wheel_scheduled, __ATOMIC_RELAXED);
	stats->installed = __atomic_load_n(&t->installed, __ATOMIC_RELAXED);
	stats->bytes = t->pools - t->slots;
}

void table_read_counters(struct table *t, uint64_t *counters)
{
	memset(counters, 0, COUNTERS * sizeof(*counters));
	for (int shard = 0; shard < MAX_SHARDS; shard++)
		for (int i = 0; i < COUNTERS; i++)
			counters[i] += __atomic_load_n(&t->counter[shard][i], __ATOMIC_RELAXED);
}

void table_count(struct table *t, uint32_t shard, uint32_t counter, uint64_t n)
{
	assert(shard < MAX_SHARDS && counter < COUNTERS);
	count_in(t->counter[shard], counter, n);
}

/* ---- flow hash ---- */

static uint64_t multiply_fold(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* A keyed multiply-fold of the five words of a key, each multiplied with a secret of its own. */
static uint64_t key_hash(const struct table *t, const struct flow_key *key)
{
	uint64_t w[5], h;

	memcpy(w, key, sizeof(w));
	h = multiply_fold(w[0] ^ t->secret[0], w[1] ^ t->secret[1]);
	h ^= multiply_fold(w[2] ^ t->secret[2], w[3] ^ t->secret[3]);
	return multiply_fold(h ^ t->secret[4], w[4] ^ t->secret[5]);
}

uint64_t table_hash16(const struct table *t, const uint8_t *bytes)
{
	uint64_t w[2];

	memcpy(w, bytes, sizeof(w));
	return multiply_fold(w[0] ^ t->secret[0], w[1] ^ t->secret[1]);
}

static struct bucket *bucket_of(const struct table *t, uint64_t hash)
{
	return bucket_at(t, (uint32_t)((hash & 0xffffffff) * t->bucket_count >> 32));
}

static uint16_t tag_of(uint64_t hash)
{
	return (uint16_t)(hash >> 48);
}

/* The session of an entry, locked, if it really has this key in the entry's direction and is alive.  One that is being
 * installed counts only for those who would install the same key. */
static struct session *entry_match(struct table *t, uint32_t ref, const struct flow_key *key, bool opening)
{
	struct session *s = session_at(t, ref >> 1);

	spin_lock(&s->lock);
	if ((session_matches(s) || (opening && s->state[0] == SESSION_OPENING)) && key_equal(&s->key[ref & 1], key))
		return s;
	session_unlock(s);
	return NULL;
}

static struct session *chain_find(struct table *t, struct bucket *b, uint16_t tag, const struct flow_key *key,
				  bool opening, int *dir)
{
	for (int hops = 0; hops < CHAIN_LIMIT; hops++) {
		uint32_t next;

		for (int i = 0; i < BUCKET_ENTRIES; i++) {
			uint32_t ref = __atomic_load_n(&b->ref[i], __ATOMIC_ACQUIRE);
			struct session *s;

			if (!ref || __atomic_load_n(&b->tag[i], __ATOMIC_ACQUIRE) != tag)
				continue;
			if ((s = entry_match(t, ref, key, opening))) {
				*dir = ref & 1;
				return s;
			}
		}
		next = __atomic_load_n(&b->next, __ATOMIC_ACQUIRE);
		if (!next)
			return NULL;
		b = overflow_at(t, next - 1);
	}
	return NULL;
}

/* The live session one of whose flows has this key, locked, and which flow it is; NULL if there is none. */
struct session *table_lookup(struct table *t, const struct flow_key *key, int *dir)
{
	uint64_t hash = key_hash(t, key);
	struct bucket *b = bucket_of(t, hash);

	for (;;) {
		uint32_t seq = __atomic_load_n(&b->seq, __ATOMIC_ACQUIRE);
		struct session *s = chain_find(t, b, tag_of(hash), key, false, dir);

		if (s)
			return s;
		if (!(seq & 1) && __atomic_load_n(&b->seq, __ATOMIC_RELAXED) == seq)
			return NULL;
		if (seq & 1)
			sched_yield();
	}
}

static uint32_t overflow_take(struct table *t)
{
	uint32_t next;

	spin_lock(&t->overflow_lock);
	next = t->overflow_head;
	if (next) {
		struct bucket *b = overflow_at(t, next - 1);

		t->overflow_head = __atomic_load_n(&b->next, __ATOMIC_RELAXED);
		__atomic_store_n(&b->next, 0, __ATOMIC_RELEASE);
	}
	spin_unlock(&t->overflow_lock);
	return next;
}

static void overflow_give(struct table *t, uint32_t index)
{
	spin_lock(&t->overflow_lock);
	__atomic_store_n(&overflow_at(t, index - 1)->next, t->overflow_head, __ATOMIC_RELEASE);
	t->overflow_head = index;
	spin_unlock(&t->overflow_lock);
}

static bool bucket_put(struct bucket *b, uint16_t tag, uint32_t ref)
{
	for (int i = 0; i < BUCKET_ENTRIES; i++) {
		if (__atomic_load_n(&b->ref[i], __ATOMIC_RELAXED))
			continue;
		__atomic_store_n(&b->tag[i], tag, __ATOMIC_RELEASE);
		__atomic_store_n(&b->ref[i], ref, __ATOMIC_RELEASE);
		return true;
	}
	return false;
}

static bool chain_put(struct table *t, struct bucket *b, uint16_t tag, uint32_t ref)
{
	uint32_t next;

	while (!bucket_put(b, tag, ref)) {
		next = __atomic_load_n(&b->next, __ATOMIC_RELAXED);
		if (!next) {
			if (!(next = overflow_take(t)))
				return false;
			__atomic_store_n(&b->next, next, __ATOMIC_RELEASE);
		}
		b = overflow_at(t, next - 1);
	}
	return true;
}

enum put_result { PUT_DONE, PUT_EXISTS, PUT_NO_MEMORY };

/* Enters a flow unless a live session has its key. */
static enum put_result flow_put(struct table *t, const struct flow_key *key, uint32_t ref)
{
	uint64_t hash = key_hash(t, key);
	struct bucket *b = bucket_of(t, hash);
	enum put_result result = PUT_DONE;
	struct session *s;
	int dir;

	bucket_lock(b);
	s = chain_find(t, b, tag_of(hash), key, true, &dir);
	if (s) {
		session_unlock(s);
		result = PUT_EXISTS;
	} else if (!chain_put(t, b, tag_of(hash), ref)) {
		result = PUT_NO_MEMORY;
	}
	bucket_unlock(b);
	return result;
}

static bool bucket_clear(struct bucket *b, uint32_t ref)
{
	for (int i = 0; i < BUCKET_ENTRIES; i++) {
		if (__atomic_load_n(&b->ref[i], __ATOMIC_RELAXED) != ref)
			continue;
		__atomic_store_n(&b->ref[i], 0, __ATOMIC_RELEASE);
		return true;
	}
	return false;
}

static bool bucket_empty(const struct bucket *b)
{
	for (int i = 0; i < BUCKET_ENTRIES; i++)
		if (__atomic_load_n(&b->ref[i], __ATOMIC_RELAXED))
			return false;
	return true;
}

static void flow_remove(struct table *t, const struct flow_key *key, uint32_t ref)
{
	struct bucket *first = bucket_of(t, key_hash(t, key)), *b = first, *previous = NULL;
	uint32_t index = 0;

	bucket_lock(first);
	while (!bucket_clear(b, ref)) {
		previous = b;
		index = __atomic_load_n(&b->next, __ATOMIC_RELAXED);
		assert(index);
		b = overflow_at(t, index - 1);
	}
	if (previous && bucket_empty(b)) {
		__atomic_store_n(&previous->next, __atomic_load_n(&b->next, __ATOMIC_RELAXED), __ATOMIC_RELEASE);
		overflow_give(t, index);
	}
	bucket_unlock(first);
}

/* ---- counting ---- */

static enum count_kind count_kind(const struct session *s)
{
	if (s->state[0] == SESSION_DISCARD)
		return COUNT_DISCARD;
	if (s->type == SESSION_PREDICT)
		return COUNT_PREDICT;
	switch (s->key[0].proto) {
	case IPPROTO_TCP:
		return COUNT_TCP;
	case IPPROTO_UDP:
		return COUNT_UDP;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return COUNT_ICMP;
	}
	return COUNT_OTHER;
}

static void count_session(struct table *t, const struct session *s, int n)
{
	__atomic_fetch_add(&t->count[count_kind(s)], (uint32_t)n, __ATOMIC_RELAXED);
}

/* ---- the discard list: oldest first ---- */

static void discard_append(struct table *t, struct session *s)
{
	uint32_t id = session_id(t, s);

	spin_lock(&t->discard_lock);
	s->discard_next = 0;
	s->discard_prev = t->discard_tail;
	if (t->discard_tail)
		session_at(t, t->discard_tail)->discard_next = id;
	else
		t->discard_head = id;
	t->discard_tail = id;
	spin_unlock(&t->discard_lock);
}

static void discard_unlink(struct table *t, struct session *s)
{
	spin_lock(&t->discard_lock);
	if (s->discard_prev)
		session_at(t, s->discard_prev)->discard_next = s->discard_next;
	else
		t->discard_head = s->discard_next;
	if (s->discard_next)
		session_at(t, s->discard_next)->discard_prev = s->discard_prev;
	else
		t->discard_tail = s->discard_prev;
	spin_unlock(&t->discard_lock);
}

/* ---- the steps of a session's life, each with the slot locked ---- */

static void session_set_state(struct session *s, enum session_state state)
{
	__atomic_store_n(&s->state[0], state, __ATOMIC_RELAXED);
	__atomic_store_n(&s->state[1], state, __ATOMIC_RELAXED);
}

/* INIT -> OPENING; NULL: no slot is free. */
static struct session *session_take(struct table *t)
{
	struct session *s = NULL;

	spin_lock(&t->free_lock);
	if (t->free_head) {
		s = session_at(t, t->free_head);
		t->free_head = s->wheel_next;
		if (!t->free_head)
			t->free_tail = 0;
	}
	spin_unlock(&t->free_lock);
	if (!s)
		return NULL;
	spin_lock(&s->lock);
	assert(s->state[0] == SESSION_INIT);
	session_set_state(s, SESSION_OPENING);
	s->generation++;
	session_unlock(s);
	__atomic_fetch_add(&t->allocated, 1, __ATOMIC_RELAXED);
	return s;
}

/* OPENING | FREE -> INIT. */
static void session_give_back(struct table *t, struct session *s)
{
	uint32_t id = session_id(t, s);

	spin_lock(&s->lock);
	assert(s->state[0] == SESSION_OPENING || s->state[0] == SESSION_FREE);
	session_set_state(s, SESSION_INIT);
	session_unlock(s);
	__atomic_fetch_sub(&t->allocated, 1, __ATOMIC_RELAXED);
	spin_lock(&t->free_lock);
	s->wheel_next = 0;
	if (t->free_tail)
		session_at(t, t->free_tail)->wheel_next = id;
	else
		t->free_head = id;
	t->free_tail = id;
	spin_unlock(&t->free_lock);
}

/* OPENING -> ACTIVE | DISCARD: into the wheel, visible to look-ups from now on. */
static void session_open(struct table *t, struct session *s, bool discard)
{
	spin_lock(&s->lock);
	assert(s->state[0] == SESSION_OPENING);
	session_set_state(s, discard ? SESSION_DISCARD : SESSION_ACTIVE);
	if (discard)
		discard_append(t, s);
	wheel_insert(t, s, wheel_deadline(t, s));
	count_session(t, s, 1);
	session_unlock(s);
	__atomic_fetch_add(&t->installed, 1, __ATOMIC_RELAXED);
}

/* The first cause in the order of precedence stays. */
void session_note_end(struct session *s, enum end_reason reason)
{
	if (reason < s->end_reason)
		s->end_reason = reason;
}

/* ACTIVE | DISCARD -> CLOSING.  A look-up does not see it any more; the caller puts it before the ager. */
void session_set_closing(struct table *t, struct session *s, enum end_reason reason)
{
	assert(session_matches(s));
	count_session(t, s, -1);
	if (s->state[0] == SESSION_DISCARD)
		discard_unlink(t, s);
	session_note_end(s, reason);
	session_set_state(s, SESSION_CLOSING);
}

/* CLOSING -> CLOSED. */
void session_set_closed(struct session *s)
{
	assert(s->state[0] == SESSION_CLOSING && !s->wheel_due);
	session_set_state(s, SESSION_CLOSED);
}

/* CLOSED -> FREE -> INIT: out of the hash, port back to its pool. */
static void session_release(struct table *t, struct session *s)
{
	uint32_t id = session_id(t, s);
	struct flow_key key[2];
	uint16_t pool;

	spin_lock(&s->lock);
	assert(s->state[0] == SESSION_CLOSED);
	memcpy(key, s->key, sizeof(key));
	pool = s->pool;
	session_unlock(s);
	flow_remove(t, &key[0], id << 1);
	flow_remove(t, &key[1], id << 1 | 1);
	if (pool)
		natpool_give(t, pool - 1u, key[1].proto, ntohs(key[1].dport));
	spin_lock(&s->lock);
	session_set_state(s, SESSION_FREE);
	session_unlock(s);
	session_give_back(t, s);
}

void session_free(struct table *t, const uint32_t *ids, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		session_release(t, session_at(t, ids[i]));
	count_in(t->counter[SHARD_AGER], SESSION_FREED, n);
}

/* Ends the oldest DISCARD session at once to make room; false: there is none. */
static bool discard_evict(struct table *t)
{
	struct session *s;
	uint32_t id;

	for (;;) {
		spin_lock(&t->discard_lock);
		id = t->discard_head;
		spin_unlock(&t->discard_lock);
		if (!id)
			return false;
		s = session_at(t, id);
		spin_lock(&s->lock);
		if (s->state[0] == SESSION_DISCARD)
			break;
		session_unlock(s);
	}
	session_set_closing(t, s, END_UNKNOWN);
	wheel_remove(t, s);
	session_set_closed(s);
	session_unlock(s);
	session_release(t, s);
	return true;
}

/* ---- install ---- */

static bool make_room(const struct burst *b)
{
	if (!discard_evict(b->table))
		return false;
	count_in(b->counter, SESSION_DISCARD_EVICTED, 1);
	count_in(b->counter, SESSION_FREED, 1);
	return true;
}

static bool too_many_discarded(const struct table *t)
{
	uint32_t most = t->max_sessions / DISCARD_SHARE;

	return __atomic_load_n(&t->count[COUNT_DISCARD], __ATOMIC_RELAXED) >= (most ? most : 1);
}

static struct session *take_slot(const struct burst *b, bool discard)
{
	struct session *s;

	if (discard && too_many_discarded(b->table))
		make_room(b);
	while (!(s = session_take(b->table)))
		if (!make_room(b))
			return NULL;
	return s;
}

/* The key under which answers come back. */
static struct flow_key return_key(const struct flow_key *key, const struct decision *d)
{
	struct flow_key back = key_mirror(key, d->egress_zone);

	if (d->source_nat != SOURCE_KEEP)
		memcpy(back.dst, d->source, 16);
	if (d->destination_nat) {
		memcpy(back.src, d->destination, 16);
		if (d->destination_port)
			back.sport = d->destination_port;
	}
	return back;
}

static void session_fill(struct table *t, struct session *s, const struct flow_key *key, const struct decision *d)
{
	struct timespec wall;
	uint32_t now = table_now();

	clock_gettime(CLOCK_REALTIME, &wall);
	spin_lock(&s->lock);
	s->key[0] = *key;
	memset(s->bytes, 0, sizeof(s->bytes));
	memset(s->packets, 0, sizeof(s->packets));
	s->bytes[0] = d->discard ? d->first_len : 0;
	s->packets[0] = d->discard;
	memset(s->tcp, 0, sizeof(s->tcp));
	memset(s->window_scale, 0, sizeof(s->window_scale));
	s->tcp_state = TCP_NEW;
	s->tcp_seen = 0;
	s->type = SESSION_FLOW;
	s->end_reason = END_NONE;
	s->application = d->application;
	s->flags = d->flags;
	s->rule = d->rule;
	s->nat_rule = d->nat_rule;
	s->ingress = d->ingress;
	s->egress = d->egress;
	s->parent = d->parent;
	s->pool = 0;
	s->start = (uint32_t)wall.tv_sec;
	s->start_tick = now;
	s->last_seen = now;
	s->wheel_due = 0;
	s->timeout = session_timer(s, &t->timers[d->application], d->discard) * TENTHS;
	session_unlock(s);
}

/* pool: the one that lent the port, plus one; 0: none. */
static void session_set_return_key(struct session *s, const struct flow_key *back, int32_t pool)
{
	spin_lock(&s->lock);
	s->key[1] = *back;
	s->pool = (uint16_t)pool;
	s->flags &= (uint16_t)~(FLAG_SNAT | FLAG_DNAT);
	for (int dir = 0; dir < 2; dir++) {
		struct flow_key to = key_mirror(&s->key[!dir], s->key[dir].zone);

		translation_deltas(&s->key[dir], &to, &s->l3_delta[dir], &s->l4_delta[dir]);
	}
	if (memcmp(s->key[0].src, back->dst, 16) || s->key[0].sport != back->dport)
		s->flags |= FLAG_SNAT;
	if (memcmp(s->key[0].dst, back->src, 16) || s->key[0].dport != back->sport)
		s->flags |= FLAG_DNAT;
	session_unlock(s);
}

/* An echo whose identifier is 0 cannot be told from ICMP without identifiers: it keeps its 0. */
static bool has_port(const struct flow_key *back)
{
	return back->proto == IPPROTO_TCP || back->proto == IPPROTO_UDP || back->dport;
}

/* Enters the return flow with a port of the pool, trying others while a live session answers to the same key: two
 * destinations that become one, or a port of ours that the peer happens to use. */
static int put_with_port(const struct burst *b, struct session *s, struct flow_key *back, const struct decision *d)
{
	struct table *t = b->table;
	uint32_t ref = session_id(t, s) << 1 | 1;
	int32_t pool = natpool_find(t, d->source);

	if (pool < 0)
		return INSTALL_NO_PORT;
	for (int i = 0; i < PORT_TRIES; i++) {
		int32_t port = natpool_take(t, (uint32_t)pool, back->proto, d->port_min, d->port_max);
		enum put_result result;

		if (port < 0)
			return INSTALL_NO_PORT;
		back->dport = htons((uint16_t)port);
		session_set_return_key(s, back, pool + 1);
		result = flow_put(t, back, ref);
		if (result == PUT_DONE)
			return 0;
		natpool_give(t, (uint32_t)pool, back->proto, (uint16_t)port);
		if (result == PUT_NO_MEMORY)
			return INSTALL_FULL;
	}
	return INSTALL_NO_PORT;
}

/* Enters the return flow with the port it has.  A translated session whose key is taken (two virtual addresses that
 * collapse onto one server) gets another source port instead; an untranslated one loses to the live session. */
static int put_as_it_is(const struct burst *b, struct session *s, struct flow_key *back, const struct decision *d)
{
	uint32_t ref = session_id(b->table, s) << 1 | 1;
	bool may_change = (d->source_nat != SOURCE_KEEP || d->destination_nat) && has_port(back);

	for (int i = 0; i < PORT_TRIES; i++) {
		enum put_result result;

		session_set_return_key(s, back, 0);
		result = flow_put(b->table, back, ref);
		if (result == PUT_DONE)
			return 0;
		if (result == PUT_NO_MEMORY)
			return INSTALL_FULL;
		if (!may_change)
			return INSTALL_CLASH;
		back->dport = htons((uint16_t)(1024 + random32() % 64512));
		count_in(b->counter, NAT_PORT_REALLOCATED, 1);
	}
	return INSTALL_CLASH;
}

/* Both flows into the hash, its own first; 0 or an install_error with nothing left behind. */
static int put_flows(const struct burst *b, struct session *s, const struct flow_key *key, const struct decision *d)
{
	struct table *t = b->table;
	uint32_t ref = session_id(t, s) << 1;
	struct flow_key back = return_key(key, d);
	enum put_result result = flow_put(t, key, ref);
	int error;

	if (result != PUT_DONE)
		return result == PUT_EXISTS ? INSTALL_EXISTS : INSTALL_FULL;
	if (d->source_nat == SOURCE_PORT && has_port(&back))
		error = put_with_port(b, s, &back, d);
	else
		error = put_as_it_is(b, s, &back, d);
	if (error)
		flow_remove(t, key, ref);
	return error;
}

static int64_t install_failed(const struct burst *b, int error)
{
	if (error == INSTALL_FULL)
		count_in(b->counter, SESSION_ALLOC_FAILURE, 1);
	else if (error == INSTALL_NO_PORT)
		count_in(b->counter, NAT_DIPP_ALLOC_FAILURE, 1);
	else if (error == INSTALL_CLASH)
		count_in(b->counter, SESSION_DUPLICATE_KEY, 1);
	return error;
}

static int64_t install(const struct burst *b, const struct flow_key *key, const struct decision *d)
{
	struct session *s = take_slot(b, d->discard);
	int error;

	assert(d->application < MAX_APPLICATIONS);
	if (!s)
		return install_failed(b, INSTALL_FULL);
	session_fill(b->table, s, key, d);
	error = put_flows(b, s, key, d);
	if (error) {
		session_give_back(b->table, s);
		return install_failed(b, error);
	}
	session_open(b->table, s, d->discard);
	count_in(b->counter, SESSION_INSTALLED, 1);
	return session_id(b->table, s);
}

int64_t session_install(struct table *t, uint32_t shard, const struct flow_key *key, const struct decision *d)
{
	struct burst b = {.table = t, .counter = t->counter[shard], .now = table_now()};

	assert(shard < MAX_SHARDS);
	return install(&b, key, d);
}

/* ---- views and ends ---- */

/* All but the links and the sequence numbers. */
void session_copy_out(const struct session *s, struct session *copy)
{
	memcpy(copy, s, offsetof(struct session, tcp));
	memset((char *)copy + offsetof(struct session, tcp), 0, sizeof(*s) - offsetof(struct session, tcp));
}

bool session_read(struct table *t, uint32_t id, struct session *copy)
{
	struct session *s;

	if (id < 1 || id > t->max_sessions)
		return false;
	s = session_at(t, id);
	spin_lock(&s->lock);
	session_copy_out(s, copy);
	session_unlock(s);
	return true;
}

/* The slot, locked, if that life of its session goes on; else NULL.  generation 0: whichever. */
static struct session *session_alive(struct table *t, uint32_t id, uint32_t generation)
{
	struct session *s;

	if (id < 1 || id > t->max_sessions)
		return NULL;
	s = session_at(t, id);
	spin_lock(&s->lock);
	if (session_matches(s) && (!generation || generation == s->generation))
		return s;
	session_unlock(s);
	return NULL;
}

bool session_close(struct table *t, uint32_t id, uint32_t generation, uint32_t end_reason)
{
	struct session *s = session_alive(t, id, generation);

	if (!s)
		return false;
	session_set_closing(t, s, end_reason);
	wheel_schedule(t, s, table_now());
	session_unlock(s);
	return true;
}

bool session_set_egress(struct table *t, uint32_t id, uint32_t generation, uint32_t egress)
{
	struct session *s = session_alive(t, id, generation);

	if (!s)
		return false;
	s->egress = egress;
	session_unlock(s);
	return true;
}

static bool filter_addresses(const struct session_filter *f, const struct session *s)
{
	const struct flow_key *key = &s->key[0];

	return (!f->source_set || in_address_range(key->src, f->source[0], f->source[1])) &&
	       (!f->destination_set || in_address_range(key->dst, f->destination[0], f->destination[1])) &&
	       (!f->sport || f->sport == key->sport) && (!f->dport || f->dport == key->dport) &&
	       (!f->proto || f->proto == key->proto) && (!f->family || f->family == key->family) &&
	       (!f->zone[0] || f->zone[0] == key->zone) && (!f->zone[1] || f->zone[1] == s->key[1].zone);
}

static bool filter_decision(const struct session_filter *f, const struct session *s)
{
	return (!f->type || f->type - 1 == s->type) && (!f->application || f->application - 1 == s->application) &&
	       (!f->rule || f->rule - 1 == s->rule) && (!f->nat_rule || f->nat_rule - 1 == s->nat_rule) &&
	       (!f->ingress || f->ingress == s->ingress) && (!f->egress || f->egress == s->egress) &&
	       (!f->nat || f->nat - 1 == (s->flags & (FLAG_SNAT | FLAG_DNAT)));
}

static bool filter_amounts(const struct session_filter *f, const struct session *s)
{
	uint64_t bytes = s->bytes[0] + s->bytes[1];

	return bytes >= f->min_bytes && (!f->max_bytes || bytes <= f->max_bytes) &&
	       (!f->min_age || f->now - s->start_tick >= f->min_age);
}

/* The slot, locked, if its session is alive and passes; else NULL. */
static struct session *filter_slot(struct table *t, const struct session_filter *f, uint32_t id)
{
	struct session *s = session_at(t, id);
	uint8_t state = __atomic_load_n(&s->state[0], __ATOMIC_RELAXED);

	if (state == SESSION_INIT || state == SESSION_OPENING || state == SESSION_FREE || (f->state && state != f->state - 1))
		return NULL;
	spin_lock(&s->lock);
	state = s->state[0];
	if (state != SESSION_INIT && state != SESSION_OPENING && state != SESSION_FREE &&
	    (!f->state || state == f->state - 1) && filter_addresses(f, s) && filter_decision(f, s) && filter_amounts(f, s))
		return s;
	session_unlock(s);
	return NULL;
}

uint32_t table_scan(struct table *t, const struct session_filter *filter, uint32_t *next, struct session_copy *out, uint32_t n)
{
	uint32_t id = *next ? *next : 1, found = 0;

	for (; id <= t->max_sessions && found < n; id++) {
		struct session *s = filter_slot(t, filter, id);

		if (!s)
			continue;
		out[found].id = id;
		session_copy_out(s, &out[found++].session);
		session_unlock(s);
	}
	*next = id <= t->max_sessions ? id : 0;
	return found;
}

uint32_t table_close_all(struct table *t, const struct session_filter *filter, uint32_t end_reason)
{
	uint32_t closed = 0, now = table_now();

	for (uint32_t id = 1; id <= t->max_sessions; id++) {
		struct session *s = filter_slot(t, filter, id);

		if (!s)
			continue;
		if (session_matches(s)) {
			session_set_closing(t, s, end_reason);
			wheel_schedule(t, s, now);
			closed++;
		}
		session_unlock(s);
	}
	return closed;
}
