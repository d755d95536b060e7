/* offload.c - sessions that the kernel forwards by itself (offload.bpf.c): how they get there, what they count there, and
 * how they come back.
 *
 *     worker: nothing more needs to be seen of it ─► offer ring ─► Python: where does it go ─► session_offload()
 *                                                                                 entry, then both flows into the table
 *     RST, the end of the session, a hop that changes ─► offload_take_off(): flows out of the table, numbers merged
 *
 * Table and entries (struct offloaded) are memory of the kernel's, mapped here: a session comes and goes, and what the
 * program counts is read, without a system call.  The table has a bucket of a cache line for at most four flows on
 * average, which is never chained: who finds no slot is not offloaded.  A session that is offloaded is merged with its
 * entry whenever somebody looks at it or judges one of its packets: packets and bytes move over, the numbers of TCP are
 * copied.  What C has tracked since is published to the entry.
 *
 * A program that found the entry a moment before its flows were removed may still count.  So the entry stays with its
 * session (FLAG_ENTRY), and is told what C tracks, until a sweep that comes later, or the session's end, has merged it
 * once more.
 *
 * Entry i of a session is one of a few that follow its id; as many entries as sessions are one for each.  Locks: the
 * session's slot is locked wherever its entry is touched, and before a bucket's.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "internal.h"
#include "offloadhash.h"

#define CLAIM_PROBES 8
#define OFFERS 1024u
#define ENOUGH_PACKETS 3          /* of a session without a handshake: one question and its answer are not worth it */
#define ENOUGH_SEGMENTS 8u        /* nor are they of a connection, handshake included */
#define QUESTIONS 16u             /* of a worker in a tick: to answer them costs Python a hundredth of its time */
#define SETTLE 10u                /* ticks after which no program can still hold an entry */
#define LINGER 2u                 /* the same, where a session waits for it to end */
#define WORD 64u
#define TICK_NS (1000000000u / TENTHS)

_Static_assert(sizeof(struct offload_flow) == 128, "two cache lines: what a packet reads, what it writes");
_Static_assert(offsetof(struct offload_flow, packets) == 64, "the line that is written begins here");

/* One writer, one reader. */
struct offers {
	uint32_t head;
	uint32_t tail;
	uint32_t asked;               /* questions in tick asked_at */
	uint32_t asked_at;
	uint32_t id[OFFERS];
};

static bool draw_secret(struct offload_secret *secret)
{
	if (getrandom(secret->add, sizeof(secret->add), 0) != sizeof(secret->add) ||
	    getrandom(&secret->odd, sizeof(secret->odd), 0) != sizeof(secret->odd))
		return false;
	secret->odd |= 1;
	return true;
}

/* At most four flows to a bucket on average: one that overflows is a rarity even when every entry is taken. */
static void lay_out(struct offload *o)
{
	o->bucket_count = 2;
	o->secret.shift = 63;
	while (o->bucket_count < o->capacity / 2) {
		o->bucket_count *= 2;
		o->secret.shift--;
	}
}

struct offload *offload_create(uint32_t capacity)
{
	struct offload *o = calloc(1, sizeof(*o));

	assert(capacity <= MAX_OFFLOADED);
	if (!o)
		return NULL;
	o->capacity = capacity;
	lay_out(o);
	o->used = calloc(capacity / WORD + 1, sizeof(*o->used));
	o->offers = calloc(SHARD_SLOW, sizeof(*o->offers));
	o->hops = hops_create();
	o->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (o->used && o->offers && o->hops && o->bell >= 0 && draw_secret(&o->secret))
		return o;
	offload_destroy(o);
	return NULL;
}

void offload_destroy(struct offload *o)
{
	if (!o)
		return;
	if (o->bell >= 0)
		close(o->bell);
	free(o->used);
	free(o->offers);
	hops_destroy(o->hops);
	free(o);
}

void offload_begin(struct table *t, struct offload *o)
{
	__atomic_store_n(&t->offload, o, __ATOMIC_RELEASE);
}

static struct offload *offload_of(const struct table *t)
{
	return __atomic_load_n(&t->offload, __ATOMIC_ACQUIRE);
}

/* NULL: nothing is offloaded, or nothing more. */
static struct offload *offload_taking(const struct table *t)
{
	struct offload *o = offload_of(t);

	return o && !__atomic_load_n(&o->ended, __ATOMIC_RELAXED) ? o : NULL;
}

/* ---- the kernel's table ---- */

static uint32_t *flow_lock(struct offload *o, uint32_t bucket)
{
	return &o->flow_lock[bucket % FLOW_LOCKS];
}

/* Puts `with` where `what` stands in the bucket of a hash; false: it stands nowhere. */
static bool slot_replace(struct offload *o, uint64_t hash, uint32_t what, uint32_t with)
{
	uint32_t at = offload_bucket_of(hash, &o->secret), *slot = o->buckets[at].slot;
	int i = 0;

	spin_lock(flow_lock(o, at));
	while (i < OFFLOAD_SLOTS && slot[i] != what)
		i++;
	if (i < OFFLOAD_SLOTS)
		__atomic_store_n(&slot[i], with, __ATOMIC_RELEASE);
	spin_unlock(flow_lock(o, at));
	return i < OFFLOAD_SLOTS;
}

static uint64_t hash_of(const struct offload *o, const struct flow_key *key)
{
	return offload_hash(key, &o->secret, key->family);
}

static void unmap_flow(struct offload *o, const struct flow_key *key, uint32_t ref)
{
	uint64_t hash = hash_of(o, key);

	slot_replace(o, hash, offload_slot(hash, ref), 0);
}

static bool map_flow(struct offload *o, const struct flow_key *key, uint32_t ref)
{
	uint64_t hash = hash_of(o, key);

	return slot_replace(o, hash, 0, offload_slot(hash, ref));
}

static bool map_flows(struct offload *o, const struct session *s, uint32_t index)
{
	if (!map_flow(o, &s->key[0], index << 1))
		return false;
	if (map_flow(o, &s->key[1], index << 1 | 1))
		return true;
	unmap_flow(o, &s->key[0], index << 1);
	return false;
}

/* ---- entries ---- */

static uint32_t *owner_of(const struct offload *o, uint32_t index)
{
	return &o->entries[index].flow[0].session;
}

static uint32_t place_of(const struct offload *o, uint32_t id, uint32_t probe)
{
	return (uint32_t)(((uint64_t)id + probe) % o->capacity);
}

/* Index plus one; 0: none. */
static uint32_t find_entry(const struct offload *o, uint32_t id)
{
	for (uint32_t i = 0; i < CLAIM_PROBES; i++)
		if (__atomic_load_n(owner_of(o, place_of(o, id, i)), __ATOMIC_RELAXED) == id)
			return place_of(o, id, i) + 1;
	return 0;
}

/* Whoever was here before has rested; only the owner is written under others' eyes. */
static void clear_entry(struct offloaded *entry, uint32_t id)
{
	memset(entry, 0, offsetof(struct offload_flow, session));
	memset(&entry->flow[0].session + 1, 0, sizeof(*entry) - offsetof(struct offload_flow, session) - sizeof(id));
}

static uint32_t claim_entry(struct offload *o, uint32_t id)
{
	for (uint32_t i = 0; i < CLAIM_PROBES; i++) {
		uint32_t index = place_of(o, id, i), nobody = 0;

		if (!__atomic_compare_exchange_n(owner_of(o, index), &nobody, id, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			continue;
		clear_entry(&o->entries[index], id);
		__atomic_fetch_or(&o->used[index / WORD], 1ull << index % WORD, __ATOMIC_SEQ_CST);
		return index + 1;
	}
	return 0;
}

static void release_entry(struct offload *o, uint32_t index)
{
	__atomic_fetch_and(&o->used[index / WORD], ~(1ull << index % WORD), __ATOMIC_RELAXED);
	__atomic_store_n(owner_of(o, index), 0, __ATOMIC_RELEASE);
}

static struct offloaded *entry_of(const struct table *t, const struct session *s)
{
	struct offload *o = offload_of(t);
	uint32_t found = o ? find_entry(o, session_id(t, s)) : 0;

	return found ? &o->entries[found - 1] : NULL;
}

/* ---- merging ---- */

static void raise_to(uint32_t *at, uint32_t value)
{
	uint32_t old = __atomic_load_n(at, __ATOMIC_RELAXED);

	while (before(old, value) && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

static void raise_numbers(struct tcp_flow *flow, const struct tcp_flow *from)
{
	raise_to(&flow->end, from->end);
	raise_to(&flow->max_end, from->max_end);
	raise_to(&flow->ack, from->ack);
	raise_to(&flow->max_window, from->max_window);
}

static void count_atomically(struct table *t, enum counter which, uint64_t n)
{
	__atomic_fetch_add(&t->counter[SHARD_OFFLOAD][which], n, __ATOMIC_RELAXED);
}

/* Packets and bytes of one direction move over, whichever of the two the program has come to; true if there were any. */
static bool take_counts(struct table *t, struct session *s, int dir, struct offload_flow *flow)
{
	uint64_t packets = 0, bytes = 0;

	if (__atomic_load_n(&flow->packets, __ATOMIC_RELAXED))
		packets = __atomic_exchange_n(&flow->packets, 0, __ATOMIC_RELAXED);
	if (__atomic_load_n(&flow->bytes, __ATOMIC_RELAXED))
		bytes = __atomic_exchange_n(&flow->bytes, 0, __ATOMIC_RELAXED);
	if (!packets && !bytes)
		return false;
	s->packets[dir] += packets;
	s->bytes[dir] += bytes;
	count_atomically(t, PKT_OFFLOAD, packets);
	count_atomically(t, BYTES_OFFLOAD, bytes);
	return true;
}

/* While it is offloaded the entry is ahead, by more than half of the sequence space if need be. */
static void take_numbers(struct session *s, int dir, const struct offload_flow *flow)
{
	struct tcp_flow numbers;

	if (s->key[0].proto != IPPROTO_TCP)
		return;
	numbers.end = __atomic_load_n(&flow->tcp.end, __ATOMIC_RELAXED);
	numbers.max_end = __atomic_load_n(&flow->tcp.max_end, __ATOMIC_RELAXED);
	numbers.ack = __atomic_load_n(&flow->tcp.ack, __ATOMIC_RELAXED);
	numbers.max_window = __atomic_load_n(&flow->tcp.max_window, __ATOMIC_RELAXED);
	if (s->flags & FLAG_OFFLOADED)
		s->tcp[dir] = numbers;
	else
		raise_numbers(&s->tcp[dir], &numbers);
}

/* Of a connection that was answered the kernel takes no less from the client than what acknowledges the answer.  Its clock
 * may be a few milliseconds behind, but the timer of the handshake has done its part. */
static void take_handshake(struct table *t, struct session *s, int dir)
{
	struct burst b = {.table = t, .now = s->last_seen};

	if (dir != 0 || s->key[0].proto != IPPROTO_TCP || s->tcp_state != TCP_SYN_RECEIVED)
		return;
	s->tcp_state = TCP_ESTABLISHED;
	if (session_matches(s))
		session_touch(s, &b);
}

void offload_merge(struct table *t, struct session *s)
{
	struct offloaded *entry = entry_of(t, s);
	bool seen = false;

	for (int dir = 0; entry && dir < 2; dir++) {
		struct offload_flow *flow = &entry->flow[dir];
		struct burst b = {.table = t, .now = (uint32_t)(__atomic_load_n(&flow->last_seen, __ATOMIC_RELAXED) / TICK_NS)};

		take_numbers(s, dir, flow);
		seen = take_counts(t, s, dir, flow);
		if (seen)
			take_handshake(t, s, dir);
		if (seen && session_matches(s) && !before(b.now, s->last_seen))
			session_touch(s, &b);
	}
}

/* Whether a packet may have waited in its queue while the kernel forwarded later ones: it came before they could be, or
 * is a FIN that lay in the windows when it passed the kernel's program, which has counted it in and left it to us. */
bool offload_overtakes(const struct table *t, const struct session *s, int dir, const struct packet *pkt)
{
	const struct offloaded *entry = s->flags & FLAG_ENTRY ? entry_of(t, s) : NULL;

	if (!entry)
		return false;
	if (pkt->arrived && pkt->arrived <= entry->flow[0].begun)
		return true;
	return pkt->tcp_flags & TCP_FLAG_FIN && pkt->seq + pkt->seq_len == s->tcp[dir].end;
}

void offload_publish(struct table *t, const struct session *s)
{
	struct offloaded *entry = entry_of(t, s);

	for (int dir = 0; entry && dir < 2; dir++)
		raise_numbers(&entry->flow[dir].tcp, &s->tcp[dir]);
}

/* ---- there and back ---- */

static uint16_t difference(const void *old, const void *new, uint32_t len)
{
	uint32_t sum = (uint16_t)~checksum_add(old, len, 0) + (uint32_t)checksum_add(new, len, 0);

	return checksum_add((const uint8_t *)&sum, sizeof(sum), 0);
}

static void fill_flow(const struct session *s, int dir, const struct hop *hop, struct offload_flow *flow)
{
	const struct flow_key *from = &s->key[dir];
	struct flow_key to = key_mirror(&s->key[!dir], from->zone);

	memcpy(flow->src, to.src, 16);
	memcpy(flow->dst, to.dst, 16);
	flow->sport = to.sport;
	flow->dport = to.dport;
	flow->address_delta = difference(from->src, to.src, 32);
	flow->port_delta = difference(&from->sport, &to.sport, 4);
	flow->translated = !key_equal(from, &to);
	flow->proto = from->proto | (from->family == 6 ? OFFLOAD_IPV6 : 0);
	flow->zone = from->zone;
	flow->window_scale = s->window_scale[dir];
	flow->tcp = s->key[0].proto == IPPROTO_TCP ? s->tcp[dir] : (struct tcp_flow){0};
	flow->hop = *hop;
}

static enum offload_result put_in(struct table *t, struct offload *o, struct session *s, const struct hop *const hops[2])
{
	uint32_t id = session_id(t, s), found = s->flags & FLAG_ENTRY ? find_entry(o, id) : claim_entry(o, id);

	if (!found)
		return OFFLOAD_FULL;
	if (s->flags & FLAG_ENTRY)
		offload_merge(t, s);
	for (int dir = 0; dir < 2; dir++)
		fill_flow(s, dir, hops[dir], &o->entries[found - 1].flow[dir]);
	s->flags |= FLAG_ENTRY;
	if (!map_flows(o, s, found - 1))
		return OFFLOAD_FULL;
	o->entries[found - 1].flow[0].begun = wall_clock();
	s->flags |= FLAG_OFFLOADED;
	s->flags &= (uint16_t)~FLAG_OFFERED;
	count_atomically(t, SESSION_OFFLOADED, 1);
	return OFFLOAD_DONE;
}

/* HOP_KNOWN: it is done.  Else what is not known of one of the two hops, or HOP_NONE if they will not do. */
static enum hop_answer offload_by_known_hops(struct table *t, struct offload *o, struct session *s)
{
	uint32_t epoch = hops_epoch(o->hops);
	struct hop hop[2];

	for (int dir = 0; dir < 2; dir++) {
		const struct flow_key *back = &s->key[!dir];
		enum hop_answer answer = hop_find(t, o->hops, back->src, back->zone, epoch, &hop[dir]);

		if (answer != HOP_KNOWN)
			return answer;
	}
	if (hop[0].ifindex != s->egress || put_in(t, o, s, (const struct hop *const[]){&hop[0], &hop[1]}) != OFFLOAD_DONE)
		return HOP_NONE;
	if (hops_epoch(o->hops) != epoch)
		offload_take_off(t, s);
	return HOP_KNOWN;
}

/* Nothing but its forwarding is left to be done. */
static bool suits(const struct session *s)
{
	if (s->type != SESSION_FLOW || s->state[0] != SESSION_ACTIVE || s->flags & OFFLOAD_NEVER)
		return false;
	switch (s->key[0].proto) {
	case IPPROTO_TCP:
		return s->tcp_state == TCP_SYN_RECEIVED || (tcp_is_plain(s) && s->tcp_state != TCP_TIME_WAIT);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return s->key[0].sport;
	case IPPROTO_UDP:
		return true;
	}
	return false;
}

/* It has gone on for so long that to offload it pays, whatever that takes. */
static bool is_ripe(const struct session *s)
{
	uint64_t packets = s->packets[0] + s->packets[1];

	if (s->key[0].proto == IPPROTO_TCP)
		return s->tcp_state != TCP_SYN_RECEIVED && packets >= ENOUGH_SEGMENTS;
	return packets >= ENOUGH_PACKETS;
}

/* By a packet of the server's: the handshake lacks but an acknowledgement, which the kernel can take as well. */
static bool is_answered(const struct packet *pkt, const struct session *s)
{
	const uint8_t answer = TCP_FLAG_SYN | TCP_FLAG_ACK;

	return pkt->key.proto == IPPROTO_TCP && s->tcp_state == TCP_SYN_RECEIVED && (pkt->tcp_flags & answer) == answer;
}

static void ring(const struct offload *o)
{
	const uint64_t once = 1;

	if (write(o->bell, &once, sizeof(once)) < 0)
		assert(errno == EAGAIN);      /* it rings already, and has not been heard for ages */
}

int offload_bell(struct table *t)
{
	const struct offload *o = offload_of(t);

	return o ? o->bell : -1;
}

static void offer(struct table *t, struct offload *o, struct offers *offers, struct session *s)
{
	uint32_t head = offers->head, tail = __atomic_load_n(&offers->tail, __ATOMIC_ACQUIRE);

	if (head - tail == OFFERS)
		return;
	offers->id[head % OFFERS] = session_id(t, s);
	__atomic_store_n(&offers->head, head + 1, __ATOMIC_RELEASE);
	s->flags |= FLAG_OFFERED;
	if (head == tail)
		ring(o);
}

/* Python is asked where packets go, for the sake of the connections that will follow. */
static bool may_ask(struct offers *offers, uint32_t now)
{
	if (offers->asked_at != now)
		offers->asked = 0;
	offers->asked_at = now;
	return offers->asked++ < QUESTIONS;
}

void offload_consider(const struct burst *b, const struct packet *pkt, struct session *s, int dir)
{
	struct offload *o = offload_taking(b->table);
	enum hop_answer answer;
	bool ripe;

	if (!o || b->shard >= SHARD_SLOW || !suits(s))
		return;
	ripe = is_ripe(s);
	if (!ripe && !(dir == 1 && is_answered(pkt, s)))
		return;
	answer = offload_by_known_hops(b->table, o, s);
	if (answer != HOP_KNOWN && (ripe || (answer == HOP_UNKNOWN && may_ask(&o->offers[b->shard], b->now))))
		offer(b->table, o, &o->offers[b->shard], s);
}

static void view_out(const struct table *t, const struct session *s, struct offload_view *view)
{
	view->id = session_id(t, s);
	view->generation = s->generation;
	view->ingress = s->ingress;
	view->egress = s->egress;
	memcpy(view->key, s->key, sizeof(view->key));
}

/* A copy of the session that was offered, if it is still alive. */
static bool look_at_offer(struct table *t, uint32_t id, struct offload_view *view)
{
	struct session *s = session_alive(t, id, 0);
	bool offered;

	if (!s)
		return false;
	offered = s->flags & FLAG_OFFERED;
	if (offered)
		view_out(t, s, view);
	session_unlock(s);
	return offered;
}

uint32_t offload_offers(struct table *t, struct offload_view *out, uint32_t n)
{
	struct offload *o = offload_of(t);
	uint32_t found = 0;

	for (uint32_t shard = 0; o && shard < SHARD_SLOW; shard++) {
		struct offers *offers = &o->offers[shard];
		uint32_t head = __atomic_load_n(&offers->head, __ATOMIC_ACQUIRE), tail = offers->tail;

		for (; tail != head && found < n; tail++)
			found += look_at_offer(t, offers->id[tail % OFFERS], &out[found]);
		__atomic_store_n(&offers->tail, tail, __ATOMIC_RELEASE);
	}
	return found;
}

enum offload_result session_offload(struct table *t, uint32_t id, uint32_t generation, const struct hop *c2s, const struct hop *s2c)
{
	const struct hop *const hops[2] = {c2s, s2c};
	struct offload *o = offload_taking(t);
	struct session *s = o ? session_alive(t, id, generation) : NULL;
	enum offload_result result = OFFLOAD_UNSUITED;

	if (!s)
		return OFFLOAD_UNSUITED;
	if (suits(s))
		result = put_in(t, o, s, hops);
	else
		s->flags &= (uint16_t)~FLAG_OFFERED;
	session_unlock(s);
	return result;
}

/* The program stops forwarding it, and what it has counted is here. */
void offload_take_off(struct table *t, struct session *s)
{
	struct offload *o = offload_of(t);
	uint32_t index;

	if (!o || !(s->flags & FLAG_OFFLOADED))
		return;
	index = find_entry(o, session_id(t, s)) - 1;
	for (uint32_t dir = 0; dir < 2; dir++)
		unmap_flow(o, &s->key[dir], index << 1 | dir);
	offload_merge(t, s);
	s->flags &= (uint16_t)~FLAG_OFFLOADED;
	o->entries[index].flow[0].taken_off = table_now();
	count_atomically(t, SESSION_ONLOADED, 1);
}

/* Its time is up, but a program may still be counting a packet: then it is judged again in the next tick.  The one in which
 * it was taken off may be over in a moment, so it takes a whole one besides. */
bool offload_lingers(struct table *t, struct session *s, uint32_t now)
{
	const struct offloaded *entry = entry_of(t, s);
	bool forwarded = s->flags & FLAG_OFFLOADED;

	offload_take_off(t, s);
	return entry && (forwarded || before(now, entry->flow[0].taken_off + LINGER));
}

/* The session ends: the last of it is in its copy. */
void offload_forget(struct table *t, struct session *s)
{
	struct offload *o = offload_of(t);
	uint32_t found = o ? find_entry(o, session_id(t, s)) : 0;

	if (found)
		release_entry(o, found - 1);
	s->flags &= (uint16_t)~FLAG_ENTRY;
}

bool session_reconsider(struct table *t, uint32_t id, uint32_t generation)
{
	struct session *s = session_alive(t, id, generation);

	if (!s)
		return false;
	offload_take_off(t, s);
	s->flags &= (uint16_t)~FLAG_OFFERED;
	session_unlock(s);
	return true;
}

/* ---- sweeps ---- */

/* The next session from entry *at on that has one, locked; advances *at. */
static struct session *next_session(struct table *t, struct offload *o, uint32_t *at)
{
	for (; *at < o->capacity; ++*at) {
		uint64_t word = __atomic_load_n(&o->used[*at / WORD], __ATOMIC_SEQ_CST) >> *at % WORD;   /* hop.c */
		struct session *s;
		uint32_t id;

		if (!word) {
			*at |= WORD - 1;
			continue;
		}
		*at += (uint32_t)__builtin_ctzll(word);
		id = __atomic_load_n(owner_of(o, *at), __ATOMIC_RELAXED);
		if (!id)
			continue;
		s = session_at(t, id);
		spin_lock(&s->lock);
		if (s->flags & FLAG_ENTRY && *owner_of(o, *at) == id)
			return s;
		session_unlock(s);
	}
	return NULL;
}

static bool has_settled(const struct offloaded *entry)
{
	return table_now() - entry->flow[0].taken_off > SETTLE;
}

void offload_sweep(struct table *t, uint8_t *hops, uint32_t n)
{
	struct offload *o = offload_of(t);
	struct session *s;

	for (uint32_t at = 0; o && (s = next_session(t, o, &at)); at++) {
		const struct offloaded *entry = &o->entries[at];

		offload_merge(t, s);
		if (s->key[0].proto == IPPROTO_TCP && s->tcp_state == TCP_TIME_WAIT)
			offload_take_off(t, s);
		for (int dir = 0; dir < 2 && s->flags & FLAG_OFFLOADED; dir++)
			if (entry->flow[dir].hop.number < n)
				hops[entry->flow[dir].hop.number] = 1;
		if (!(s->flags & FLAG_OFFLOADED) && has_settled(entry))
			offload_forget(t, s);
		session_unlock(s);
	}
}

uint32_t offload_scan(struct table *t, uint32_t *next, struct offload_view *out, uint32_t n)
{
	struct offload *o = offload_of(t);
	uint32_t at = *next, found = 0;
	struct session *s;

	for (; o && found < n && (s = next_session(t, o, &at)); at++) {
		if (s->flags & FLAG_OFFLOADED) {
			view_out(t, s, &out[found]);
			for (int dir = 0; dir < 2; dir++)
				out[found].hop[dir] = o->entries[at].flow[dir].hop.number;
			found++;
		}
		session_unlock(s);
	}
	*next = o && at < o->capacity ? at : 0;
	return found;
}

static bool goes_by(const struct offloaded *entry, uint32_t hop)
{
	return hop == ANY_HOP || entry->flow[0].hop.number == hop || entry->flow[1].hop.number == hop;
}

uint32_t offload_drop_hop(struct table *t, uint32_t hop)
{
	struct offload *o = offload_of(t);
	uint32_t dropped = 0;
	struct session *s;

	for (uint32_t at = 0; o && (s = next_session(t, o, &at)); at++) {
		if (s->flags & FLAG_OFFLOADED && goes_by(&o->entries[at], hop)) {
			offload_take_off(t, s);
			dropped++;
		}
		session_unlock(s);
	}
	return dropped;
}

/* Everything stays where it is: a worker that has just offloaded a session takes it off by it, and sessions that end later
 * have a last packet counted there. */
void offload_end(struct table *t)
{
	struct offload *o = offload_of(t);

	if (!o)
		return;
	__atomic_store_n(&o->ended, 1, __ATOMIC_RELAXED);
	hops_forget(t);
	offload_drop_hop(t, ANY_HOP);
}
