/* tcp.c - tracking a connection from the middle.
 *
 * One table says which segments a state accepts and what it becomes; one check says whether a segment lies in the
 * windows.  The check is van Rooij's ("Real Stateful TCP Packet Filtering in IP Filter", 2001): per direction we keep
 * what its sender has sent (end), how far its receiver has allowed it to go (max_end), what it expects next (ack) and
 * the largest window it has offered.
 *
 *   seq <= max_end of the sender                      not beyond what was allowed
 *   seq + len >= end - largest window of the peer     not older than what can still be useful
 *   ack <= end of the peer                            not of data that nobody sent
 *   ack >= end of the peer - ACK_WINDOW               not absurdly old
 *
 * A RST is believed as PAN-OS does and RFC 5961 asks of hosts: at the expected sequence it ends the connection, elsewhere
 * in the window it starts a short timer which later data cancels, outside it is dropped.  A SYN inside a connection
 * changes nothing: the host answers with a challenge ACK, and a client that has lost its memory answers that with an
 * exact RST.
 *
 * Not done: segments are not reassembled, options other than the window scale are not read.
 */
#include <netinet/in.h>

#include "internal.h"

#define ACK_WINDOW 66000u          /* how old an acknowledgement may be, unless the window is larger */
#define WINDOW_MAX (65535u << SCALE_UNKNOWN)
#define SCALE_UNKNOWN 14           /* of a connection whose SYNs we have not seen */

enum segment { SEGMENT_SYN, SEGMENT_SYN_ACK, SEGMENT_ACK, SEGMENT_FIN, SEGMENTS };

/* What a segment does, besides leading to a state of its own. */
enum step {
	NO = TCP_STATES,               /* dropped */
	PASS,                          /* delivered, but it changes nothing */
	CHAL,                          /* delivered: the peer remembers an older connection and challenges our SYN */
	REOP,                          /* a new connection on an old tuple: this session ends */
	DATA,                          /* the state follows from the FINs seen: none ESTABLISHED, one HALF_CLOSED, both
					  TIME_WAIT */
};

#define SENT TCP_SYN_SENT
#define RCVD TCP_SYN_RECEIVED
#define WAIT TCP_TIME_WAIT

static const uint8_t transitions[TCP_STATES][2][SEGMENTS] = {
	/*                         c2s SYN   SYN-ACK ACK   FIN       s2c SYN   SYN-ACK ACK   FIN */
	[TCP_NEW]            = { { SENT, NO,   DATA, NO },         { NO,   NO,   NO,   NO } },
	[TCP_SYN_SENT]       = { { SENT, NO,   NO,   NO },         { RCVD, RCVD, CHAL, NO } },
	[TCP_SYN_RECEIVED]   = { { RCVD, RCVD, DATA, DATA },       { RCVD, RCVD, RCVD, DATA } },
	[TCP_ESTABLISHED]    = { { PASS, PASS, DATA, DATA },       { PASS, PASS, DATA, DATA } },
	[TCP_HALF_CLOSED]    = { { PASS, NO,   DATA, DATA },       { PASS, PASS, DATA, DATA } },
	[TCP_TIME_WAIT]      = { { REOP, NO,   WAIT, WAIT },       { NO,   NO,   WAIT, WAIT } },
	[TCP_UNVERIFIED_RST] = { { PASS, NO,   DATA, DATA },       { PASS, PASS, DATA, DATA } },
};

static uint32_t later(uint32_t a, uint32_t b) { return before(a, b) ? b : a; }

static enum segment segment_of(const struct packet *pkt)
{
	if (pkt->tcp_flags & TCP_FLAG_SYN)
		return pkt->tcp_flags & TCP_FLAG_ACK ? SEGMENT_SYN_ACK : SEGMENT_SYN;
	return pkt->tcp_flags & TCP_FLAG_FIN ? SEGMENT_FIN : SEGMENT_ACK;
}

/* The timer that a session's state puts in force, in seconds. */
uint32_t session_timer(const struct session *s, const struct timers *timers, bool discard)
{
	switch (s->key[0].proto) {
	case IPPROTO_TCP:
		break;
	case IPPROTO_UDP:
		return discard ? timers->discard_udp : timers->udp;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return discard ? timers->discard_other : timers->icmp;
	default:
		return discard ? timers->discard_other : timers->other;
	}
	if (discard)
		return timers->discard_tcp;
	switch (s->tcp_state) {
	case TCP_NEW:
	case TCP_SYN_SENT:
		return timers->tcp_init;
	case TCP_SYN_RECEIVED:
		return timers->tcp_handshake;
	case TCP_HALF_CLOSED:
		return timers->tcp_half_closed;
	case TCP_TIME_WAIT:
		return timers->tcp_time_wait < timers->tcp_half_closed ? timers->tcp_time_wait : timers->tcp_half_closed;
	case TCP_UNVERIFIED_RST:
		return timers->tcp_unverified_rst;
	}
	return timers->tcp;
}

/* Restarts the timer of a session's state; a shorter one brings the session forward in the wheel. */
void session_touch(struct session *s, const struct burst *b)
{
	uint32_t before_ticks = s->timeout;

	s->timeout = session_timer(s, &b->table->timers[s->application], false) * TENTHS;
	s->last_seen = b->now;
	if (s->timeout < before_ticks)
		wheel_schedule(b->table, s, wheel_deadline(b->table, s));
}

static void enter(struct session *s, enum tcp_state state, const struct burst *b)
{
	s->tcp_state = state;
	session_touch(s, b);
}

static void learn_scale(struct session *s, int dir, const struct packet *pkt)
{
	bool answered = pkt->tcp_flags & TCP_FLAG_ACK;

	if (!answered) {
		if (pkt->window_scale == 255)      /* repeated without options: the answer tells which one was heard */
			return;
		s->window_scale[dir] = pkt->window_scale;
		if (dir == 0)
			s->tcp_seen |= SEEN_SCALE_C2S;
		return;
	}
	if (pkt->window_scale == 255 || (dir == 1 && !(s->tcp_seen & SEEN_SCALE_C2S))) {
		s->window_scale[0] = 0;
		s->window_scale[1] = 0;
		return;
	}
	s->window_scale[dir] = pkt->window_scale;
}

/* What a SYN tells about its sender, and what its receiver expects from now on. */
static void begin_flow(struct session *s, int dir, const struct packet *pkt)
{
	struct tcp_flow *sender = &s->tcp[dir], *receiver = &s->tcp[!dir];

	sender->end = pkt->seq + pkt->seq_len;
	sender->max_window = pkt->window ? pkt->window : 1;
	sender->max_end = sender->end + receiver->max_window;
	receiver->ack = pkt->seq + 1;
	if (!(pkt->tcp_flags & TCP_FLAG_ACK))
		return;
	sender->ack = pkt->ack;
	receiver->max_end = later(receiver->max_end, pkt->ack + pkt->window);
}

/* Picks up a connection whose beginning we have not seen: both ends are believed once. */
static void begin_midstream(struct session *s, int dir, const struct packet *pkt)
{
	struct tcp_flow *receiver = &s->tcp[!dir];

	s->window_scale[0] = s->window_scale[1] = SCALE_UNKNOWN;
	begin_flow(s, dir, pkt);
	s->tcp[dir].max_window = (uint32_t)pkt->window << SCALE_UNKNOWN;
	s->tcp[dir].max_end = s->tcp[dir].end + WINDOW_MAX;
	receiver->end = pkt->ack;
	receiver->ack = pkt->seq;
	receiver->max_window = WINDOW_MAX;
	receiver->max_end = pkt->ack + s->tcp[dir].max_window;
}

/* overtaken: later segments may have been forwarded before this one, so that it may be as old as it likes. */
static bool in_window(const struct session *s, int dir, const struct packet *pkt, bool overtaken)
{
	const struct tcp_flow *sender = &s->tcp[dir], *receiver = &s->tcp[!dir];
	uint32_t oldest = sender->max_window > ACK_WINDOW ? sender->max_window : ACK_WINDOW;

	if (before(sender->max_end, pkt->seq))
		return false;
	if (!overtaken && before(pkt->seq + pkt->seq_len, sender->end - receiver->max_window))
		return false;
	if (!(pkt->tcp_flags & TCP_FLAG_ACK))
		return true;
	return !before(receiver->end, pkt->ack) && (overtaken || !before(pkt->ack, receiver->end - oldest));
}

static void advance(struct session *s, int dir, const struct packet *pkt)
{
	struct tcp_flow *sender = &s->tcp[dir], *receiver = &s->tcp[!dir];
	uint32_t window = (uint32_t)pkt->window << s->window_scale[dir];

	sender->end = later(sender->end, pkt->seq + pkt->seq_len);
	if (window > sender->max_window)
		sender->max_window = window;
	if (!(pkt->tcp_flags & TCP_FLAG_ACK))
		return;
	sender->ack = later(sender->ack, pkt->ack);
	receiver->max_end = later(receiver->max_end, pkt->ack + (window ? window : 1));
}

static enum verdict end_by_reset(struct session *s, int dir, const struct burst *b)
{
	session_note_end(s, dir ? END_TCP_RST_FROM_SERVER : END_TCP_RST_FROM_CLIENT);
	enter(s, TCP_TIME_WAIT, b);
	return VERDICT_CONTINUE;
}

/* An acknowledgement of the peer's SYN, with or without the data that came in it. */
static bool acks_syn(const struct session *s, int dir, const struct packet *pkt)
{
	return (pkt->tcp_flags & TCP_FLAG_ACK) && !before(pkt->ack, s->tcp[dir].ack) && !before(s->tcp[!dir].end, pkt->ack);
}

/* While a SYN is unanswered: refused by the server, given up by the client, or the client's answer to a challenge ACK,
 * which concerns an older connection than ours. */
static enum verdict track_early_reset(const struct packet *pkt, struct session *s, int dir, const struct burst *b)
{
	if (dir == 1 ? acks_syn(s, dir, pkt) : pkt->seq == s->tcp[0].end)
		return end_by_reset(s, dir, b);
	if (dir == 0 && s->tcp_seen & SEEN_CHALLENGE)
		return VERDICT_CONTINUE;
	return drop(b, TCP_DROP_RST_OUT_OF_WND);
}

static enum verdict track_reset(const struct packet *pkt, struct session *s, int dir, const struct burst *b)
{
	const struct tcp_flow *sender = &s->tcp[dir], *receiver = &s->tcp[!dir];

	if (s->tcp_state == TCP_NEW)
		return drop(b, TCP_DROP_STATE);
	if (s->tcp_state == TCP_SYN_SENT)
		return track_early_reset(pkt, s, dir, b);
	if (before(pkt->seq, receiver->ack) || before(sender->max_end, pkt->seq))
		return drop(b, TCP_DROP_RST_OUT_OF_WND);
	if (pkt->seq == receiver->ack || pkt->seq == sender->end)
		return end_by_reset(s, dir, b);
	if (s->tcp_state != TCP_TIME_WAIT)
		enter(s, TCP_UNVERIFIED_RST, b);
	count_in(b->counter, TCP_RST_UNVERIFIED, 1);
	return VERDICT_CONTINUE;
}

/* Over by a RST, not by both FINs. */
static bool was_reset(const struct session *s)
{
	return (s->tcp_seen & (SEEN_FIN_C2S | SEEN_FIN_S2C)) != (SEEN_FIN_C2S | SEEN_FIN_S2C);
}

/* A SYN on a connection that is over may be answered by a new one if its sequence numbers lie ahead (RFC 9293 section
 * 3.6.1); one of a connection that was reset may start anywhere. */
static enum verdict reopen(const struct packet *pkt, struct session *s, const struct burst *b)
{
	if (!was_reset(s) && !before(s->tcp[0].end, pkt->seq))
		return drop(b, TCP_DROP_OUT_OF_WND);
	session_set_closing(b->table, s, END_TCP_REUSE);
	wheel_schedule(b->table, s, b->now);
	count_in(b->counter, TCP_SESSION_REUSED, 1);
	return VERDICT_PUNT;
}

/* What has neither SYN, FIN nor RST does no more to the connection than to advance it and to restart its timer. */
bool tcp_is_plain(const struct session *s)
{
	switch (s->tcp_state) {
	case TCP_ESTABLISHED:
	case TCP_HALF_CLOSED:
		return true;
	case TCP_TIME_WAIT:
		return !was_reset(s);
	}
	return false;
}

static enum tcp_state state_by_fins(struct session *s)
{
	switch (s->tcp_seen & (SEEN_FIN_C2S | SEEN_FIN_S2C)) {
	case 0:
		return TCP_ESTABLISHED;
	case SEEN_FIN_C2S | SEEN_FIN_S2C:
		session_note_end(s, END_TCP_FIN);
		return TCP_TIME_WAIT;
	}
	return TCP_HALF_CLOSED;
}

/* A SYN that does not fit is delivered without effect, so that the host may challenge it; the first SYN-ACK wins. */
static enum verdict track_syn(const struct packet *pkt, struct session *s, int dir, enum tcp_state next, const struct burst *b)
{
	bool first = !s->tcp[dir].max_window, again = pkt->seq + pkt->seq_len == s->tcp[dir].end;
	bool answer = pkt->tcp_flags & TCP_FLAG_ACK;

	if (answer && (!acks_syn(s, dir, pkt) || !(first || again)))
		return drop(b, TCP_DROP_OUT_OF_WND);
	if (!first && !again && s->tcp_state != TCP_SYN_SENT)
		return VERDICT_CONTINUE;
	begin_flow(s, dir, pkt);
	learn_scale(s, dir, pkt);
	if (pkt->is_signed)
		s->tcp_seen |= SEEN_SIGNED;
	enter(s, next, b);
	return VERDICT_CONTINUE;
}

static enum verdict track_data(const struct packet *pkt, struct session *s, int dir, enum step step, const struct burst *b)
{
	if (s->tcp_state == TCP_NEW)
		begin_midstream(s, dir, pkt);
	else if (!in_window(s, dir, pkt, offload_overtakes(b->table, s, dir, pkt)))
		return drop(b, TCP_DROP_OUT_OF_WND);
	else
		advance(s, dir, pkt);
	if (s->tcp_state == TCP_TIME_WAIT && was_reset(s))     /* late, or a challenge: it keeps nothing alive */
		return VERDICT_CONTINUE;
	if (pkt->tcp_flags & TCP_FLAG_FIN)
		s->tcp_seen |= dir ? SEEN_FIN_S2C : SEEN_FIN_C2S;
	enter(s, step == DATA ? state_by_fins(s) : (enum tcp_state)step, b);
	return VERDICT_CONTINUE;
}

/* The hosts of a signed connection ignore what ends it without a signature (RFC 5925 section 7.7, RFC 2385 section 4.1). */
static bool is_forged(const struct packet *pkt, const struct session *s)
{
	return s->tcp_seen & SEEN_SIGNED && pkt->tcp_flags & (TCP_FLAG_RST | TCP_FLAG_FIN) && !pkt->is_signed;
}

/* Judges a TCP packet of an ACTIVE session, slot locked: VERDICT_CONTINUE, a counted drop, or VERDICT_PUNT for the first
 * packet of a new connection on this tuple. */
enum verdict tcp_track(const struct packet *pkt, struct session *s, int dir, const struct burst *b)
{
	enum segment segment = segment_of(pkt);
	enum step step;

	if (is_forged(pkt, s))
		return VERDICT_CONTINUE;
	if (pkt->tcp_flags & TCP_FLAG_RST)
		return track_reset(pkt, s, dir, b);
	step = transitions[s->tcp_state][dir][segment];
	if (s->tcp_state == TCP_NEW && segment != SEGMENT_SYN && b->table->settings.reject_non_syn)
		step = NO;                                     /* it has overtaken the SYN that made the session */
	switch (step) {
	case NO:
		return drop(b, TCP_DROP_STATE);
	case REOP:
		return reopen(pkt, s, b);
	case CHAL:
		s->tcp_seen |= SEEN_CHALLENGE;
		return VERDICT_CONTINUE;
	case PASS:
		return VERDICT_CONTINUE;
	default:
		break;
	}
	if (segment <= SEGMENT_SYN_ACK)
		return track_syn(pkt, s, dir, (enum tcp_state)step, b);
	return track_data(pkt, s, dir, step, b);
}
