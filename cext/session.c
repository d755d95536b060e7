/* session.c - the life of a session, one function per step.
 *
 *     INIT -> OPENING -> ACTIVE | DISCARD -> CLOSING -> CLOSED -> FREE -> INIT
 *
 * The slot is locked in every step.  Slots are type-stable: the memory of a slot is always a struct session, whatever life
 * it is in, and its generation tells one life from the next.  The free list is first in, first out, so an ended session
 * can be shown for as long as possible.
 *
 * DISCARD sessions stand in a list of their own, oldest first: they take at most a share of the table and make room for
 * whoever needs it.
 */
#include <netinet/in.h>

#include "internal.h"

#define DISCARD_SHARE 10              /* at most a tenth of the table */

void session_unlock(struct session *s)
{
	spin_unlock(&s->lock);
}

enum count_kind session_protocol(const struct session *s)
{
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

static enum count_kind count_kind(const struct session *s)
{
	if (s->state[0] == SESSION_DISCARD)
		return COUNT_DISCARD;
	if (s->type == SESSION_PREDICT)
		return COUNT_PREDICT;
	return session_protocol(s);
}

static void count_session(struct table *t, const struct session *s, int n)
{
	__atomic_fetch_add(&t->count[count_kind(s)], (uint32_t)n, __ATOMIC_RELAXED);
}

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

static void session_set_state(struct session *s, enum session_state state)
{
	__atomic_store_n(&s->state[0], state, __ATOMIC_RELAXED);
	__atomic_store_n(&s->state[1], state, __ATOMIC_RELAXED);
}

/* INIT -> OPENING; NULL: no slot is free. */
struct session *session_take(struct table *t)
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
void session_give_back(struct table *t, struct session *s)
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

/* OPENING -> ACTIVE | DISCARD: into the wheel, visible to look-ups from now on.  Of what is only expected, the answering
 * flow stays OPENING. */
void session_open(struct table *t, struct session *s, bool discard)
{
	spin_lock(&s->lock);
	assert(s->state[0] == SESSION_OPENING);
	session_set_state(s, discard ? SESSION_DISCARD : SESSION_ACTIVE);
	if (s->type == SESSION_PREDICT)
		__atomic_store_n(&s->state[1], SESSION_OPENING, __ATOMIC_RELAXED);
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
	offload_take_off(t, s);
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
	uint16_t pool, plane, flags;
	uint8_t type;

	spin_lock(&s->lock);
	assert(s->state[0] == SESSION_CLOSED);
	memcpy(key, s->key, sizeof(key));
	flags = s->flags;
	type = s->type;
	pool = s->pool;
	plane = s->plane;
	if (flags & FLAG_ENTRY)
		offload_forget(t, s);
	session_unlock(s);
	if (type == SESSION_FLOW)
		flow_remove(t, &key[0], id << 1);
	if (type == SESSION_FLOW && !(flags & FLAG_ONE_WAY))
		flow_remove(t, &key[1], id << 1 | 1);
	if (flags & FLAG_ADJUSTED)
		adjust_drop(t, id);
	if (pool)
		natpool_give(t, &(struct lease){.back = key[1], .session = id, .pool = pool - 1u,
						.port = ntohs(key[1].dport), .plane = (uint8_t)plane});
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
bool discard_evict(struct table *t)
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

bool discard_is_full(const struct table *t)
{
	uint32_t most = t->max_sessions / DISCARD_SHARE;

	return __atomic_load_n(&t->count[COUNT_DISCARD], __ATOMIC_RELAXED) >= (most ? most : 1);
}

/* All but the links and the sequence numbers, with what the kernel has counted until now. */
static void copy_slot(struct table *t, struct session *s, struct session *copy)
{
	if (s->flags & FLAG_ENTRY)
		offload_merge(t, s);
	memcpy(copy, s, offsetof(struct session, tcp));
	memset((char *)copy + offsetof(struct session, tcp), 0, sizeof(*s) - offsetof(struct session, tcp));
}

void session_copy_out(struct table *t, struct session *s, struct session_copy *copy)
{
	copy->id = session_id(t, s);
	copy_slot(t, s, &copy->session);
	copy->timeout = session_timeout(t, s);
}

bool session_read(struct table *t, uint32_t id, struct session *copy)
{
	struct session *s;

	if (id < 1 || id > t->max_sessions)
		return false;
	s = session_at(t, id);
	spin_lock(&s->lock);
	copy_slot(t, s, copy);
	session_unlock(s);
	return true;
}

/* The slot, locked, if that life of its session goes on; else NULL.  generation 0: whichever. */
struct session *session_alive(struct table *t, uint32_t id, uint32_t generation)
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

/* ACTIVE -> OPENING: the first packet of a PREDICT session has come, and it begins its life as a flow.  The ager may have
 * it in its hand; it will see that this is not the life that it took out of the wheel. */
struct session *session_retake(struct table *t, uint32_t id, uint32_t generation)
{
	struct session *s = session_alive(t, id, generation);

	if (!s)
		return NULL;
	assert(s->type == SESSION_PREDICT);
	count_session(t, s, -1);
	wheel_remove(t, s);
	session_set_state(s, SESSION_OPENING);
	session_unlock(s);
	return s;
}

bool session_end_inspection(struct table *t, uint32_t id, uint32_t generation)
{
	struct session *s = session_alive(t, id, generation);

	if (!s)
		return false;
	s->flags &= (uint16_t)~FLAG_INSPECTED;
	session_unlock(s);
	return true;
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
	offload_take_off(t, s);
	s->egress = egress;
	session_unlock(s);
	return true;
}
