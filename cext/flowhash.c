/* flowhash.c - from a flow's key to its session.
 *
 * Two entries per session, (slot, direction) with a 16-bit tag, nine to a cache-line bucket; a bucket that overflows
 * chains buckets from a small pool and gives them back when they are empty.  The hash is keyed with a random secret:
 * whoever chooses our keys cannot choose our buckets.
 *
 * Look-up: read the bucket without a lock (its seq is a version), follow entries whose tag fits to their slots, lock the
 * slot and compare the whole key.  An entry may be stale by then; the key decides.  If nothing matched and the version
 * moved, read again.  A hit costs two cache misses, bucket and slot; a worker asks for those of a whole burst ahead.
 */
#include <sched.h>

#include "internal.h"

#define CHAIN_LIMIT 64

_Static_assert(sizeof(struct bucket) == 64, "a bucket is a cache line");

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

struct bucket *bucket_at(const struct table *t, uint32_t i)
{
	return (struct bucket *)((char *)t + t->buckets) + i;
}

struct bucket *overflow_at(const struct table *t, uint32_t i)
{
	return (struct bucket *)((char *)t + t->overflow) + i;
}

static uint64_t multiply_fold(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* A keyed multiply-fold of the five words of a key, each multiplied with a secret of its own. */
uint64_t flow_hash(const struct table *t, const struct flow_key *key)
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

void flow_prefetch(const struct table *t, uint64_t hash)
{
	__builtin_prefetch(bucket_of(t, hash));
}

/* Without a lock: what it reads may be wrong, and only time is lost by that. */
uint32_t flow_hint(const struct table *t, uint64_t hash)
{
	const struct bucket *b = bucket_of(t, hash);

	for (int i = 0; i < BUCKET_ENTRIES; i++) {
		uint32_t ref = __atomic_load_n(&b->ref[i], __ATOMIC_RELAXED);

		if (!ref || __atomic_load_n(&b->tag[i], __ATOMIC_RELAXED) != tag_of(hash))
			continue;
		for (size_t at = 0; at < sizeof(struct session); at += sizeof(struct bucket))
			__builtin_prefetch((const char *)session_at(t, ref >> 1) + at, 1);
		return ref;
	}
	return 0;
}

/* The live session one of whose flows has this key, locked, and which flow it is; NULL if there is none. */
struct session *table_lookup(struct table *t, const struct flow_key *key, int *dir)
{
	return table_find(t, key, flow_hash(t, key), 0, dir);
}

struct session *table_find(struct table *t, const struct flow_key *key, uint64_t hash, uint32_t hint, int *dir)
{
	struct bucket *b = bucket_of(t, hash);
	struct session *s = hint ? entry_match(t, hint, key, false) : NULL;

	if (s) {
		*dir = hint & 1;
		return s;
	}
	for (;;) {
		uint32_t seq = __atomic_load_n(&b->seq, __ATOMIC_ACQUIRE);

		if ((s = chain_find(t, b, tag_of(hash), key, false, dir)))
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

/* Enters a flow unless a live session has its key. */
enum put_result flow_put(struct table *t, const struct flow_key *key, uint32_t ref)
{
	uint64_t hash = flow_hash(t, key);
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

void flow_remove(struct table *t, const struct flow_key *key, uint32_t ref)
{
	struct bucket *first = bucket_of(t, flow_hash(t, key)), *b = first, *previous = NULL;
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
