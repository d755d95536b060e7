/* queue.c - one NFQUEUE over plain netlink: bursts of packets in, batches of verdicts out.
 *
 * The kernel sends one datagram per packet; recvmmsg() takes up to QUEUE_BURST of them.  Verdicts of a burst are one
 * sendmsg(): a run of packets that are accepted untouched needs only one message, a rewritten packet hands its whole
 * payload back from where it was received.
 *
 * That one message, NFQNL_MSG_VERDICT_BATCH, speaks for every packet still waiting whose id is not above its own.  So no
 * packet may be left without a verdict: where that might have happened (a send failed, a datagram was unreadable) nothing
 * is accepted in a batch until everything received so far has been dropped in one.
 *
 * The socket asks for receive timestamps, which makes the kernel stamp packets on arrival: a packet that has waited for
 * longer than WAIT_MAX is dropped (contract section 6).  Full buffers drop new packets in the kernel, which counts them
 * in /proc/net/netfilter/nfnetlink_queue; NETLINK_NO_ENOBUFS keeps the socket usable then.
 */
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>               /* before linux/netfilter.h, which would bring its own copy */
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "queue.h"

#define RECEIVE_BUFFER (64 << 20)
#define SEND_BUFFER (16 << 20)
#define QUEUE_LENGTH 4096                  /* packets in the kernel */
#define COPY_RANGE 0xffffu
#define WAIT_MAX 1000000000ull             /* nanoseconds a packet may wait for its verdict */
#define WAIT_ABSURD (60 * 1000000000ull)   /* a clock was set: believe nobody */
#define OUR_MARKS (MARK_SEEN | MARK_TRACKED)
#define STOP_LATENCY_US 100000             /* how often a blocked receive looks at the stop flag */

/* ---- configuration ---- */

struct request {
	struct nlmsghdr nl;
	struct nfgenmsg nf;
	uint8_t attributes[64];
};

static void request_init(struct request *r, uint16_t type, uint16_t flags, uint16_t queue)
{
	memset(r, 0, sizeof(*r));
	r->nl.nlmsg_len = NLMSG_LENGTH(sizeof(r->nf));
	r->nl.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | type;
	r->nl.nlmsg_flags = NLM_F_REQUEST | flags;
	r->nf.nfgen_family = AF_UNSPEC;
	r->nf.version = NFNETLINK_V0;
	r->nf.res_id = htons(queue);
}

static void request_add(struct request *r, uint16_t type, const void *data, uint16_t len)
{
	struct nlattr *a = (struct nlattr *)((char *)r + NLMSG_ALIGN(r->nl.nlmsg_len));

	a->nla_type = type;
	a->nla_len = (uint16_t)(NLA_HDRLEN + len);
	memcpy((char *)a + NLA_HDRLEN, data, len);
	r->nl.nlmsg_len = NLMSG_ALIGN(r->nl.nlmsg_len) + NLA_ALIGN(a->nla_len);
}

/* Sends a request that asks for an acknowledgement; 0 or an errno. */
static int request_done(int fd, const struct request *r)
{
	uint8_t answer[4096];
	const struct nlmsghdr *nl = (const struct nlmsghdr *)answer;
	const struct nlmsgerr *error = NLMSG_DATA(nl);

	if (send(fd, r, r->nl.nlmsg_len, 0) < 0)
		return errno;
	for (;;) {
		ssize_t n = recv(fd, answer, sizeof(answer), 0);

		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return errno;
		if (n >= (ssize_t)NLMSG_LENGTH(sizeof(*error)) && nl->nlmsg_type == NLMSG_ERROR)
			return -error->error;
	}
}

static int queue_bind(const struct queue *q)
{
	struct nfqnl_msg_config_cmd cmd = {.command = NFQNL_CFG_CMD_BIND};
	struct request r;

	request_init(&r, NFQNL_MSG_CONFIG, NLM_F_ACK, q->number);
	request_add(&r, NFQA_CFG_CMD, &cmd, sizeof(cmd));
	return request_done(q->fd, &r);
}

static int queue_configure(const struct queue *q, bool fail_open)
{
	struct nfqnl_msg_config_params params = {.copy_range = htonl(COPY_RANGE), .copy_mode = NFQNL_COPY_PACKET};
	uint32_t flags = NFQA_CFG_F_GSO | (fail_open ? NFQA_CFG_F_FAIL_OPEN : 0), value;
	struct request r;

	request_init(&r, NFQNL_MSG_CONFIG, NLM_F_ACK, q->number);
	request_add(&r, NFQA_CFG_PARAMS, &params, sizeof(params));
	value = htonl(flags);
	request_add(&r, NFQA_CFG_FLAGS, &value, sizeof(value));
	value = htonl(NFQA_CFG_F_GSO | NFQA_CFG_F_FAIL_OPEN);
	request_add(&r, NFQA_CFG_MASK, &value, sizeof(value));
	value = htonl(QUEUE_LENGTH);
	request_add(&r, NFQA_CFG_QUEUE_MAXLEN, &value, sizeof(value));
	return request_done(q->fd, &r);
}

static int socket_options(int fd)
{
	struct timeval wait = {.tv_usec = STOP_LATENCY_US};
	int on = 1, receive = RECEIVE_BUFFER, send = SEND_BUFFER;

	if (setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive, sizeof(receive)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &send, sizeof(send)) ||
	    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)))
		return errno;
	return 0;
}

/* Binds queue `number`; 0 or an errno, and then there is nothing to close. */
int queue_open(struct queue *q, uint16_t number, bool fail_open)
{
	struct sockaddr_nl local = {.nl_family = AF_NETLINK};
	int error = 0;

	memset(q, 0, sizeof(*q));
	q->number = number;
	q->buffers = mmap(NULL, QUEUE_BURST * QUEUE_BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (q->buffers == MAP_FAILED)
		return errno;
	q->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
	if (q->fd < 0 || bind(q->fd, (struct sockaddr *)&local, sizeof(local)))
		error = errno;
	if (!error)
		error = socket_options(q->fd);
	if (!error)
		error = queue_bind(q);
	if (!error)
		error = queue_configure(q, fail_open);
	if (error) {
		queue_close(q);
		return error;
	}
	for (uint32_t i = 0; i < QUEUE_BURST; i++) {
		q->receive_iov[i].iov_base = q->buffers + i * QUEUE_BUFFER;
		q->receive_iov[i].iov_len = QUEUE_BUFFER;
		q->receive[i].msg_hdr.msg_iov = &q->receive_iov[i];
		q->receive[i].msg_hdr.msg_iovlen = 1;
	}
	return 0;
}

void queue_close(struct queue *q)
{
	if (q->fd >= 0)
		close(q->fd);
	munmap(q->buffers, QUEUE_BURST * QUEUE_BUFFER);
}

/* ---- receiving ---- */

static uint64_t read64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static uint32_t read32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return ntohl(v);
}

static uint8_t checksum_state(uint32_t info)
{
	if (info & NFQA_SKB_GSO)
		return CHECKSUM_SUPER;
	if (info & NFQA_SKB_CSUMNOTREADY)
		return CHECKSUM_PARTIAL;
	return info & NFQA_SKB_CSUM_NOTVERIFIED ? CHECKSUM_UNVERIFIED : CHECKSUM_TRUSTED;
}

static void read_attribute(struct queued *p, uint16_t type, uint8_t *data, uint32_t len)
{
	const struct nfqnl_msg_packet_hdr *header = (const void *)data;

	switch (type) {
	case NFQA_PACKET_HDR:
		p->id = ntohl(header->packet_id);
		p->packet.hook = header->hook;
		break;
	case NFQA_MARK:
		p->packet.mark = read32(data);
		break;
	case NFQA_TIMESTAMP:
		p->packet.arrived = read64(data) * 1000000000ull + read64(data + 8) * 1000;
		break;
	case NFQA_IFINDEX_INDEV:
	case NFQA_IFINDEX_OUTDEV:
		if (!p->packet.ifindex)
			p->packet.ifindex = read32(data);
		break;
	case NFQA_IFINDEX_PHYSINDEV:
		p->packet.ifindex = read32(data);
		break;
	case NFQA_SKB_INFO:
		p->packet.checksum = checksum_state(read32(data));
		break;
	case NFQA_CAP_LEN:
		p->full_len = read32(data);
		break;
	case NFQA_PAYLOAD:
		p->packet.data = data;
		p->packet.len = len;
		break;
	}
}

static void read_packet(struct queued *p, struct nlmsghdr *nl)
{
	uint8_t *at = (uint8_t *)NLMSG_DATA(nl) + NLMSG_ALIGN(sizeof(struct nfgenmsg));
	uint8_t *end = (uint8_t *)nl + nl->nlmsg_len;

	memset(p, 0, sizeof(*p));
	while (end - at >= NLA_HDRLEN) {
		const struct nlattr *a = (const struct nlattr *)at;

		if (a->nla_len < NLA_HDRLEN || a->nla_len > end - at)
			return;
		read_attribute(p, a->nla_type & NLA_TYPE_MASK, at + NLA_HDRLEN, a->nla_len - NLA_HDRLEN);
		at += NLA_ALIGN(a->nla_len);
	}
}

/* What the kernel says besides packets: a verdict was refused.  One for a packet that is gone already is harmless. */
static void read_other(struct queue *q, const struct nlmsghdr *nl, uint64_t *counter)
{
	const struct nlmsgerr *error = NLMSG_DATA(nl);

	count_in(counter, QUEUE_VERDICT_ERROR, 1);
	if (nl->nlmsg_type != NLMSG_ERROR || nl->nlmsg_len < NLMSG_LENGTH(sizeof(*error)) || error->error != -ENOENT)
		q->undecided = true;
}

static void read_datagram(struct queue *q, uint32_t i, int *n, uint64_t now, uint64_t *counter)
{
	struct nlmsghdr *nl = q->receive_iov[i].iov_base;
	struct queued *p = &q->packets[*n];

	if (!NLMSG_OK(nl, q->receive[i].msg_len)) {
		q->undecided = true;
		count_in(counter, QUEUE_VERDICT_ERROR, 1);
		return;
	}
	if (nl->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET)) {
		read_other(q, nl, counter);
		return;
	}
	read_packet(p, nl);
	p->late = p->packet.arrived && now - p->packet.arrived > WAIT_MAX && now - p->packet.arrived < WAIT_ABSURD;
	q->newest = p->id;
	(*n)++;
}

static bool passing(int error)
{
	return error == EAGAIN || error == EINTR || error == ENOBUFS || error == ENOMEM;
}

/* Blocks until packets are there, a tenth of a second at most.  The number of packets, 0, or a negative errno; they are
 * valid until the next call. */
int queue_receive(struct queue *q, uint64_t *counter)
{
	int datagrams = recvmmsg(q->fd, q->receive, QUEUE_BURST, MSG_WAITFORONE, NULL), n = 0;
	uint64_t now;

	if (datagrams < 0) {
		if (errno == ENOBUFS || errno == ENOMEM)
			count_in(counter, QUEUE_RECEIVE_OVERRUN, 1);
		return passing(errno) ? 0 : -errno;
	}
	now = wall_clock();
	for (int i = 0; i < datagrams; i++)
		read_datagram(q, (uint32_t)i, &n, now, counter);
	return n;
}

/* ---- verdicts ---- */

static void out_bytes(struct queue *q, const void *data, uint32_t len)
{
	struct iovec *last = q->out_iovs ? &q->out_iov[q->out_iovs - 1] : NULL;

	if (last && (uint8_t *)last->iov_base + last->iov_len == q->out + q->out_len) {
		last->iov_len += len;
	} else {
		q->out_iov[q->out_iovs].iov_base = q->out + q->out_len;
		q->out_iov[q->out_iovs++].iov_len = len;
	}
	memcpy(q->out + q->out_len, data, len);
	q->out_len += len;
}

/* payload: bytes that follow the attributes, not yet part of the request. */
static void out_request(struct queue *q, struct request *r, const uint8_t *payload, uint32_t payload_len)
{
	static const uint8_t padding[NLA_ALIGNTO];
	struct nlattr a = {.nla_type = NFQA_PAYLOAD, .nla_len = (uint16_t)(NLA_HDRLEN + payload_len)};
	uint32_t len = r->nl.nlmsg_len;

	if (payload)
		r->nl.nlmsg_len += NLA_ALIGN(NLA_HDRLEN + payload_len);
	out_bytes(q, r, len);
	if (!payload)
		return;
	out_bytes(q, &a, NLA_HDRLEN);
	q->out_iov[q->out_iovs].iov_base = (uint8_t *)payload;
	q->out_iov[q->out_iovs++].iov_len = payload_len;
	if (NLA_ALIGN(payload_len) != payload_len)
		out_bytes(q, padding, NLA_ALIGN(payload_len) - payload_len);
}

static void verdict_init(struct request *r, const struct queue *q, uint16_t type, uint32_t id, uint32_t verdict)
{
	struct nfqnl_msg_verdict_hdr header = {.verdict = htonl(verdict), .id = htonl(id)};

	request_init(r, type, 0, q->number);
	request_add(r, NFQA_VERDICT_HDR, &header, sizeof(header));
}

static void flush_run(struct queue *q)
{
	struct request r;

	if (!q->run)
		return;
	verdict_init(&r, q, NFQNL_MSG_VERDICT_BATCH, q->run_last, q->run_verdict);
	out_request(q, &r, NULL, 0);
	q->run = false;
}

/* One message for neighbours that fare alike: whatever came before them has its verdict by then. */
static void run_on(struct queue *q, uint32_t id, uint32_t verdict)
{
	if (q->run_verdict != verdict)
		flush_run(q);
	q->run = true;
	q->run_verdict = verdict;
	q->run_last = id;
}

static void accept_one(struct queue *q, uint32_t id)
{
	struct request r;

	flush_run(q);
	verdict_init(&r, q, NFQNL_MSG_VERDICT, id, NF_ACCEPT);
	out_request(q, &r, NULL, 0);
}

/* The packet goes its way with another mark. */
static void verdict_marked(struct queue *q, const struct queued *p, uint32_t verdict, uint32_t mark)
{
	struct request r;
	uint32_t value = htonl(mark);

	flush_run(q);
	verdict_init(&r, q, NFQNL_MSG_VERDICT, p->id, verdict);
	request_add(&r, NFQA_MARK, &value, sizeof(value));
	out_request(q, &r, NULL, 0);
}

/* Accepts a packet untouched: together with its neighbours, unless our mark must come off it. */
void queue_accept(struct queue *q, const struct queued *p)
{
	if (!(p->packet.mark & OUR_MARKS)) {
		if (q->undecided)
			accept_one(q, p->id);
		else
			run_on(q, p->id, NF_ACCEPT);
		return;
	}
	verdict_marked(q, p, NF_ACCEPT, p->packet.mark & ~OUR_MARKS);
}

/* Accepts a packet with its payload as it is now in the receive buffer. */
void queue_accept_rewritten(struct queue *q, const struct queued *p)
{
	struct request r;
	uint32_t mark = htonl(p->packet.mark & ~OUR_MARKS);

	flush_run(q);
	verdict_init(&r, q, NFQNL_MSG_VERDICT, p->id, NF_ACCEPT);
	if (p->packet.mark & OUR_MARKS)
		request_add(&r, NFQA_MARK, &mark, sizeof(mark));
	out_request(q, &r, p->packet.data, p->packet.len);
}

void queue_drop(struct queue *q, const struct queued *p)
{
	run_on(q, p->id, NF_DROP);
}

/* NF_QUEUE with another queue's number. */
void queue_pass_on(struct queue *q, const struct queued *p, uint32_t verdict)
{
	struct request r;

	flush_run(q);
	verdict_init(&r, q, NFQNL_MSG_VERDICT, p->id, verdict);
	out_request(q, &r, NULL, 0);
}

/* Sends a packet that has been tracked to another queue; it will come back with its mark. */
void queue_hand_over(struct queue *q, const struct queued *p, uint32_t verdict)
{
	verdict_marked(q, p, verdict, p->packet.mark | MARK_TRACKED);
}

static bool send_out(const struct queue *q, const struct iovec *iov, uint32_t n)
{
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	struct msghdr message = {.msg_name = &kernel, .msg_namelen = sizeof(kernel), .msg_iov = (struct iovec *)iov,
				 .msg_iovlen = n};

	while (sendmsg(q->fd, &message, 0) < 0)
		if (errno != EINTR)
			return false;
	return true;
}

/* Drops whatever has no verdict, so that no later batch accepts it; true once nothing can be undecided. */
static bool drop_undecided(struct queue *q)
{
	struct request r;
	struct iovec iov = {.iov_base = &r};

	verdict_init(&r, q, NFQNL_MSG_VERDICT_BATCH, q->newest, NF_DROP);
	iov.iov_len = r.nl.nlmsg_len;
	return send_out(q, &iov, 1);
}

/* Sends what the burst decided.  A packet whose verdict the kernel did not take is dropped. */
void queue_flush(struct queue *q, uint64_t *counter)
{
	flush_run(q);
	if (q->out_iovs && !send_out(q, q->out_iov, q->out_iovs)) {
		count_in(counter, QUEUE_SEND_ERROR, 1);
		q->undecided = true;
	}
	q->out_iovs = 0;
	q->out_len = 0;
	if (q->undecided)
		q->undecided = !drop_undecided(q);
}
