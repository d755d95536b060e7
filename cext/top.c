/* top.c - who has most of the table: sessions, bytes, packets or growth, summed up by something they have in common.
 *
 * One pass over the slots, each locked for as long as it is read.  The sums stand in an open-addressed table that lives as
 * long as the question, with room for twice as many groups as there may be: one for each session, MAX_GROUPS at most.
 * In a larger table of sessions whoever comes too late for a group of its own is summed up in `left_out`, so that the
 * answer says what it does not know.
 *
 * Growth needs two moments.  top_mark() remembers the bytes of each session that passes the filter; what has come since
 * is what it has grown by, all of it where the session is younger.  One that has ended in between loads nobody any more.
 */
#include <stdlib.h>

#include "internal.h"

#define MAX_GROUPS 1048576u

struct groups {
	struct top_row *row;          /* free: without sessions */
	uint32_t size;
	uint32_t used;
};

/* One for each session id. */
struct top_mark {
	uint64_t bytes;
	uint32_t generation;          /* 0: not marked */
};

static uint64_t session_bytes(const struct session *s)
{
	return s->bytes[0] + s->bytes[1];
}

struct top_mark *top_mark(struct table *t, const struct session_filter *filter)
{
	struct top_mark *marks = calloc(t->max_sessions + 1ull, sizeof(*marks));

	for (uint32_t id = 1; marks && id <= t->max_sessions; id++) {
		struct session *s = session_filtered(t, filter, id);

		if (!s)
			continue;
		if (s->flags & FLAG_ENTRY)
			offload_merge(t, s);
		marks[id] = (struct top_mark){.bytes = session_bytes(s), .generation = s->generation};
		session_unlock(s);
	}
	return marks;
}

void top_forget(struct top_mark *marks)
{
	free(marks);
}

static uint64_t growth(const struct top_mark *marks, uint32_t id, const struct session *s)
{
	if (!marks)
		return 0;
	return session_bytes(s) - (marks[id].generation == s->generation ? marks[id].bytes : 0);
}

static void top_key(const struct session *s, enum top_by by, uint8_t *key)
{
	uint32_t number = by == TOP_RULE ? s->rule : by == TOP_APPLICATION ? s->application : s->key[0].zone;

	memset(key, 0, 16);
	if (by == TOP_SOURCE)
		memcpy(key, s->key[0].src, 16);
	else if (by == TOP_DESTINATION)
		memcpy(key, s->key[0].dst, 16);
	else
		memcpy(key, &number, sizeof(number));
}

/* What one session adds to its group. */
static void top_read(struct table *t, struct session *s, enum top_by by, const struct top_mark *marks, struct top_row *row)
{
	if (s->flags & FLAG_ENTRY)
		offload_merge(t, s);
	top_key(s, by, row->key);
	row->amount[TOP_SESSIONS] = 1;
	row->amount[TOP_BYTES] = session_bytes(s);
	row->amount[TOP_PACKETS] = s->packets[0] + s->packets[1];
	row->amount[TOP_GROWTH] = growth(marks, session_id(t, s), s);
}

static void amounts_add(uint64_t *sum, const uint64_t *amount)
{
	for (int i = 0; i < TOP_AMOUNTS; i++)
		sum[i] += amount[i];
}

/* The sums of the group that has this key, new if need be; NULL: there is no room for it. */
static uint64_t *group_of(const struct table *t, struct groups *g, const uint8_t *key)
{
	uint32_t at = (uint32_t)(table_hash16(t, key) % g->size);

	for (;; at = (at + 1) % g->size) {
		struct top_row *row = &g->row[at];

		if (row->amount[TOP_SESSIONS] && memcmp(row->key, key, sizeof(row->key)))
			continue;
		if (!row->amount[TOP_SESSIONS]) {
			if (g->used == g->size / 2)
				return NULL;
			g->used++;
			memcpy(row->key, key, sizeof(row->key));
		}
		return row->amount;
	}
}

static void sum_up(struct table *t, const struct session_filter *filter, enum top_by by, const struct top_mark *marks,
		   struct groups *g, struct top_total *total)
{
	for (uint32_t id = 1; id <= t->max_sessions; id++) {
		struct session *s = session_filtered(t, filter, id);
		struct top_row row;
		uint64_t *sum;

		if (!s)
			continue;
		top_read(t, s, by, marks, &row);
		session_unlock(s);
		sum = group_of(t, g, row.key);
		amounts_add(sum ? sum : total->left_out, row.amount);
		amounts_add(total->amount, row.amount);
	}
	total->groups = g->used;
}

/* Of two equal groups the one with the smaller key comes first, so that an answer does not depend on the hash. */
static bool goes_before(const struct top_row *a, const struct top_row *b, enum top_order order)
{
	if (a->amount[order] != b->amount[order])
		return a->amount[order] > b->amount[order];
	return memcmp(a->key, b->key, sizeof(a->key)) < 0;
}

/* Puts a group in its place among the found ones, of which only n are wanted; how many there are then. */
static uint32_t insert(struct top_row *rows, uint32_t found, uint32_t n, const struct top_row *row, enum top_order order)
{
	uint32_t at = found;

	while (at && goes_before(row, &rows[at - 1], order))
		at--;
	if (at == n)
		return found;
	found += found < n;
	memmove(&rows[at + 1], &rows[at], (found - at - 1) * sizeof(*rows));
	rows[at] = *row;
	return found;
}

int32_t table_top(struct table *t, const struct session_filter *filter, enum top_by by, enum top_order order,
		  const struct top_mark *marks, struct top_row *rows, uint32_t n, struct top_total *total)
{
	struct groups g = {.size = 2 * (t->max_sessions < MAX_GROUPS ? t->max_sessions : MAX_GROUPS)};
	uint32_t found = 0;

	memset(total, 0, sizeof(*total));
	g.row = calloc(g.size, sizeof(*g.row));
	if (!g.row)
		return -1;
	sum_up(t, filter, by, marks, &g, total);
	for (uint32_t i = 0; i < g.size; i++)
		if (g.row[i].amount[TOP_SESSIONS])
			found = insert(rows, found, n, &g.row[i], order);
	free(g.row);
	return (int32_t)found;
}
