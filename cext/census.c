/* census.c - how many live sessions there are of each kind, for who watches from outside: one pass, each slot locked for
 * as long as it is looked at.
 */
#include "internal.h"

_Static_assert(SESSION_FREE == 6 && SESSION_PREDICT == 1 && COUNT_OTHER == 3, "the sizes of struct census");

static void census_add(struct census *census, const struct session *s)
{
	census->sessions[s->state[0]][s->type][session_protocol(s)]++;
	census->application[s->application]++;
	census->offloaded += (s->flags & FLAG_OFFLOADED) != 0;
	census->inspected += (s->flags & FLAG_INSPECTED) != 0;
}

void table_census(struct table *t, struct census *census)
{
	static const struct session_filter all;

	memset(census, 0, sizeof(*census));
	for (uint32_t id = 1; id <= t->max_sessions; id++) {
		struct session *s = session_filtered(t, &all, id);

		if (!s)
			continue;
		census_add(census, s);
		session_unlock(s);
	}
}
