/* queue.h - one NFQUEUE as a worker sees it. */
#ifndef DATAPLANE_QUEUE_H
#define DATAPLANE_QUEUE_H

#include <sys/socket.h>

#include "internal.h"

#define QUEUE_BURST 32u
#define QUEUE_BUFFER (68u << 10)           /* a payload of 64 KiB and its attributes */
#define QUEUE_VERDICT_LEN 64u              /* at most, of one verdict without its payload */

/* A packet as the kernel queued it. */
struct queued {
	struct packet packet;
	uint32_t id;
	uint32_t full_len;                 /* of a packet that is longer than what was copied; else 0 */
	bool late;                         /* waited for longer than a packet may */
};

struct queue {
	int fd;
	uint16_t number;
	uint8_t *buffers;
	struct mmsghdr receive[QUEUE_BURST];
	struct iovec receive_iov[QUEUE_BURST];
	struct queued packets[QUEUE_BURST];

	uint8_t out[(QUEUE_BURST + 1) * QUEUE_VERDICT_LEN * 2];
	uint32_t out_len;
	struct iovec out_iov[QUEUE_BURST * 3 + 1];
	uint32_t out_iovs;
	bool run;                          /* the packets up to run_last fare alike: accepted untouched, or dropped */
	uint32_t run_verdict;
	uint32_t run_last;
	uint32_t newest;                   /* highest id received */
	bool undecided;                    /* some packet up to `newest` may have no verdict: accept nothing in a batch */
};

int queue_open(struct queue *q, uint16_t number, bool fail_open);
void queue_close(struct queue *q);
int queue_receive(struct queue *q, uint64_t *counter);
void queue_accept(struct queue *q, const struct queued *p);
void queue_accept_rewritten(struct queue *q, const struct queued *p);
void queue_drop(struct queue *q, const struct queued *p);
void queue_pass_on(struct queue *q, const struct queued *p, uint32_t verdict);
void queue_hand_over(struct queue *q, const struct queued *p, uint32_t verdict);
void queue_flush(struct queue *q, uint64_t *counter);

#endif
