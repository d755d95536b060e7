/* api.h - the functions Python may call.  Bare C for cffi, like session.h.  A call releases the GIL: nothing here may be
 * protected by it, and everything here may run beside the workers unless its comment says otherwise. */

/* The table: one mapping, made once.  NULL and errno on failure.  planes: how many sessions, 1 to MAX_PLANES, may share a
 * translated address and port towards different destinations. */
struct table *table_create(uint32_t max_sessions, uint32_t planes);
void table_destroy(struct table *t);                      /* no worker may run */
void table_set_settings(struct table *t, const struct settings *settings);
void table_set_timers(struct table *t, uint32_t application, const struct timers *timers);
/* The interfaces of all zones; at most MAX_INTERFACES.  Replaces the map before it. */
void table_set_zones(struct table *t, const uint32_t *ifindex, const uint8_t *zone, uint32_t n);
/* Whose address is whose, for packets that no session vouches for; at most MAX_ORIGINS.  Replaces the list before it. */
void table_set_origins(struct table *t, const struct origin *origins, uint32_t n);
/* The largest MSS (of IPv4; IPv6 takes 20 less) that a SYN may offer where it crosses an interface; at most
 * MAX_INTERFACES.  Replaces the list before it. */
void table_set_clamps(struct table *t, const uint32_t *ifindex, const uint16_t *mss, uint32_t n);
void table_read_stats(struct table *t, struct table_stats *stats);
void table_read_counters(struct table *t, uint64_t *counters);   /* COUNTERS sums over all shards */
void table_read_shard(struct table *t, uint32_t shard, uint64_t *counters);   /* of one shard */
void table_count(struct table *t, uint32_t shard, uint32_t counter, uint64_t n);
uint32_t table_now(void);                                 /* the current tick */

/* One packet through the fast path at tick `now`, as a worker whose counters are `shard` would take it: what the queues
 * do, without a kernel.  pkt->data is rewritten in place where the verdict says so. */
enum verdict fastpath_take(struct table *t, uint32_t shard, struct packet *pkt, uint32_t now);

/* First packets: what the slow path asks.  slowpath_look() parses and says VERDICT_PUNT (new: decide), VERDICT_ACCEPT
 * (a session exists: send it round), VERDICT_RESET (it begins nothing; not counted yet), or VERDICT_DROP (counted). */
enum verdict slowpath_look(struct table *t, struct packet *pkt);
/* The id of the new session (1..max_sessions) or an enum install_error. */
int64_t session_install(struct table *t, uint32_t shard, const struct flow_key *key, const struct decision *decision);

/* The dispatch cache: see cache.c.  Closed it neither answers nor learns; opening empties it, and returns the epoch that
 * begins.  Python opens it after everything that a decision depends on has changed, and closes it before. */
void cache_close(struct table *t);
uint32_t cache_open(struct table *t, const struct class_starts *starts);
/* From now on what is of pkt's class is decided so; a parsed packet.  spread: over how many addresses from d->source on
 * sources are spread, 0: all get that one.  logged: Python gets a copy of each session as it begins.  False: the epoch is
 * over, or the rule has too high a number. */
bool cache_learn(struct table *t, uint32_t epoch, const struct packet *pkt, const struct decision *d, uint32_t spread, bool logged);
/* How often each rule was hit since it was asked last; rules that were not are left out.  Call again while it returns n.
 * nat: the NAT rules, by the slow path's number for them. */
uint32_t cache_take_hits(struct table *t, bool nat, uint32_t *rules, uint64_t *hits, uint32_t n);
/* At most n sessions that were begun and are logged.  A session that table_expire() has returned is among them, unless n
 * is too small.  One thread at a time. */
uint32_t cache_take_begun(struct table *t, struct session_copy *out, uint32_t n);

/* A PREDICT session with these keys, what is not known being 0, for so many seconds; as session_install(). */
int64_t session_predict(struct table *t, uint32_t shard, const struct flow_key *key, const struct decision *decision, uint32_t seconds);

/* Sessions.  Ids run from 1 to max_sessions. */
bool session_read(struct table *t, uint32_t id, struct session *copy);    /* false: no such slot */
uint32_t session_timeout(struct table *t, const struct session *copy);    /* ticks: its timer, as accelerated aging makes it */
/* To CLOSING, for the ager's next tick; false: not alive, or another generation (0: any). */
bool session_close(struct table *t, uint32_t id, uint32_t generation, uint32_t end_reason);
/* The route moved to another interface of the same zone; false as above. */
bool session_set_egress(struct table *t, uint32_t id, uint32_t generation, uint32_t egress);
/* Nothing more needs to be read of it; false as above. */
bool session_end_inspection(struct table *t, uint32_t id, uint32_t generation);
/* The bytes [start, end) of flow `dir`, in its sender's numbering, went on as so many more; false: not alive, or too
 * many connections are adjusted. */
bool session_adjust(struct table *t, uint32_t id, uint32_t generation, uint32_t dir, uint32_t start, uint32_t end, int32_t grown);
/* Makes the checksums of a packet anew, of its IPv4 header and its transport, after its parser has seen it. */
void packet_sum(struct packet *pkt);
/* Copies of at most n sessions from slot `*next` on that pass the filter; advances `*next`, to 0 at the end. */
uint32_t table_scan(struct table *t, const struct session_filter *filter, uint32_t *next, struct session_copy *out, uint32_t n);
uint32_t table_count_all(struct table *t, const struct session_filter *filter);
/* Closes what passes the filter; how many there were. */
uint32_t table_close_all(struct table *t, const struct session_filter *filter, uint32_t end_reason);

/* Sessions after a commit, in the slots [first, first + n): see rematch.c.  Their classes, at most n; and, once these are
 * judged and still in that order, what becomes of them: how many sessions end. */
uint32_t rematch_classes(struct table *t, const struct class_starts *starts, uint32_t first, uint32_t n, struct rematch_class *out);
uint32_t rematch_apply(struct table *t, const struct class_starts *starts, uint32_t first, uint32_t n,
		       const struct rematch_class *classes, uint32_t known, uint32_t end_reason);
/* The bytes of each session that passes the filter; NULL: no memory. */
struct top_mark *top_mark(struct table *t, const struct session_filter *filter);
void top_forget(struct top_mark *marks);
/* The n largest groups of the sessions that pass the filter, largest first; how many there are, or -1: no memory.
 * marks: what top_mark() has remembered by the same filter, or NULL: nothing has grown. */
int32_t table_top(struct table *t, const struct session_filter *filter, enum top_by by, enum top_order order,
		  const struct top_mark *marks, struct top_row *rows, uint32_t n, struct top_total *total);
void table_census(struct table *t, struct census *census);

/* The ager: advances the wheel to `now` and copies at most n sessions that ended, now CLOSED.  Call again while it
 * returns n.  One thread only. */
uint32_t table_expire(struct table *t, uint32_t now, struct session_copy *ended, uint32_t n);
void session_free(struct table *t, const uint32_t *ids, uint32_t n);      /* CLOSED to INIT; ports go back to their pools */

/* Lines of the traffic log for copies of sessions that have just begun, or ended, where that is logged; how many copies
 * were dealt with.  Fewer than n: there is no room, the rest is for the next call. */
uint32_t record_write(const struct session_copy *copies, uint32_t n, bool ended, const struct record_names *names,
		      struct record_text *out);
/* Rows of the control socket for copies of sessions, whole ones or columns of a list; how many copies were dealt with, as
 * record_write(). */
uint32_t row_write(const struct session_copy *copies, uint32_t n, bool columns, const struct record_names *names,
		   const struct refusals *refusals, struct record_text *out);
/* Offload.  program_load() puts the compiled program into the kernel, for so many sessions of this table: NULL and errno on
 * failure (ENOSYS: built without it).  It stays until the process ends. */
struct program *program_load(struct table *t, const char *path, uint32_t sessions);
/* 1: attached, and the interface has a qdisc for it that it had not before; 0: attached; negative: an errno. */
int program_attach(struct program *p, uint32_t ifindex);
void program_detach(uint32_t ifindex);                    /* what a dead predecessor has attached too */
void program_set_ports(struct program *p, const struct offload_port *ports, uint32_t n);
/* Where packets for an address of a zone go, NULL: not where they could be offloaded to; workers go by it without asking.
 * Until hops_forget(): then they know of none, and what they have offloaded is found by offload_scan(). */
void hop_learn(struct table *t, const uint8_t *address, uint32_t zone, const struct hop *hop);
void hops_forget(struct table *t);
/* The eventfd that a worker rings when it offers something; it is never closed.  -1: there is no program. */
int offload_bell(struct table *t);
/* Sessions that ask to be offloaded, at most n; some may be over already, and ask where packets go.  One thread only, and
 * the same for session_offload(). */
uint32_t offload_offers(struct table *t, struct offload_view *out, uint32_t n);
enum offload_result session_offload(struct table *t, uint32_t id, uint32_t generation, const struct hop *c2s, const struct hop *s2c);
/* Back to the queues, if it is offloaded; it may ask again.  False: not alive, or another generation. */
bool session_reconsider(struct table *t, uint32_t id, uint32_t generation);
/* Merges what the program has counted, and sets hops[i] for every hop number i < n that is in use. */
void offload_sweep(struct table *t, uint8_t *hops, uint32_t n);
/* At most n offloaded sessions from place `*next` on; advances `*next`, to 0 at the end. */
uint32_t offload_scan(struct table *t, uint32_t *next, struct offload_view *out, uint32_t n);
/* Takes off whatever goes by that hop (ANY_HOP: everything); how many there were. */
uint32_t offload_drop_hop(struct table *t, uint32_t hop);
void offload_end(struct table *t);                        /* everything is taken off, and nothing is offered any more */

/* NAT pools: one port space per translated address and protocol. */
int32_t natpool_open(struct table *t, const uint8_t *address);           /* its number, or -1: all MAX_POOLS are taken */
int32_t natpool_find(const struct table *t, const uint8_t *address);     /* its number, or -1: never opened */
uint32_t natpool_used(struct table *t, uint32_t pool, uint16_t port_min, uint16_t port_max);
/* The same of every address from first to last that was ever drawn from. */
uint64_t natpool_used_between(struct table *t, const uint8_t *first, const uint8_t *last, uint16_t port_min, uint16_t port_max);
/* A port of [min, max] of an open pool for a caller that keeps it beyond one session, and shares it with nobody; of the
 * parity of `like` where one is free.  -1: none is. */
int32_t natpool_lend(struct table *t, uint32_t pool, uint8_t proto, uint16_t min, uint16_t max, uint16_t like);
void natpool_take_back(struct table *t, uint32_t pool, uint8_t proto, uint16_t port);
/* Ports that sockets of the firewall itself use: 1,024 words of 64 bits each for TCP and for UDP. */
void natpool_set_reserved(struct table *t, const uint64_t *tcp, const uint64_t *udp);

/* Workers.  worker_open() binds a queue: NULL and errno on failure.  worker_run() returns after worker_stop(), with 0 or
 * an errno; it never calls back.  Packets it cannot decide go to `slow_queue`. */
struct worker *worker_open(struct table *t, uint32_t shard, uint16_t queue, uint16_t slow_queue, bool fail_open);
int worker_run(struct worker *w);
uint64_t worker_turns(const struct worker *w);            /* grows several times a second while it runs */
void worker_stop(struct worker *w);
void worker_close(struct worker *w);

/* Packet diagnosis: see diag.c.  diag_begin(): from the next burst on these filters hold, in place of those before, and
 * the sessions that they mean are watched; false: no memory.  Its callers are kept apart by Python. */
bool diag_begin(struct table *t, const struct diag_filter *filters);     /* DIAG_FILTERS of them */
void diag_end(struct table *t);                           /* nothing is watched any more */
/* Marks what the filters mean among the sessions that are there; how many are watched now. */
uint32_t diag_mark(struct table *t);
/* The stage counts from 0 again; a limit of 0 packets stops it instead, and its counts stay. */
void diag_set_stage(struct table *t, uint32_t stage, const struct diag_limit *limit);
void diag_read_status(struct table *t, struct diag_status *status);
/* Whole records, struct diag_record and what follows it, at most `size` bytes; how many.  One thread only.  `size` is at
 * least that of the longest record. */
uint32_t diag_read(struct table *t, uint8_t *out, uint32_t size);
/* Around a packet in the slow path, for its thread alone.  After diag_slow_begin() said true it fills in pkt->data and
 * pkt->len, parsed or not; `story` is what it has decided, in words, for the flow log. */
bool diag_slow_begin(struct table *t, struct packet *pkt);
void diag_slow_end(struct table *t, struct packet *pkt, bool repeated, const uint8_t *story, uint32_t len);
