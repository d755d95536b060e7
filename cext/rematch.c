/* rematch.c - live sessions after a commit: what a new policy makes of them.
 *
 * A policy looks at zones, intervals of addresses and ports, protocol and application, as cache.c tells.  Sessions that
 * agree in all of these are one class, and Python judges each class once, however many sessions it has.
 *
 *     rematch_classes(slots) ─► classes, and how many sessions each has ─► Python ─► rematch_apply(slots, judged classes)
 *
 * Done for some tens of thousands of slots at a time, so that memory is bounded.  A session that begins between the two
 * calls was decided by the new policy; if it belongs to a class nevertheless, it is judged as that class is, which is the
 * same.  Discarded sessions are not judged: whoever commits ends them.  Predicted ones go with their parents.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>

#include "internal.h"

#define SEEN_BYTES offsetof(struct rematch_class, sessions)

_Static_assert(SEEN_BYTES == 32, "what is compared as bytes has no holes");

static uint32_t address_interval(const uint8_t *starts, uint32_t n, const uint8_t *address)
{
	uint32_t low = 0;

	for (; n > 1; n -= n / 2)
		low += memcmp(starts + 16 * (low + n / 2), address, 16) <= 0 ? n / 2 : 0;
	return low;
}

static uint16_t port_interval(const uint16_t *starts, uint32_t n, uint16_t port)
{
	uint32_t low = 0;

	for (; n > 1; n -= n / 2)
		low += starts[low + n / 2] <= port ? n / 2 : 0;
	return (uint16_t)low;
}

static uint16_t port_of(const struct class_starts *starts, const struct session *s, uint8_t kind)
{
	const struct flow_key *key = &s->key[0];
	int udp = key->proto == IPPROTO_UDP;

	if (kind == REMATCH_TO_HOST)
		return ntohs(s->key[1].sport);
	if (key->proto != IPPROTO_TCP && !udp)
		return 0;
	return port_interval(starts->port[udp], starts->ports[udp], ntohs(key->dport));
}

static bool rematch_concerns(const struct session *s)
{
	return s->state[0] == SESSION_ACTIVE && s->type == SESSION_FLOW && s->key[0].zone != ZONE_HOST;
}

static uint8_t kind_of(const struct session *s)
{
	if (s->flags & FLAG_HOST)
		return REMATCH_TO_HOST;
	return s->parent && s->flags & FLAG_PREDICTED ? REMATCH_CHILD : REMATCH_THROUGH;
}

static struct rematch_class class_of(const struct class_starts *starts, const struct session *s)
{
	const struct flow_key *key = &s->key[0];
	uint8_t kind = kind_of(s);

	return (struct rematch_class){
		.source = kind == REMATCH_CHILD ? s->parent : address_interval(starts->address[0], starts->addresses[0], key->src),
		.destination = kind == REMATCH_CHILD ? s->start_tick : address_interval(starts->address[1], starts->addresses[1], key->dst),
		.ingress = s->ingress,
		.egress = s->egress,
		.rule = s->rule,
		.nat_rule = s->flags & (FLAG_SNAT | FLAG_DNAT) ? s->nat_rule : 0,
		.application = s->application,
		.port = port_of(starts, s, kind),
		.from_zone = key->zone,
		.to_zone = s->key[1].zone,
		.proto = key->proto,
		.kind = kind,
	};
}

static int class_compare(const void *a, const void *b)
{
	return memcmp(a, b, SEEN_BYTES);
}

static uint32_t fold_classes(struct rematch_class *classes, uint32_t n)
{
	uint32_t kept = 0;

	qsort(classes, n, sizeof(*classes), class_compare);
	for (uint32_t i = 0; i < n; i++)
		if (kept && !class_compare(&classes[kept - 1], &classes[i]))
			classes[kept - 1].sessions++;
		else
			classes[kept++] = classes[i];
	return kept;
}

/* The slot, locked, if its session is one that is judged; else NULL. */
static struct session *rematch_slot(struct table *t, uint32_t id)
{
	struct session *s = session_at(t, id);

	if (__atomic_load_n(&s->state[0], __ATOMIC_RELAXED) != SESSION_ACTIVE)
		return NULL;
	spin_lock(&s->lock);
	if (rematch_concerns(s))
		return s;
	session_unlock(s);
	return NULL;
}

uint32_t rematch_classes(struct table *t, const struct class_starts *starts, uint32_t first, uint32_t n, struct rematch_class *out)
{
	uint32_t found = 0;

	for (uint32_t id = first; id <= t->max_sessions && id - first < n; id++) {
		struct session *s = rematch_slot(t, id);

		if (!s)
			continue;
		out[found] = class_of(starts, s);
		out[found++].sessions = 1;
		session_unlock(s);
	}
	return fold_classes(out, found);
}

static void follow_class(struct table *t, struct session *s, const struct rematch_class *class, uint32_t end_reason)
{
	if (class->ends) {
		session_set_closing(t, s, end_reason);
		wheel_schedule(t, s, table_now());
		return;
	}
	s->rule = class->rule_now;
	s->flags = (uint16_t)((s->flags & ~FLAG_LOG_END) | (class->log_end ? FLAG_LOG_END : 0));
}

uint32_t rematch_apply(struct table *t, const struct class_starts *starts, uint32_t first, uint32_t n,
		       const struct rematch_class *classes, uint32_t known, uint32_t end_reason)
{
	uint32_t ended = 0;

	for (uint32_t id = first; id <= t->max_sessions && id - first < n; id++) {
		struct session *s = rematch_slot(t, id);
		struct rematch_class own, *class;

		if (!s)
			continue;
		own = class_of(starts, s);
		class = bsearch(&own, classes, known, sizeof(own), class_compare);
		if (class) {
			follow_class(t, s, class, end_reason);
			ended += class->ends;
		}
		session_unlock(s);
	}
	return ended;
}
