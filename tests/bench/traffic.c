/* traffic.c - sends and receives the bench's packets, in two network namespaces from one process
 *
 *   traffic rate  SETTINGS...	as many packets a second as arrive without loss		{"packets" "lost" "seconds"}
 *   traffic delay SETTINGS...	one packet at a time, received by spinning		{"lost" "delays": [ns...]}
 *   traffic connect SETTINGS...	TCP connections: open, one byte, both ends close	{"packets" "lost" "seconds"}
 *   traffic ping SETTINGS...	one packet at a time, received by sleeping, PING_EVERY	{"lost" "delays": [ns...]}
 *   traffic flood SETTINGS...	COUNT packets a second, whatever becomes of them	{"packets" "seconds"}
 *
 * SETTINGS: CLIENT_NETNS SERVER_NETNS SOURCE DESTINATION COUNT MILLISECONDS FLOW [PORT]
 * FLOW -1:  one flow, between two ordinary sockets; a delay is half of a round trip.
 * FLOW n:   a new flow for every packet, numbered from n on; a delay is one way.  Source address, source port and
 *           destination address depend on the number (write_flow()), so that no NAT runs out of ports.
 *
 * connect counts connections, of which CONNECTIONS are under way at once; FLOW is not used.
 *
 * Both ends being one process, one clock measures, and the sender knows what has arrived: it keeps at most WINDOW
 * packets on the way, so a slow path is neither flooded nor idle.  What is not there LOST_AFTER later is given up.
 * A packet has PAYLOAD bytes: 64 on Ethernet with its checksum.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PORT		5001		/* unless another one is given */
#define PAYLOAD		18		/* bytes: 64 - Ethernet 14 + 4 - IP 20 - UDP 8 */
#define WINDOW		256		/* packets on the way at most: a quarter of a netfilter queue's default */
#define BATCH		32		/* packets per system call */
#define CONNECTIONS	64		/* under way at once */
#define LOST_AFTER	100000000L	/* ns */
#define PING_EVERY	1000000L	/* ns at least from one packet to the next */
#define BUFFER		(8 << 20)	/* bytes of socket memory */
#define SOURCES		128		/* addresses, from SOURCE on */
#define DESTINATIONS	16		/* addresses, from DESTINATION on */
#define FIRST_PORT	1024
#define PORTS		63999		/* no common divisor with DESTINATIONS: 131 million flows until one comes again */

struct settings {
	const char *client;	/* names of the network namespaces */
	const char *server;
	uint32_t source;	/* host byte order */
	uint32_t destination;
	long count;		/* packets at most */
	long milliseconds;	/* time at most */
	long flow;		/* -1: one flow */
	uint16_t port;		/* of the server */
};

struct packet {
	struct iphdr ip;
	struct udphdr udp;
	uint8_t payload[PAYLOAD];
} __attribute__((packed));

struct batch {
	struct packet packets[BATCH];
	struct sockaddr_in to[BATCH];
	struct iovec vectors[BATCH];
	struct mmsghdr messages[BATCH];
};

struct run {
	struct settings settings;
	int client, server;		/* sockets */
	_Atomic long arrived;
	_Atomic long last;		/* when the last of them did */
	_Atomic bool over;
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void enter(const char *netns)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/run/netns/%s", netns);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(path);
	close(fd);
}

static struct sockaddr_in endpoint(uint32_t address, uint16_t port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address) };
}

static int open_socket(const char *netns, int type, int protocol, uint32_t address, uint16_t port)
{
	struct sockaddr_in local = endpoint(address, port);
	int size = BUFFER, on = 1;
	int fd;

	enter(netns);
	fd = socket(AF_INET, type, protocol);
	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));      /* connections of the last round */
	if (bind(fd, (struct sockaddr *)&local, sizeof(local)))
		die("bind");
	return fd;
}

/* The server takes any destination; for new flows the client is a raw socket, which needs no bind per source port. */
static void open_ends(struct run *r)
{
	const struct settings *s = &r->settings;
	struct sockaddr_in peer = endpoint(s->destination, s->port);

	r->server = open_socket(s->server, SOCK_DGRAM, 0, INADDR_ANY, s->port);
	if (s->flow >= 0) {
		r->client = open_socket(s->client, SOCK_RAW, IPPROTO_RAW, INADDR_ANY, 0);
		return;
	}
	r->client = open_socket(s->client, SOCK_DGRAM, 0, s->source, 0);
	if (connect(r->client, (struct sockaddr *)&peer, sizeof(peer)))
		die("connect");
}

static uint32_t sum16(const void *data, size_t length, uint32_t sum)
{
	const uint8_t *bytes = data;

	for (size_t i = 0; i < length; i += 2)
		sum += (uint32_t)bytes[i] << 8 | bytes[i + 1];
	return sum;
}

static uint16_t udp_checksum(const struct packet *p)
{
	uint32_t sum = sum16(&p->ip.saddr, 8, IPPROTO_UDP + sizeof(p->udp) + PAYLOAD);

	sum = sum16(&p->udp, sizeof(p->udp) + PAYLOAD, sum);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(sum == 0xffff ? 0xffff : (uint16_t)~sum);
}

/* The first packet of flow `number`: consecutive numbers differ in the source address, then in the source port. */
static void write_flow(const struct settings *s, struct packet *p, struct sockaddr_in *to, long number)
{
	uint32_t destination = s->destination + (uint32_t)(number / SOURCES % DESTINATIONS);

	p->ip = (struct iphdr){ .version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP, .tot_len = htons(sizeof(*p)) };
	p->ip.saddr = htonl(s->source + (uint32_t)(number % SOURCES));
	p->ip.daddr = htonl(destination);
	p->udp = (struct udphdr){ .dest = htons(s->port), .len = htons(sizeof(p->udp) + PAYLOAD) };
	p->udp.source = htons((uint16_t)(FIRST_PORT + number / SOURCES % PORTS));
	memcpy(p->payload, &number, sizeof(number));
	p->udp.check = udp_checksum(p);
	*to = endpoint(destination, 0);
}

static void prepare_batch(const struct settings *s, struct batch *b)
{
	memset(b, 0, sizeof(*b));
	for (int i = 0; i < BATCH; i++) {
		struct msghdr *message = &b->messages[i].msg_hdr;

		b->vectors[i] = (struct iovec){ b->packets[i].payload, PAYLOAD };
		if (s->flow >= 0) {
			b->vectors[i] = (struct iovec){ &b->packets[i], sizeof(struct packet) };
			message->msg_name = &b->to[i];
			message->msg_namelen = sizeof(b->to[i]);
		}
		message->msg_iov = &b->vectors[i];
		message->msg_iovlen = 1;
	}
}

/* Returns how many of the wanted packets the kernel took. */
static long send_batch(const struct run *r, struct batch *b, long sent, long wanted)
{
	long count = wanted < BATCH ? wanted : BATCH;
	int done;

	for (long i = 0; i < count && r->settings.flow >= 0; i++)
		write_flow(&r->settings, &b->packets[i], &b->to[i], r->settings.flow + sent + i);
	done = sendmmsg(r->client, b->messages, (unsigned int)count, 0);
	return done < 0 ? 0 : done;
}

static void *receive(void *argument)
{
	static uint8_t bytes[BATCH][PAYLOAD];
	struct timeval patience = { .tv_usec = 50000 };
	struct run *r = argument;
	struct mmsghdr messages[BATCH];
	struct iovec vectors[BATCH];
	int count;

	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < BATCH; i++) {
		vectors[i] = (struct iovec){ bytes[i], PAYLOAD };
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	setsockopt(r->server, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	while (!atomic_load(&r->over)) {
		count = recvmmsg(r->server, messages, BATCH, MSG_WAITFORONE, NULL);
		if (count <= 0)
			continue;
		atomic_store(&r->last, now());
		atomic_fetch_add(&r->arrived, count);
	}
	return NULL;
}

/* Long enough to leave the processor to the firewall, short enough not to drain a full window. */
static void pause_briefly(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);
}

/* Wait until the window has room or nothing has arrived for too long; returns the packets that are given up. */
static long wait_for_room(struct run *r, long accounted)
{
	long seen = atomic_load(&r->arrived), since = now(), current;

	while (accounted - (current = atomic_load(&r->arrived)) >= WINDOW) {
		if (current != seen) {
			seen = current;
			since = now();
		}
		if (now() - since > LOST_AFTER)
			return accounted - current;
		pause_briefly();
	}
	return 0;
}

static void measure_rate(struct run *r)
{
	long sent = 0, lost = 0, start = now(), end = start + r->settings.milliseconds * 1000000L;
	static struct batch b;
	pthread_t receiver;

	prepare_batch(&r->settings, &b);
	if (pthread_create(&receiver, NULL, receive, r))
		die("pthread_create");
	while (sent < r->settings.count && now() < end) {
		sent += send_batch(r, &b, sent, r->settings.count - sent);
		lost += wait_for_room(r, sent - lost);
	}
	for (end = now(); sent - lost > atomic_load(&r->arrived) && now() < end + LOST_AFTER;)
		pause_briefly();
	atomic_store(&r->over, true);
	pthread_join(receiver, NULL);
	printf("{\"packets\": %ld, \"lost\": %ld, ", r->arrived, sent - r->arrived);
	printf("\"seconds\": %.6f}\n", (double)(r->last - start) / 1e9);
}

/* Spin, or sleep if the socket's time-out lets it, until a packet is there; false when none comes. */
static bool arrives(int fd, struct sockaddr_in *from, long deadline, int flags)
{
	socklen_t length = sizeof(*from);
	uint8_t bytes[PAYLOAD];

	while (recvfrom(fd, bytes, sizeof(bytes), flags, (struct sockaddr *)from, &length) < 0)
		if (now() > deadline)
			return false;
	return true;
}

/* Nanoseconds to the other end, -1 when the packet or its answer is lost. */
static long one_delay(const struct run *r, struct batch *b, long number, int flags)
{
	uint8_t answer[PAYLOAD] = { 0 };
	struct sockaddr_in from;
	long start = now();

	if (!send_batch(r, b, number, 1) || !arrives(r->server, &from, start + LOST_AFTER, flags))
		return -1;
	if (r->settings.flow >= 0)
		return now() - start;
	if (sendto(r->server, answer, PAYLOAD, 0, (struct sockaddr *)&from, sizeof(from)) != PAYLOAD)
		return -1;
	return arrives(r->client, &from, start + LOST_AFTER, flags) ? (now() - start) / 2 : -1;
}

static void sleep_until(long when)
{
	struct timespec t = { .tv_sec = when / 1000000000L, .tv_nsec = when % 1000000000L };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static void measure_delay(const struct run *r, bool sleeping)
{
	struct timeval patience = { .tv_usec = LOST_AFTER / 1000 };
	long end = now() + r->settings.milliseconds * 1000000L, lost = 0, delay;
	const char *comma = "";
	static struct batch b;

	prepare_batch(&r->settings, &b);
	setsockopt(r->client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(r->server, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	printf("{\"delays\": [");
	for (long i = 0; i < r->settings.count && now() < end; i++) {
		long start = now();

		delay = one_delay(r, &b, i, sleeping ? 0 : MSG_DONTWAIT);
		if (sleeping)
			sleep_until(start + PING_EVERY);
		if (delay < 0) {
			lost++;
			continue;
		}
		printf("%s%ld", comma, delay);
		comma = ", ";
	}
	printf("], \"lost\": %ld}\n", lost);
}

/* Bursts of BATCH at their due times; what could not be sent in time is left out, not caught up with. */
static void measure_flood(const struct run *r)
{
	long gap = 1000000000L * BATCH / r->settings.count, start = now(), due = start;
	long end = start + r->settings.milliseconds * 1000000L, sent = 0;
	static struct batch b;

	prepare_batch(&r->settings, &b);
	while (now() < end) {
		sent += send_batch(r, &b, sent, BATCH);
		due = due + gap > now() ? due + gap : now();
		sleep_until(due);
	}
	printf("{\"packets\": %ld, \"seconds\": %.6f}\n", sent, (double)(now() - start) / 1e9);
}

/* Accept, read the byte that has come with it, close: whoever closes first keeps the port for a while. */
static void *serve(void *argument)
{
	struct timeval patience = { .tv_usec = 50000 };
	struct run *r = argument;
	uint8_t byte;
	int fd;

	setsockopt(r->server, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	while (!atomic_load(&r->over)) {
		fd = accept(r->server, NULL, NULL);
		if (fd < 0)
			continue;
		if (recv(fd, &byte, 1, 0) == 1)
			atomic_fetch_add(&r->arrived, 1);
		close(fd);
	}
	return NULL;
}

static void open_listener(struct run *r)
{
	int seconds = 1;

	r->server = open_socket(r->settings.server, SOCK_STREAM, 0, INADDR_ANY, r->settings.port);
	setsockopt(r->server, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof(seconds));
	if (listen(r->server, 4 * CONNECTIONS))
		die("listen");
	enter(r->settings.client);
}

static void begin_connection(const struct run *r, int poller, long number)
{
	struct sockaddr_in to = endpoint(r->settings.destination + (uint32_t)(number % DESTINATIONS), r->settings.port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	struct epoll_event event = { .events = EPOLLOUT, .data.fd = fd };

	if (fd < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
		die("socket");
	connect(fd, (struct sockaddr *)&to, sizeof(to));
}

/* Once connected send the byte and wait for the other end to close; true when that is over, well or not. */
static bool follow_connection(int poller, const struct epoll_event *event)
{
	struct epoll_event next = { .events = EPOLLIN, .data.fd = event->data.fd };

	if (event->events == EPOLLOUT && send(event->data.fd, "", 1, MSG_NOSIGNAL) == 1) {
		epoll_ctl(poller, EPOLL_CTL_MOD, event->data.fd, &next);
		return false;
	}
	close(event->data.fd);
	return true;
}

static void measure_connections(struct run *r)
{
	long begun = 0, done = 0, start = now(), end = start + r->settings.milliseconds * 1000000L, last = start;
	struct epoll_event events[CONNECTIONS];
	int poller = epoll_create1(0), count;
	pthread_t server;

	open_listener(r);
	if (pthread_create(&server, NULL, serve, r))
		die("pthread_create");
	while (done < begun || (begun < r->settings.count && now() < end)) {
		for (; begun - done < CONNECTIONS && begun < r->settings.count && now() < end; begun++)
			begin_connection(r, poller, begun);
		count = epoll_wait(poller, events, CONNECTIONS, 10);
		for (int i = 0; i < count; i++)
			done += follow_connection(poller, &events[i]);
		if (count > 0)
			last = now();
		else if (now() - last > LOST_AFTER)
			break;
	}
	atomic_store(&r->over, true);
	pthread_join(server, NULL);
	printf("{\"packets\": %ld, \"lost\": %ld, ", r->arrived, begun - r->arrived);
	printf("\"seconds\": %.6f}\n", (double)(last - start) / 1e9);
}

static uint32_t address(const char *text)
{
	struct in_addr parsed;

	if (!inet_aton(text, &parsed))
		die(text);
	return ntohl(parsed.s_addr);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	struct run r = { 0 };

	if (argc != 9 && argc != 10) {
		fputs("usage: traffic rate|delay|connect|ping|flood CLIENT_NETNS SERVER_NETNS SOURCE DESTINATION COUNT MILLISECONDS FLOW [PORT]\n",
		      stderr);
		return 2;
	}
	r.settings = (struct settings){
		.client = argv[2], .server = argv[3], .source = address(argv[4]), .destination = address(argv[5]),
		.count = atol(argv[6]), .milliseconds = atol(argv[7]), .flow = atol(argv[8]),
		.port = argc == 10 ? (uint16_t)atoi(argv[9]) : PORT,
	};
	if (strcmp(mode, "connect") == 0) {
		measure_connections(&r);
		return 0;
	}
	open_ends(&r);
	if (strcmp(mode, "rate") == 0)
		measure_rate(&r);
	else if (strcmp(mode, "flood") == 0)
		measure_flood(&r);
	else
		measure_delay(&r, strcmp(mode, "ping") == 0);
	return 0;
}
