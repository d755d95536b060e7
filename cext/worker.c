/* worker.c - one hot queue's loop: receive a burst, decide each packet, send the verdicts.
 *
 * A worker is a Python thread that stays in worker_run() with the GIL released; it calls nothing of Python and allocates
 * nothing, so it goes on while Python is busy, blocked or dead.  It counts in a shard of its own.
 */
#include <errno.h>
#include <netinet/in.h>
#include <linux/netfilter.h>
#include <stdlib.h>

#include "queue.h"

struct worker {
	struct queue queue;
	struct table *table;
	uint64_t *counter;
	uint32_t shard;
	uint32_t punt_verdict;
	uint32_t stop;
	uint64_t turns;
};

struct worker *worker_open(struct table *t, uint32_t shard, uint16_t queue, uint16_t slow_queue, bool fail_open)
{
	struct worker *w;
	int error;

	assert(shard < SHARD_SLOW);
	w = calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	error = queue_open(&w->queue, queue, fail_open);
	if (error) {
		free(w);
		errno = error;
		return NULL;
	}
	w->table = t;
	w->counter = t->counter[shard];
	w->shard = shard;
	w->punt_verdict = NF_QUEUE_NR(slow_queue) | (fail_open ? NF_VERDICT_FLAG_QUEUE_BYPASS : 0);
	return w;
}

/* Why a packet is dropped unread; COUNTERS: it is not. */
static enum counter refusal(const struct queued *p)
{
	if (p->late)
		return FLOW_QUEUED_TOO_LONG;
	return p->full_len > p->packet.len ? FLOW_QUEUE_TRUNCATED : COUNTERS;
}

/* What a packet is: VERDICT_CONTINUE, and the bucket of its flow is on its way into the cache, or what becomes of it. */
static enum verdict look(struct queued *p, const struct burst *b)
{
	enum counter refused = refusal(p);
	enum verdict v;

	if (refused != COUNTERS)
		return drop(b, refused);
	v = fastpath_parse(&p->packet, b);
	if (v == VERDICT_CONTINUE)
		flow_prefetch(b->table, p->packet.hash);
	return v;
}

static void answer(struct worker *w, const struct queued *p, enum verdict v)
{
	switch (v) {
	case VERDICT_ACCEPT:
		queue_accept(&w->queue, p);
		count_in(w->counter, PKT_SENT, 1);
		break;
	case VERDICT_REWRITTEN:
		queue_accept_rewritten(&w->queue, p);
		count_in(w->counter, PKT_SENT, 1);
		break;
	case VERDICT_PUNT:
		queue_pass_on(&w->queue, p, w->punt_verdict);
		break;
	case VERDICT_INSPECT:
		queue_hand_over(&w->queue, p, w->punt_verdict);
		break;
	default:
		queue_drop(&w->queue, p);
		break;
	}
}

/* A burst goes through each step as a whole, so that the cache misses of its look-ups overlap. */
static void decide(struct worker *w, int n, const struct burst *b)
{
	struct queued *packets = w->queue.packets;
	enum verdict v[QUEUE_BURST];

	for (int i = 0; i < n; i++)
		v[i] = look(&packets[i], b);
	for (int i = 0; i < n; i++)
		if (v[i] == VERDICT_CONTINUE)
			packets[i].packet.hint = flow_hint(b->table, packets[i].packet.hash);
	for (int i = 0; i < n; i++)
		answer(w, &packets[i], v[i] == VERDICT_CONTINUE ? fastpath_decide(&packets[i].packet, b) : v[i]);
}

/* The same, each packet by itself, while some are diagnosed. */
static void decide_watched(struct worker *w, int n, const struct burst *b)
{
	for (int i = 0; i < n; i++) {
		struct queued *p = &w->queue.packets[i];

		answer(w, p, diag_take(&p->packet, b, refusal(p)));
	}
}

int worker_run(struct worker *w)
{
	while (!__atomic_load_n(&w->stop, __ATOMIC_RELAXED)) {
		struct burst b = {.table = w->table, .counter = w->counter, .shard = w->shard};
		int n = queue_receive(&w->queue, w->counter);

		__atomic_store_n(&w->turns, w->turns + 1, __ATOMIC_RELAXED);
		if (n < 0)
			return -n;
		b.now = table_now();
		if (diag_is_on(w->table))
			decide_watched(w, n, &b);
		else
			decide(w, n, &b);
		queue_flush(&w->queue, w->counter);
	}
	return 0;
}

uint64_t worker_turns(const struct worker *w)
{
	return __atomic_load_n(&w->turns, __ATOMIC_RELAXED);
}

void worker_stop(struct worker *w)
{
	__atomic_store_n(&w->stop, 1, __ATOMIC_RELAXED);
}

void worker_close(struct worker *w)
{
	queue_close(&w->queue);
	free(w);
}
