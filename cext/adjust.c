/* adjust.c - sequence numbers of a connection whose text an ALG has made longer or shorter.
 *
 * Per direction, in the numbering of its sender: the bytes [start, end) went on as others, and from `end` on the
 * receiver's numbers are `delta` ahead.
 *
 *     sender     ......[start   end).............[start   end)......
 *     receiver   ......[  other bytes  )............[other)...........
 *     ahead by   base                   delta             delta
 *
 * Sequence numbers gain what the last edit before them has; acknowledgements of the other side, SACK blocks included,
 * lose it; one inside an edit acknowledges nothing of it.  Only the last few edits are kept, and those only while a packet
 * may lie before them: what is older has been acknowledged long ago.  Tracking (tcp.c) sees each direction in its sender's
 * numbering.
 *
 * Few connections are edited, so their edits stand in a table of their own, found by session id within one cache line of
 * owners.  Edits of a session are read and written under its slot's lock, owners under adjust_lock.
 */
#include <netinet/in.h>

#include "internal.h"

#define PROBES 16u
#define WINDOW_LARGEST (1u << 30)      /* RFC 7323 section 2.3 */

static uint32_t place_of(uint32_t id, uint32_t probe)
{
	return ((id * PROBES) + probe) % MAX_ADJUSTED;
}

static struct adjust *adjust_at(const struct table *t, uint32_t place)
{
	return (struct adjust *)((char *)t + t->adjusts) + place;
}

static struct adjust *adjust_find(const struct table *t, uint32_t id)
{
	for (uint32_t i = 0; i < PROBES; i++)
		if (__atomic_load_n(&t->adjust_owner[place_of(id, i)], __ATOMIC_ACQUIRE) == id)
			return adjust_at(t, place_of(id, i));
	return NULL;
}

static struct adjust *adjust_take(struct table *t, uint32_t id)
{
	struct adjust *a = NULL;

	spin_lock(&t->adjust_lock);
	for (uint32_t i = 0; i < PROBES && !a; i++) {
		if (t->adjust_owner[place_of(id, i)])
			continue;
		a = adjust_at(t, place_of(id, i));
		memset(a, 0, sizeof(*a));
		__atomic_store_n(&t->adjust_owner[place_of(id, i)], id, __ATOMIC_RELEASE);
	}
	spin_unlock(&t->adjust_lock);
	return a;
}

/* Of a session that is no more. */
void adjust_drop(struct table *t, uint32_t id)
{
	spin_lock(&t->adjust_lock);
	for (uint32_t i = 0; i < PROBES; i++)
		if (t->adjust_owner[place_of(id, i)] == id)
			__atomic_store_n(&t->adjust_owner[place_of(id, i)], 0, __ATOMIC_RELEASE);
	spin_unlock(&t->adjust_lock);
}

static uint32_t ahead(const struct adjust_flow *f)
{
	return f->n ? f->edit[f->n - 1].delta : f->base;
}

static void forget_oldest(struct adjust_flow *f)
{
	f->base = f->edit[0].delta;
	f->n--;
	memmove(&f->edit[0], &f->edit[1], f->n * sizeof(f->edit[0]));
}

static void push(struct adjust_flow *f, uint32_t start, uint32_t end, uint32_t grown)
{
	struct edit e = {.start = start, .end = end, .delta = ahead(f) + grown};

	if (f->n == MAX_EDITS)
		forget_oldest(f);
	f->edit[f->n++] = e;
}

/* Two gigabytes behind, an edit would seem to lie ahead; no window reaches back half as far from what is acknowledged. */
static void settle(struct adjust_flow *f, uint32_t acked)
{
	while (f->n && before(f->edit[0].end + WINDOW_LARGEST, acked))
		forget_oldest(f);
}

/* The receiver's number of a byte; one inside an edit begins where the edit begins. */
static uint32_t sequence_out(const struct adjust_flow *f, uint32_t seq)
{
	uint32_t delta = f->base;

	for (uint32_t i = 0; i < f->n; i++) {
		if (before(seq, f->edit[i].end))
			return before(f->edit[i].start, seq) ? f->edit[i].start + delta : seq + delta;
		delta = f->edit[i].delta;
	}
	return seq + delta;
}

/* The sender's number of what its receiver acknowledges.  An edit of which a part is there counts for nothing: what ends
 * within it ends before it, what begins within it begins behind it. */
static uint32_t acknowledged(const struct adjust_flow *f, uint32_t ack, bool begins)
{
	for (uint32_t i = f->n; i-- > 0;) {
		const struct edit *e = &f->edit[i];

		if (!before(ack, e->end + e->delta))
			return ack - e->delta;
		if (before(e->start + (i ? f->edit[i - 1].delta : f->base), ack))
			return begins ? e->end : e->start;
	}
	return ack - f->base;
}

bool session_adjust(struct table *t, uint32_t id, uint32_t generation, uint32_t dir, uint32_t start, uint32_t end, int32_t grown)
{
	struct session *s = session_alive(t, id, generation);
	struct adjust *a;

	assert(dir < 2);
	if (!s)
		return false;
	assert(s->key[0].proto == IPPROTO_TCP);
	a = s->flags & FLAG_ADJUSTED ? adjust_find(t, id) : adjust_take(t, id);
	if (a) {
		s->flags |= FLAG_ADJUSTED;
		push(&a->flow[dir], start, end, (uint32_t)grown);
	}
	session_unlock(s);
	return a;
}

/* The acknowledgement of a packet in its receiver's numbering, for tracking; the packet stays as it is. */
void adjust_read(const struct table *t, const struct session *s, int dir, struct packet *pkt)
{
	const struct adjust *a = adjust_find(t, session_id(t, s));

	pkt->ack = acknowledged(&a->flow[!dir], pkt->ack, false);
}

static void put32(uint8_t *at, uint32_t v)
{
	v = htonl(v);
	memcpy(at, &v, 4);
}

/* The sequence number that an error quotes, in the numbering of whoever sent the quoted packet: the error travels the
 * other way, in direction `dir`.  Eight bytes of the quoted header are there; nobody looks at its checksum. */
void adjust_quote(const struct table *t, const struct session *s, int dir, struct packet *pkt)
{
	const struct adjust *a = adjust_find(t, session_id(t, s));
	uint8_t *seq = pkt->data + pkt->quoted_l4 + 4;

	put32(seq, acknowledged(&a->flow[!dir], get32(seq), true));
}

static void write_sacks(uint8_t *option, const struct adjust_flow *f)
{
	for (uint32_t i = 2; i + 8 <= option[1]; i += 8) {
		put32(option + i, acknowledged(f, get32(option + i), true));
		put32(option + i + 4, acknowledged(f, get32(option + i + 4), false));
	}
}

static void write_options(uint8_t *option, const uint8_t *end, const struct adjust_flow *f)
{
	for (; (option = tcp_option_at(option, end)); option += option[1])
		if (*option == TCP_OPTION_SACK)
			write_sacks(option, f);
}

/* Writes a packet's numbers as its receiver knows them; session locked.  A signed segment (TCP-AO, MD5) does not survive. */
void adjust_write(const struct table *t, const struct session *s, int dir, struct packet *pkt, bool delivered)
{
	struct adjust *a = adjust_find(t, session_id(t, s));
	uint8_t *tcp = pkt->data + pkt->l4, old[TCP_HEADER_MAX];
	uint32_t header = (tcp[12] >> 4) * 4u;

	settle(&a->flow[dir], s->tcp[!dir].ack);
	memcpy(old, tcp, header);
	put32(tcp + 4, sequence_out(&a->flow[dir], pkt->seq));
	if (pkt->tcp_flags & TCP_FLAG_ACK) {
		put32(tcp + 8, acknowledged(&a->flow[!dir], get32(tcp + 8), false));
		write_options(tcp + 20, tcp + header, &a->flow[!dir]);
	}
	header_changed(pkt, old, header, delivered);
}
