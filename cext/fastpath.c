/* fastpath.c - the whole life of a packet whose session exists, and the first half of the life of one whose does not. */
#include <netinet/in.h>

#include "internal.h"

static void account(struct session *s, int dir, uint32_t len)
{
	s->bytes[dir] += len;
	s->packets[dir]++;
}

static bool has_translation(const struct session *s)
{
	return s->flags & (FLAG_SNAT | FLAG_DNAT);
}

static void translation_of(const struct session *s, int dir, struct translation *nat)
{
	nat->from = s->key[dir];
	nat->to = key_mirror(&s->key[!dir], s->key[dir].zone);
	nat->l3_delta = s->l3_delta[dir];
	nat->l4_delta = s->l4_delta[dir];
	nat->delivered = s->flags & FLAG_HOST && s->key[dir].zone != ZONE_HOST;
}

/* A connection begins with a SYN, or where that is allowed with what comes later in it. */
static bool may_begin(const struct packet *pkt, const struct burst *b)
{
	if (pkt->key.proto != IPPROTO_TCP || (pkt->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK | TCP_FLAG_RST)) == TCP_FLAG_SYN)
		return true;
	return !b->table->settings.reject_non_syn && !(pkt->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_RST));
}

/* Whether what begins no session is answered as a host would (RFC 9293 section 3.10.7.1): never a RST. */
static bool wants_reset(const struct packet *pkt, const struct burst *b)
{
	return b->table->settings.reset_non_syn[pkt->zone] && !(pkt->tcp_flags & TCP_FLAG_RST);
}

static struct session *find_call(const struct packet *pkt, const struct burst *b, int *dir)
{
	struct flow_key key = pkt->key;

	key.dport = pkt->call;
	return table_lookup(b->table, &key, dir);
}

/* Whether a packet of a call without a session may be the first of one that was announced: then Python is asked. */
static bool may_be_announced(const struct packet *pkt, const struct burst *b)
{
	return b->table->settings.calls_announced && !(pkt->mark & MARK_SEEN) &&
	       __atomic_load_n(&b->table->count[COUNT_PREDICT], __ATOMIC_RELAXED);
}

/* The session that claims a packet, locked.  A packet of a PPTP call belongs to that call if it was announced, else to
 * whatever GRE its two hosts exchange. */
static struct session *find(const struct packet *pkt, const struct burst *b, int *dir)
{
	struct session *s = pkt->call ? find_call(pkt, b, dir) : NULL;

	if (s || (pkt->call && may_be_announced(pkt, b)))
		return s;
	return table_find(b->table, &pkt->key, pkt->hash, pkt->hint, dir);
}

/* The session whose packet an error quotes, locked, and the direction in which the error travels.  The quoted packet left
 * towards the zone that the error comes from, so its mirror is the key of what comes from there.  An error of our own
 * kernel (HOOK_OUTPUT) may be about a packet on its way to any zone. */
static struct session *find_quoted(const struct packet *pkt, const struct burst *b, int *dir)
{
	struct flow_key key = key_mirror(&pkt->quoted, pkt->zone);
	struct session *s = table_lookup(b->table, &key, dir);

	if (!s && key.proto == IPPROTO_GRE) {
		key.sport = 0;
		s = table_lookup(b->table, &key, dir);
	}
	if (s || pkt->hook != HOOK_OUTPUT)
		return s;
	for (int zone = table_zone_max(b->table); zone && !s; zone--) {
		key.zone = (uint8_t)zone;
		s = table_lookup(b->table, &key, dir);
	}
	return s;
}

static bool is_redirect_v4(const struct packet *pkt)
{
	return pkt->key.family == 4 && pkt->icmp_type == 5;
}

/* An error of the firewall's own kernel that concerns none of our sessions and goes where no zone is: loopback, a
 * management network, or back to a translated address of ours that has no session any more. */
static bool concerns_host_only(const struct packet *pkt, const struct burst *b)
{
	return pkt->hook == HOOK_OUTPUT && table_zone(b->table, pkt->ifindex) == ZONE_NONE;
}

/* Delivers an ICMP error in its receiver's view; it neither ends nor refreshes the session.  The session vouches for the
 * one who sent the quoted packet, so only he may be told; for the sender of the error nobody vouches, so he must not bear
 * an address of another zone.  On a virtual wire (HOOK_FORWARD) addresses are nobody's. */
static enum verdict pass_error(struct packet *pkt, const struct burst *b)
{
	struct translation nat;
	struct session *s;
	bool translated;
	int dir;

	if (memcmp(pkt->key.dst, pkt->quoted.src, 16))
		return drop(b, FLOW_ICMP_ERROR_NO_SESSION);
	if (pkt->hook == HOOK_PREROUTING && table_is_foreign(b->table, pkt->key.src, pkt->zone))
		return drop(b, FLOW_ICMP_ERROR_SPOOF);
	s = find_quoted(pkt, b, &dir);
	if (!s)
		return concerns_host_only(pkt, b) ? VERDICT_ACCEPT : drop(b, FLOW_ICMP_ERROR_NO_SESSION);
	if (s->state[dir] == SESSION_DISCARD) {
		session_unlock(s);
		return drop(b, FLOW_DISCARD_HIT);
	}
	translated = has_translation(s);
	translation_of(s, dir, &nat);
	if (s->flags & FLAG_ADJUSTED)
		adjust_quote(b->table, s, dir, pkt);
	session_unlock(s);
	if (translated && is_redirect_v4(pkt))      /* it would lead the sender past the translation */
		return drop(b, FLOW_ICMP_REDIRECT);
	count_in(b->counter, PKT_ICMP_ERROR, 1);
	if (!translated)
		return VERDICT_ACCEPT;
	nat_rewrite_error(pkt, &nat);
	return VERDICT_REWRITTEN;
}

/* Discovery needs no session, so it may only be for this link: a group, a link-local address, or our own.  Both ends of a
 * virtual wire (HOOK_FORWARD) are on one link.  A redirect would lead a host past the firewall that it crosses. */
static enum verdict pass_link_control(const struct packet *pkt, const struct burst *b)
{
	const uint8_t *dst = pkt->key.dst;
	bool on_link = dst[0] == 0xff || (dst[0] == 0xfe && (dst[1] & 0xc0) == 0x80);

	if (pkt->icmp_type == ICMPV6_REDIRECT && pkt->hook != HOOK_FORWARD)
		return drop(b, FLOW_ICMP_REDIRECT);
	if (pkt->hook == HOOK_PREROUTING && !on_link && !table_is_own(b->table, dst))
		return drop(b, FLOW_LINK_CONTROL_TRANSIT);
	count_in(b->counter, PKT_LINK_CONTROL, 1);
	return VERDICT_ACCEPT;
}

/* SCTP and others whose checksum the NIC was to compute: the kernel forgets that when the payload goes back. */
static bool can_complete_checksum(const struct packet *pkt)
{
	return pkt->l4_checksum || (pkt->checksum != CHECKSUM_PARTIAL && pkt->checksum != CHECKSUM_SUPER);
}

static enum verdict drop_discarded(const struct packet *pkt, struct session *s, int dir, const struct burst *b)
{
	account(s, dir, pkt->ip_len);
	session_unlock(s);
	return drop(b, FLOW_DISCARD_HIT);
}

/* A segment that no router will pass on never reaches its receiver, so it says nothing of the connection. */
static bool dies_here(const struct packet *pkt, const struct session *s)
{
	uint8_t hops = pkt->data[pkt->key.family == 4 ? 8 : 7];

	return hops <= 1 && pkt->hook == HOOK_PREROUTING && !(s->flags & FLAG_HOST);
}

/* Too large for the slow queue to hand it over whole.  Super-packets the kernel cuts for it. */
static bool is_oversize(const struct packet *pkt)
{
	return pkt->ip_len > INSPECT_MAX && pkt->checksum != CHECKSUM_SUPER && !(pkt->mark & MARK_TRACKED);
}

/* Whether the slow path has to read a packet of an inspected session before it goes on.  A connection of which it has not
 * seen everything it cannot follow any further. */
static enum verdict inspection(const struct packet *pkt, struct session *s, const struct burst *b)
{
	if (pkt->mark & MARK_TRACKED || pkt->tcp_flags & TCP_FLAG_RST || dies_here(pkt, s))
		return VERDICT_CONTINUE;
	if (!is_oversize(pkt)) {
		count_in(b->counter, PKT_INSPECT, 1);
		return VERDICT_INSPECT;
	}
	count_in(b->counter, ALG_OVERSIZE_PASS, 1);
	if (pkt->key.proto == IPPROTO_TCP)
		s->flags &= (uint16_t)~FLAG_INSPECTED;
	return VERDICT_CONTINUE;
}

/* The MSS that a SYN of the session may offer at most: what both interfaces let through, 0 if anything.  IPv6's header
 * is 20 bytes longer, so its packets are as long as IPv4's.  Where text may be edited there must be room for it. */
static uint16_t mss_limit(const struct packet *pkt, const struct session *s, const struct burst *b)
{
	uint16_t mss = table_mss(b->table, s->ingress, s->egress), offered = get16(pkt->data + pkt->mss_at);

	if (mss && pkt->key.family == 6)
		mss -= 20;
	if (!(s->flags & FLAG_INSPECTED) || !has_translation(s) || offered < 2 * INSPECT_ROOM)
		return mss;
	if (!mss || mss > offered)
		mss = offered;
	return mss > 2 * INSPECT_ROOM ? mss - INSPECT_ROOM : mss;
}

/* A packet of an offloaded connection has come this way: what it tells, the kernel must know; what it begins, only we can
 * watch.  An entry that still rests is told too, so that what is merged from it is never half the sequence space old. */
static void follow_offload(struct session *s, const struct burst *b)
{
	offload_publish(b->table, s);
	if (!tcp_is_plain(s))
		offload_take_off(b->table, s);
}

/* Tracks and accounts a packet, once. */
static enum verdict track(struct packet *pkt, struct session *s, int dir, const struct burst *b)
{
	enum verdict v;

	if (pkt->mark & MARK_TRACKED)
		return VERDICT_CONTINUE;
	if (s->flags & FLAG_ENTRY)
		offload_merge(b->table, s);
	if (pkt->key.proto != IPPROTO_TCP) {
		session_touch(s, b);
	} else if (!dies_here(pkt, s)) {
		if (s->flags & FLAG_ADJUSTED)
			adjust_read(b->table, s, dir, pkt);
		if ((v = tcp_track(pkt, s, dir, b)) != VERDICT_CONTINUE)
			return v;
		if (s->flags & FLAG_ENTRY)
			follow_offload(s, b);
	}
	account(s, dir, pkt->ip_len);
	if (__atomic_load_n(&b->table->offload, __ATOMIC_RELAXED) && !(s->flags & (OFFLOAD_NEVER | FLAG_OFFERED)))
		offload_consider(b, pkt, s, dir);
	return VERDICT_CONTINUE;
}

/* Lets a packet of session s pass, which is locked before and not after. */
static enum verdict pass(struct packet *pkt, struct session *s, int dir, const struct burst *b)
{
	struct translation nat;
	enum verdict v;
	uint16_t mss;
	bool translated, changed;

	if (s->flags & FLAG_INSPECTED && is_oversize(pkt) && b->table->settings.drop_oversize)
		v = drop(b, ALG_OVERSIZE_DROP);
	else
		v = track(pkt, s, dir, b);
	if (v == VERDICT_CONTINUE && s->flags & FLAG_INSPECTED)
		v = inspection(pkt, s, b);
	if (v != VERDICT_CONTINUE) {
		session_unlock(s);
		return v;
	}
	mss = pkt->mss_at ? mss_limit(pkt, s, b) : 0;
	translated = has_translation(s);
	changed = s->flags & FLAG_ADJUSTED;
	if (translated || mss || changed)
		translation_of(s, dir, &nat);
	if (changed)
		adjust_write(b->table, s, dir, pkt, nat.delivered);
	session_unlock(s);
	changed |= mss && mss_clamp(pkt, mss, nat.delivered);
	if (!translated)
		return changed ? VERDICT_REWRITTEN : VERDICT_ACCEPT;
	if (!can_complete_checksum(pkt))
		return drop(b, FLOW_NAT_CHECKSUM);
	nat_rewrite(pkt, &nat);
	return VERDICT_REWRITTEN;
}

/* VERDICT_PUNT, not counted: the session is over, and the packet begins the next one. */
static enum verdict hit(struct packet *pkt, struct session *s, int dir, const struct burst *b)
{
	if (s->state[dir] == SESSION_DISCARD)
		return drop_discarded(pkt, s, dir, b);
	return pass(pkt, s, dir, b);
}

static enum verdict punt(const struct burst *b)
{
	count_in(b->counter, PKT_PUNT, 1);
	return VERDICT_PUNT;
}

/* Begins the session of a packet of a class that is decided already, and lets the packet go on as a hit.  A new DISCARD
 * session has counted it. */
static enum verdict begin(struct packet *pkt, const struct burst *b)
{
	int64_t begun = cache_begin(pkt, b);
	struct session *s;
	enum verdict v;
	int dir;

	if (!begun || !(s = find(pkt, b, &dir)))
		return punt(b);
	if (begun == INSTALL_EXISTS || s->state[dir] != SESSION_DISCARD) {
		v = hit(pkt, s, dir, b);
		return v == VERDICT_PUNT ? punt(b) : v;
	}
	session_unlock(s);
	return drop(b, FLOW_POLICY_DENY);
}

/* A miss begins a session or goes to the slow path, unless it has been there, or could not begin a session anyway. */
static enum verdict miss(struct packet *pkt, const struct burst *b)
{
	if (pkt->mark & MARK_SEEN)
		return drop(b, FLOW_MARKED_MISS);
	if (may_begin(pkt, b))
		return begin(pkt, b);
	return wants_reset(pkt, b) ? punt(b) : drop(b, FLOW_TCP_NON_SYN_DROP);
}

enum verdict fastpath_parse(struct packet *pkt, const struct burst *b)
{
	count_in(b->counter, PKT_RECV, 1);
	count_in(b->counter, BYTES_RECV, pkt->len);
	if (pkt->mark & (MARK_SEEN | MARK_TRACKED)) {
		count_in(b->counter, PKT_AGAIN, 1);
		count_in(b->counter, BYTES_AGAIN, pkt->len);
	}
	pkt->zone = pkt->hook == HOOK_OUTPUT ? ZONE_HOST : table_zone(b->table, pkt->ifindex);
	if (pkt->zone == ZONE_NONE)
		return drop(b, FLOW_NO_INTERFACE);
	return packet_parse(pkt, b);
}

enum verdict fastpath_decide(struct packet *pkt, const struct burst *b)
{
	struct session *s;
	enum verdict v;
	int dir;

	if (pkt->kind == PACKET_LINK_CONTROL)
		return pass_link_control(pkt, b);
	if (pkt->kind == PACKET_ICMP_ERROR)
		return pass_error(pkt, b);
	if (!(s = find(pkt, b, &dir)))
		return miss(pkt, b);
	v = hit(pkt, s, dir, b);
	return v == VERDICT_PUNT ? begin(pkt, b) : v;
}

/* The session that claims a parsed packet, or whose packet it quotes: for who only wants to know. */
struct session *fastpath_find(const struct packet *pkt, const struct burst *b, int *dir)
{
	if (pkt->kind == PACKET_LINK_CONTROL)
		return NULL;
	return pkt->kind == PACKET_ICMP_ERROR ? find_quoted(pkt, b, dir) : find(pkt, b, dir);
}

enum verdict fastpath_take(struct table *t, uint32_t shard, struct packet *pkt, uint32_t now)
{
	struct burst b = {.table = t, .counter = t->counter[shard], .shard = shard, .now = now};
	enum verdict v;

	if (diag_is_on(t))
		return diag_take(pkt, &b, COUNTERS);
	v = fastpath_parse(pkt, &b);
	return v == VERDICT_CONTINUE ? fastpath_decide(pkt, &b) : v;
}

/* What the slow path asks of a packet that was a miss a moment ago. */
enum verdict slowpath_look(struct table *t, struct packet *pkt)
{
	struct burst b = {.table = t, .counter = t->counter[SHARD_SLOW], .shard = SHARD_SLOW, .now = table_now()};
	struct session *s;
	enum verdict v;
	int dir;

	pkt->zone = pkt->hook == HOOK_OUTPUT ? ZONE_HOST : table_zone(t, pkt->ifindex);
	if (pkt->zone == ZONE_NONE)
		return drop(&b, FLOW_NO_INTERFACE);
	if ((v = packet_parse(pkt, &b)) != VERDICT_CONTINUE)
		return v;
	if (pkt->kind != PACKET_FLOW)      /* the hot queues decide about those themselves */
		return drop(&b, FLOW_SLOWPATH_ERROR);
	if (!(s = find(pkt, &b, &dir))) {
		if (pkt->mark & MARK_TRACKED)      /* its session has ended while it waited */
			return drop(&b, FLOW_MARKED_MISS);
		if (may_begin(pkt, &b))
			return VERDICT_PUNT;
		return wants_reset(pkt, &b) ? VERDICT_RESET : drop(&b, FLOW_TCP_NON_SYN_DROP);
	}
	pkt->session = session_id(t, s);
	pkt->generation = s->generation;
	pkt->dir = (uint8_t)dir;
	session_unlock(s);
	return VERDICT_ACCEPT;
}
