/* install.c - a decision becomes a session.
 *
 * The session's own flow is entered into the hash first, then the return flow, whose key is the truth about translation: a
 * port is good when no live session answers to the key that it makes.  A flow that another thread has installed meanwhile
 * is found by the first, a clash by the second; then everything is taken back.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <time.h>

#include "internal.h"

#define PORT_TRIES 64                 /* ports whose return key clashes before we give up */

static bool make_room(const struct burst *b)
{
	if (!discard_evict(b->table))
		return false;
	count_in(b->counter, SESSION_DISCARD_EVICTED, 1);
	count_in(b->counter, SESSION_FREED, 1);
	return true;
}

/* The slot of what was expected, if it still is; else a free one. */
static struct session *take_slot(const struct burst *b, const struct decision *d)
{
	struct session *s;

	if (d->predicted && (s = session_retake(b->table, d->predicted, d->predicted_generation)))
		return s;
	if (d->discard && discard_is_full(b->table))
		make_room(b);
	while (!(s = session_take(b->table)))
		if (!make_room(b))
			return NULL;
	return s;
}

/* The key under which answers come back.  A translated port, or call id, is for those that have one. */
static struct flow_key return_key(const struct flow_key *key, const struct decision *d)
{
	struct flow_key back = key_mirror(key, d->egress_zone);

	if (d->source_nat != SOURCE_KEEP)
		memcpy(back.dst, d->source, 16);
	if (d->destination_nat) {
		memcpy(back.src, d->destination, 16);
		if (d->destination_port && key->dport)
			back.sport = d->destination_port;
	}
	if (d->source_nat == SOURCE_BOUND)
		back.dport = htons(d->port_min);
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
	s->flags = d->flags | (d->discard ? FLAG_ONE_WAY : 0);
	s->rule = d->rule;
	s->nat_rule = d->nat_rule;
	s->ingress = d->ingress;
	s->egress = d->egress;
	s->parent = d->parent;
	s->pool = 0;
	s->plane = 0;
	s->start = (uint32_t)wall.tv_sec;
	s->start_tick = now;
	s->last_seen = now;
	s->wheel_due = 0;
	s->timeout = session_timer(s, &t->timers[d->application], d->discard) * TENTHS;
	session_unlock(s);
}

/* lease: of the port, where a pool has lent it; else NULL. */
static void session_set_return_key(struct session *s, const struct flow_key *back, const struct lease *lease)
{
	spin_lock(&s->lock);
	s->key[1] = *back;
	s->pool = (uint16_t)(lease ? lease->pool + 1 : 0);
	s->plane = lease ? lease->plane : 0;
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

/* Ends the DISCARD session that a key belongs to; false: it belongs to a live one, or to none. */
static bool discard_make_way(const struct burst *b, const struct flow_key *key)
{
	int dir;
	struct session *s = table_lookup(b->table, key, &dir);
	bool discard;

	if (!s)
		return false;
	discard = s->state[0] == SESSION_DISCARD;
	if (discard) {
		session_set_closing(b->table, s, END_UNKNOWN);
		wheel_schedule(b->table, s, b->now);
	}
	session_unlock(s);
	return discard;
}

/* What was refused in the other direction does not keep an allowed session out. */
static enum put_result put_return_flow(const struct burst *b, const struct flow_key *back, uint32_t ref)
{
	enum put_result result = flow_put(b->table, back, ref);

	if (result == PUT_EXISTS && discard_make_way(b, back))
		result = flow_put(b->table, back, ref);
	return result;
}

/* Enters the return flow with a port of the pool, trying others while a live session answers to the same key: two
 * destinations that become one, or a port of ours that the peer happens to use. */
static int put_with_port(const struct burst *b, struct session *s, struct flow_key *back, const struct decision *d)
{
	struct table *t = b->table;
	uint32_t id = session_id(t, s);
	int32_t pool = natpool_find(t, d->source);
	struct lease lease = {.back = *back, .session = id, .pool = (uint32_t)pool, .min = d->port_min,
			      .max = d->port_max, .like = ntohs(s->key[0].sport)};

	if (pool < 0)
		return INSTALL_NO_PORT;
	for (int i = 0; i < PORT_TRIES; i++) {
		enum put_result result;

		if (!natpool_take(t, &lease))
			return INSTALL_NO_PORT;
		back->dport = htons(lease.port);
		session_set_return_key(s, back, &lease);
		result = put_return_flow(b, back, id << 1 | 1);
		if (result == PUT_DONE)
			return 0;
		natpool_give(t, &lease);
		if (result == PUT_NO_MEMORY)
			return INSTALL_FULL;
		lease.like ^= 1;      /* the only free port of that parity may be the one that clashes */
	}
	return INSTALL_NO_PORT;
}

/* A translated source that is an address of ours must not take the port of one of our own sockets: what is meant for the
 * socket would go to the session. */
static bool shadows_socket(const struct table *t, const struct flow_key *back, const struct decision *d)
{
	return d->source_nat == SOURCE_STATIC && natpool_is_reserved(t, back->proto, ntohs(back->dport)) &&
	       table_is_own(t, back->dst);
}

/* Another source port of the same parity. */
static uint16_t port_instead(uint16_t port)
{
	uint16_t other = (uint16_t)(1024 + random32() % 64512);

	return other ^ ((other ^ port) & 1);
}

/* Enters the return flow with the port it has.  A translated session whose key is taken (two virtual addresses that
 * collapse onto one server) gets another source port instead, as does one that would shadow a socket of ours; an
 * untranslated or bound one loses to the live session. */
static int put_as_it_is(const struct burst *b, struct session *s, struct flow_key *back, const struct decision *d)
{
	uint32_t ref = session_id(b->table, s) << 1 | 1;
	bool translated = d->source_nat != SOURCE_KEEP || d->destination_nat;
	bool may_change = translated && d->source_nat != SOURCE_BOUND && has_port(back);

	for (int i = 0; i < PORT_TRIES; i++) {
		enum put_result result = PUT_EXISTS;

		session_set_return_key(s, back, NULL);
		if (!shadows_socket(b->table, back, d))
			result = put_return_flow(b, back, ref);
		if (result == PUT_DONE)
			return 0;
		if (result == PUT_NO_MEMORY)
			return INSTALL_FULL;
		if (!may_change)
			return INSTALL_CLASH;
		back->dport = htons(port_instead(ntohs(back->dport)));
		count_in(b->counter, NAT_PORT_REALLOCATED, 1);
	}
	return INSTALL_CLASH;
}

/* Both flows into the hash, its own first; 0 or an install_error with nothing left behind.
 *
 * Nothing answers what was refused, so a DISCARD session has no return flow: whoever sends to a host what policy denies
 * could forbid it to open the same connection itself (RFC 5382 REQ-4a). */
static int put_flows(const struct burst *b, struct session *s, const struct flow_key *key, const struct decision *d)
{
	struct table *t = b->table;
	uint32_t ref = session_id(t, s) << 1;
	struct flow_key back = return_key(key, d);
	enum put_result result = flow_put(t, key, ref);
	int error;

	if (result != PUT_DONE)
		return result == PUT_EXISTS ? INSTALL_EXISTS : INSTALL_FULL;
	if (d->discard) {
		session_set_return_key(s, &back, NULL);
		return 0;
	}
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

/* As it will be in a moment. */
static void copy_begun(struct table *t, struct session *s, const struct decision *d, struct session_copy *begun)
{
	spin_lock(&s->lock);
	session_copy_out(t, s, begun);
	session_unlock(s);
	memset(begun->session.state, d->discard ? SESSION_DISCARD : SESSION_ACTIVE, sizeof(begun->session.state));
}

int64_t session_begin(const struct burst *b, const struct flow_key *key, const struct decision *d, struct session_copy *begun)
{
	struct session *s = take_slot(b, d);
	int error;

	assert(d->application < MAX_APPLICATIONS);
	if (!s)
		return INSTALL_FULL;
	session_fill(b->table, s, key, d);
	error = put_flows(b, s, key, d);
	if (error) {
		session_give_back(b->table, s);
		return error;
	}
	if (begun)      /* before anybody can end it */
		copy_begun(b->table, s, d, begun);
	session_open(b->table, s, d->discard);
	count_in(b->counter, SESSION_INSTALLED, 1);
	return session_id(b->table, s);
}

int64_t session_predict(struct table *t, uint32_t shard, const struct flow_key *key, const struct decision *d, uint32_t seconds)
{
	struct burst b = {.table = t, .counter = t->counter[shard], .now = table_now()};
	struct session *s = take_slot(&b, d);

	assert(shard < MAX_SHARDS && d->application < MAX_APPLICATIONS);
	if (!s)
		return install_failed(&b, INSTALL_FULL);
	session_fill(t, s, &key[0], d);
	session_set_return_key(s, &key[1], NULL);
	s->type = SESSION_PREDICT;
	s->timeout = seconds * TENTHS;
	session_open(t, s, false);
	count_in(b.counter, SESSION_PREDICTED, 1);
	return session_id(t, s);
}

int64_t session_install(struct table *t, uint32_t shard, const struct flow_key *key, const struct decision *d)
{
	struct burst b = {.table = t, .counter = t->counter[shard], .shard = shard, .now = table_now()};
	int64_t id;

	assert(shard < MAX_SHARDS);
	id = session_begin(&b, key, d, NULL);
	return id < 0 ? install_failed(&b, (int)id) : id;
}
