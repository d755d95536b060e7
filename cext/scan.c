/* scan.c - sessions chosen by a filter: copies for views, ends for `clear`.  Who sums them up is in top.c and census.c. */
#include "internal.h"

static bool filter_addresses(const struct session_filter *f, const struct session *s)
{
	const struct flow_key *key = &s->key[0];

	return (!f->source_set || address_in_range(key->src, f->source[0], f->source[1])) &&
	       (!f->destination_set || address_in_range(key->dst, f->destination[0], f->destination[1])) &&
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

static bool filter_state(const struct session_filter *f, uint8_t state)
{
	if (state == SESSION_INIT || state == SESSION_OPENING || state == SESSION_FREE)
		return false;
	return !f->state || state == f->state - 1;
}

/* The slot, locked, if its session is alive and passes; else NULL.  The first look, without the lock, spares the rest of
 * an empty table. */
struct session *session_filtered(struct table *t, const struct session_filter *f, uint32_t id)
{
	struct session *s = session_at(t, id);

	if (!filter_state(f, __atomic_load_n(&s->state[0], __ATOMIC_RELAXED)))
		return NULL;
	spin_lock(&s->lock);
	if (s->flags & FLAG_ENTRY && (f->min_bytes || f->max_bytes))
		offload_merge(t, s);
	if (filter_state(f, s->state[0]) && filter_addresses(f, s) && filter_decision(f, s) && filter_amounts(f, s))
		return s;
	session_unlock(s);
	return NULL;
}

uint32_t table_scan(struct table *t, const struct session_filter *filter, uint32_t *next, struct session_copy *out, uint32_t n)
{
	uint32_t id = *next ? *next : 1, found = 0;

	for (; id <= t->max_sessions && found < n; id++) {
		struct session *s = session_filtered(t, filter, id);

		if (!s)
			continue;
		session_copy_out(t, s, &out[found++]);
		session_unlock(s);
	}
	*next = id <= t->max_sessions ? id : 0;
	return found;
}

uint32_t table_count_all(struct table *t, const struct session_filter *filter)
{
	uint32_t found = 0;

	for (uint32_t id = 1; id <= t->max_sessions; id++) {
		struct session *s = session_filtered(t, filter, id);

		if (!s)
			continue;
		session_unlock(s);
		found++;
	}
	return found;
}

uint32_t table_close_all(struct table *t, const struct session_filter *filter, uint32_t end_reason)
{
	uint32_t closed = 0, now = table_now();

	for (uint32_t id = 1; id <= t->max_sessions; id++) {
		struct session *s = session_filtered(t, filter, id);

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
