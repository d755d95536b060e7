/* wheel.c - when a session is looked at again.
 *
 * One turn of the wheel is 8,192 slots of a tenth of a second.  A session stands in the slot of the tick at which its
 * timer would run out had nothing come; a packet only writes last_seen, so traffic never touches the wheel.  When the
 * slot is served a session that was seen meanwhile is put where its timer runs out now (at most one turn ahead), so
 * expiry costs in proportion to what comes due, not to what exists.  Only a timer that becomes shorter (FIN, RST) moves
 * a session at once: three times in the life of a connection.
 *
 * Accelerated aging divides every timer by a factor while the table is filled above a threshold.  When that begins the
 * timers of sessions already standing in the wheel become shorter all at once: a sweep over the slots re-schedules them,
 * SWEEP_SLOTS at a tick.
 *
 * Locks: the session's before the wheel's.  table_expire() takes a session out of its slot first, then locks the session:
 * wheel_due 0 in between tells everybody else that the ager has it in its hand.
 */
#include "internal.h"

#define SWEEP_SLOTS 65536
#define BATCH 64

_Static_assert(SESSION_END_UNKNOWN - SESSION_END_THREAT == END_UNKNOWN, "ends are counted by their reason");

void wheel_init(struct table *t, uint32_t now)
{
	t->wheel_tick = now;
}

/* The timer in force in ticks, as accelerated aging makes it. */
uint32_t session_timeout(struct table *t, const struct session *s)
{
	uint32_t factor = t->settings.aging_factor;

	if (!__atomic_load_n(&t->accelerated, __ATOMIC_RELAXED) || factor < 2)
		return s->timeout;
	return s->timeout / factor;
}

/* When its timer runs out: the tick it was last seen in is spent in full. */
uint32_t wheel_deadline(struct table *t, const struct session *s)
{
	return s->last_seen + session_timeout(t, s) + 1;
}

static void link_in(struct table *t, struct session *s, uint32_t due)
{
	uint32_t id = session_id(t, s), *head;

	if ((int32_t)(due - t->wheel_tick) < 0)
		due = t->wheel_tick;
	if (due - t->wheel_tick >= WHEEL_SLOTS)
		due = t->wheel_tick + WHEEL_SLOTS - 1;
	if (!due)
		due = 1;
	head = &t->wheel_head[due % WHEEL_SLOTS];
	s->wheel_due = due;
	s->wheel_prev = 0;
	s->wheel_next = *head;
	if (*head)
		session_at(t, *head)->wheel_prev = id;
	*head = id;
	__atomic_fetch_add(&t->wheel_scheduled, 1, __ATOMIC_RELAXED);
}

static void link_out(struct table *t, struct session *s)
{
	if (s->wheel_prev)
		session_at(t, s->wheel_prev)->wheel_next = s->wheel_next;
	else
		t->wheel_head[s->wheel_due % WHEEL_SLOTS] = s->wheel_next;
	if (s->wheel_next)
		session_at(t, s->wheel_next)->wheel_prev = s->wheel_prev;
	s->wheel_due = 0;
	__atomic_fetch_sub(&t->wheel_scheduled, 1, __ATOMIC_RELAXED);
}

/* Brings a session forward; never puts it off.  One in the ager's hand is left there: it is judged in a moment. */
void wheel_schedule(struct table *t, struct session *s, uint32_t due)
{
	spin_lock(&t->wheel_lock);
	if (s->wheel_due && (int32_t)(due - s->wheel_due) < 0) {
		link_out(t, s);
		link_in(t, s, due);
	}
	spin_unlock(&t->wheel_lock);
}

void wheel_insert(struct table *t, struct session *s, uint32_t due)
{
	spin_lock(&t->wheel_lock);
	link_in(t, s, due);
	spin_unlock(&t->wheel_lock);
}

void wheel_remove(struct table *t, struct session *s)
{
	spin_lock(&t->wheel_lock);
	if (s->wheel_due)
		link_out(t, s);
	spin_unlock(&t->wheel_lock);
}

/* Takes up to `most` sessions out of the slots up to `now`; *done when none is left there. */
static uint32_t take_due(struct table *t, uint32_t now, uint32_t *ids, uint32_t most, bool *done)
{
	uint32_t n = 0;

	spin_lock(&t->wheel_lock);
	while (n < most && (int32_t)(now - t->wheel_tick) >= 0) {
		uint32_t id = t->wheel_head[t->wheel_tick % WHEEL_SLOTS];

		if (id) {
			link_out(t, session_at(t, id));
			ids[n++] = id;
		} else if (t->wheel_tick == now) {
			break;
		} else {
			t->wheel_tick++;
		}
	}
	*done = n < most;
	spin_unlock(&t->wheel_lock);
	return n;
}

/* True if the session, in hand, has ended and was copied; else it is back in the wheel, or its slot has begun another
 * life meanwhile (a DISCARD session may be evicted at any time) and is not ours to judge. */
static bool judge(struct table *t, uint32_t id, uint32_t now, struct session_copy *ended)
{
	struct session *s = session_at(t, id);
	uint32_t due;
	bool over;

	spin_lock(&s->lock);
	if (s->wheel_due || !(session_matches(s) || s->state[0] == SESSION_CLOSING)) {
		session_unlock(s);
		return false;
	}
	if (s->flags & FLAG_ENTRY)
		offload_merge(t, s);
	due = wheel_deadline(t, s);
	over = s->state[0] == SESSION_CLOSING || (int32_t)(now - due) >= 0;
	if (over && s->flags & FLAG_ENTRY && offload_lingers(t, s, now)) {
		over = false;
		due = now + 1;
	}
	if (over) {
		if (s->state[0] != SESSION_CLOSING)
			session_set_closing(t, s, END_AGED_OUT);
		session_set_closed(s);
		session_copy_out(t, s, ended);
		count_in(t->counter[SHARD_AGER], (enum counter)(SESSION_END_THREAT + s->end_reason), 1);
	} else {
		wheel_insert(t, s, due);
	}
	session_unlock(s);
	return over;
}

/* Above the threshold timers are shorter; a sweep re-schedules what stands in the wheel by the old ones. */
static void accelerate(struct table *t)
{
	uint64_t live = __atomic_load_n(&t->allocated, __ATOMIC_RELAXED);
	uint32_t threshold = t->settings.aging_threshold, above, end;

	above = threshold && live * 100 >= (uint64_t)t->max_sessions * threshold;
	if (above && !t->accelerated)
		t->wheel_sweep = 1;
	__atomic_store_n(&t->accelerated, above, __ATOMIC_RELAXED);
	if (!above || !t->wheel_sweep)
		return;
	end = t->wheel_sweep + SWEEP_SLOTS;
	for (; t->wheel_sweep < end && t->wheel_sweep <= t->max_sessions; t->wheel_sweep++) {
		struct session *s = session_at(t, t->wheel_sweep);

		spin_lock(&s->lock);
		if (session_matches(s))
			wheel_schedule(t, s, wheel_deadline(t, s));
		session_unlock(s);
	}
	if (t->wheel_sweep > t->max_sessions)
		t->wheel_sweep = 0;
}

uint32_t table_expire(struct table *t, uint32_t now, struct session_copy *ended, uint32_t n)
{
	uint32_t ids[BATCH], found = 0;
	bool done = false;

	accelerate(t);
	while (!done && found < n) {
		uint32_t due = take_due(t, now, ids, n - found < BATCH ? n - found : BATCH, &done);

		for (uint32_t i = 0; i < due; i++)
			found += judge(t, ids[i], now, &ended[found]);
	}
	return found;
}
