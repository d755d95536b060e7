/* session.h - layouts and lists shared by C, Python and eBPF.
 *
 * cffi reads this file as it stands: no include, no conditional, no attribute, no inline function.  Sizes are asserted in
 * table.c.  Addresses and ports are in network byte order everywhere; an IPv4 address is mapped (::ffff:a.b.c.d), so that
 * one key serves both families.  Times are tenths of a second of CLOCK_MONOTONIC unless a comment says otherwise: 32 bits
 * last for 13 years of uptime.
 *
 * Writers of a field:  [I] nobody after insert   [W] any worker, under the slot lock   [A] ager   [S] slow path
 *                      [L] whoever holds the lock of that list (wheel, discard, free)
 */

#define ZONE_NONE 0
#define ZONE_HOST 255          /* the firewall itself: what it sends arrives "from" this zone */
#define MARK_SEEN 0x40000000   /* the slow path has decided this packet's flow; a miss that carries it is dropped */
#define MARK_OWN 0x20000000    /* made by the daemon itself (RST, unreachable); our rules let it pass */
#define MARK_TRACKED 0x10000000 /* tracked and counted already, then handed to the slow path for inspection */
#define MAX_APPLICATIONS 2048
#define MAX_ORIGINS 512
#define MAX_POOLS 4096         /* translated addresses with a port space of their own */
#define MAX_INTERFACES 250     /* in zones */
#define MAX_ZONE_IDS 256
#define MAX_STARTS 131072      /* of intervals of an address, for the dispatch cache */
#define PORT_STARTS 65536
#define MAX_HIT_RULES 65536    /* security rules that it knows */
#define MAX_ADJUSTED 4096      /* connections whose text an ALG has made longer or shorter */
#define MAX_EDITS 16           /* of one direction of such a connection that are remembered */
#define INSPECT_MAX 3900       /* bytes of a packet that the slow queue hands to inspection whole */
#define INSPECT_ROOM 256       /* bytes by which a segment may grow: kept free by a smaller MSS */
#define MAX_PLANES 8           /* sessions that may share a translated address and port */
#define MAX_SHARDS 21          /* counter shards, one writer each: 16 workers, then one thread each */
#define SHARD_SLOW 16
#define SHARD_AGER 17
#define SHARD_MONITOR 18
#define SHARD_LOG 19
#define SHARD_OFFLOAD 20       /* whoever merges what the kernel has counted: the one shard that is added to atomically */
#define MAX_OFFLOADED 1048576  /* sessions that the kernel forwards, at most */
#define OFFLOAD_SLOTS 16       /* flows that a bucket of the kernel's table has room for */
#define OFFLOAD_REF_BITS 21    /* of a slot: index of an entry << 1 | direction; the rest is a tag */
#define OFFLOAD_IPV6 128       /* added to the protocol of an offloaded flow */
#define OFFLOAD_PORTS 1024     /* places for interfaces, found by index */
#define OFFLOAD_PROBES 4       /* places that are looked at */
#define ANY_HOP 0xffffffff
#define REFUSED_PLACES 65536
#define ROW_ROOM 1536          /* bytes of a row that are no name, at most */
#define ROW_NAMES 10           /* names in a row */
#define TENTHS 10              /* ticks in a second */
#define DIAG_FILTERS 4         /* of packet diagnosis */
#define DIAG_SNAPLEN 65535     /* bytes of a packet that are kept at most */
#define DIAG_RING 16777216     /* bytes of records that may wait for Python; a power of two */

/* As a flow's packets look on the wire, in the zone they come from. */
struct flow_key {
	uint8_t  src[16];
	uint8_t  dst[16];
	uint16_t sport;        /* ICMP echo: the identifier stands in the client's port, 0 in the server's */
	uint16_t dport;        /* GRE of a PPTP call that was announced: the call id, which is its receiver's */
	uint8_t  proto;
	uint8_t  zone;         /* ingress zone */
	uint8_t  family;       /* 4 or 6 */
	uint8_t  reserved;     /* 0: the key is hashed and compared as bytes */
};

enum session_state {
	SESSION_INIT,          /* in the free list; holds what it held last, for `show session id`           */
	SESSION_OPENING,       /* taken from the free list, being filled in; not in the hash, not in the wheel */
	SESSION_ACTIVE,        /* in hash and wheel; [I] fields are frozen; packets pass                      */
	SESSION_DISCARD,       /* in hash (c2s only), wheel and discard list; every hit is dropped and counted */
	SESSION_CLOSING,       /* in hash and wheel, about to expire; a lookup does not see it                */
	SESSION_CLOSED,        /* in hash, out of the wheel, handed to the ager; a lookup does not see it     */
	SESSION_FREE,          /* out of hash and wheel, not yet in the free list                             */
};

enum session_type {
	SESSION_FLOW,
	SESSION_PREDICT,       /* expected: what is not known of its keys is 0, so it is not in the hash */
};

/* In the order of precedence of PAN-OS: of several causes the first is the one that is logged. */
enum end_reason {
	END_THREAT,
	END_POLICY_DENY,
	END_TCP_RST_FROM_CLIENT,
	END_TCP_RST_FROM_SERVER,
	END_RESOURCES_UNAVAILABLE,
	END_TCP_FIN,
	END_TCP_REUSE,
	END_DECODER,
	END_AGED_OUT,
	END_UNKNOWN,
	END_NONE,              /* alive */
};

/* The timer in force follows from the state: see tcp_timer() in tcp.c. */
enum tcp_state {
	TCP_NEW,               /* installed; the first packet has not come round yet      */
	TCP_SYN_SENT,          /* SYN seen, waiting for SYN-ACK                           */
	TCP_SYN_RECEIVED,      /* SYN-ACK seen, waiting for ACK                           */
	TCP_ESTABLISHED,
	TCP_HALF_CLOSED,       /* one FIN seen                                            */
	TCP_TIME_WAIT,         /* both FINs or a verified RST seen                        */
	TCP_UNVERIFIED_RST,    /* a RST inside the window, not at the expected sequence   */
	TCP_STATES,
};

enum session_flag {
	FLAG_SNAT = 1,
	FLAG_DNAT = 2,
	FLAG_LOG_END = 4,
	FLAG_HOST = 8,         /* terminated on the firewall, or opened by it */
	FLAG_ONE_WAY = 16,     /* refused: only key[0] is in the hash */
	FLAG_INSPECTED = 32,   /* an ALG reads what it carries: every packet takes the way through the slow path */
	FLAG_ADJUSTED = 64,    /* its sequence numbers are translated: see adjust.c */
	FLAG_PREDICTED = 128,  /* it was expected, or still is */
	FLAG_BY_SERVER = 256,  /* what made it expected was said by the server of its parent */
	FLAG_CACHED = 512,     /* a worker has installed it, by what was decided for another of its class */
	FLAG_OFFLOADED = 1024, /* the kernel forwards it: see offload.c */
	FLAG_OFFERED = 2048,   /* for offload, and not yet refused */
	FLAG_ENTRY = 4096,     /* it is, or was a moment ago */
	FLAG_WATCHED = 32768,  /* packet diagnosis follows it, in both directions: see diag.c */
};

enum tcp_seen {
	SEEN_FIN_C2S = 1,
	SEEN_FIN_S2C = 2,
	SEEN_CHALLENGE = 4,    /* the peer answered a SYN with an ACK: it remembers an older connection */
	SEEN_SCALE_C2S = 8,    /* the SYN offered a window scale */
	SEEN_SIGNED = 16,      /* the SYN was signed (TCP-AO, MD5): hosts ignore what is not */
};

enum tcp_flag { TCP_FLAG_FIN = 1, TCP_FLAG_SYN = 2, TCP_FLAG_RST = 4, TCP_FLAG_PSH = 8, TCP_FLAG_ACK = 16, TCP_FLAG_URG = 32 };

/* One direction of a connection, as its sender has shown it. */
struct tcp_flow {
	uint32_t end;          /* highest sequence number sent, plus one                        */
	uint32_t max_end;      /* highest sequence number the receiver has allowed so far       */
	uint32_t ack;          /* highest acknowledgement sent: what it expects next            */
	uint32_t max_window;   /* largest window offered, scaled, in bytes                      */
};

/* 224 bytes.  A direction is 0 (c2s) or 1 (s2c); the other one is !direction.  The translation of a direction is the
 * mirror of the other direction's key: what arrives as key[d] leaves as key[!d] read backwards.  Links come last: they are
 * written by neighbours in their lists without this slot's lock, and views do not copy them. */
struct session {
	struct flow_key key[2];      /* [I] */
	uint32_t lock;
	uint32_t generation;         /* [S] counts the lives of this slot */
	uint64_t bytes[2];           /* [W] IP bytes as they arrived */
	uint64_t packets[2];         /* [W] */
	uint32_t last_seen;          /* [W] last accepted packet */
	uint32_t timeout;            /* [W] the timer now in force, tenths of a second */
	uint16_t l3_delta[2];        /* [I] what translation adds to the IPv4 header checksum, per direction */
	uint16_t l4_delta[2];        /* [I] and to the transport checksum */
	uint8_t  window_scale[2];    /* [W] by the sender's direction */
	uint8_t  tcp_state;          /* [W] enum tcp_state */
	uint8_t  tcp_seen;           /* [W] enum tcp_seen */
	uint8_t  state[2];           /* [W] enum session_state per flow; the session's state is that of c2s */
	uint8_t  type;               /* [S] enum session_type */
	uint8_t  end_reason;         /* [W] enum end_reason, the first in precedence so far */
	uint16_t application;        /* [I] row of the timers and of the applications' names */
	uint16_t flags;              /* [W] enum session_flag */
	uint32_t rule;               /* [S] security rule, the slow path's number for it */
	uint32_t nat_rule;           /* [S] NAT rule plus one; 0: none matched */
	uint32_t ingress;            /* [I] interface index */
	uint32_t egress;             /* [S] */
	uint32_t start;              /* [I] wall clock, seconds since 1970 */
	uint32_t start_tick;         /* [I] */
	uint32_t parent;             /* [I] session that predicted this one; 0: none */
	uint16_t pool;               /* [I] pool that lent the translated source port, plus one; 0: none */
	uint16_t plane;              /* [I] of that pool's bitmaps in which the port is marked */
	union {
		struct tcp_flow tcp[2];      /* [W] indexed by the sender's direction */
		struct {
			uint32_t discard_next;   /* [L] DISCARD sessions never track: oldest first */
			uint32_t discard_prev;   /* [L] */
		};
	};
	uint32_t wheel_next;         /* [L] also the link of the free list */
	uint32_t wheel_prev;         /* [L] */
	uint32_t wheel_due;          /* [L] tick at which it is looked at; 0: not in the wheel */
};

/* Where the packets of a direction go next, and how large they may be. */
struct hop {
	uint32_t ifindex;
	uint32_t mtu;                /* bytes of IP */
	uint8_t  link[12];           /* destination and source address of the frame; a virtual wire changes neither */
	uint32_t number;             /* Python's, for offload_drop_hop() */
};

/* A cache line of the table in which the kernel's program finds a flow: see offload.c.  0: an empty slot. */
struct offload_bucket {
	uint32_t slot[OFFLOAD_SLOTS];
};

/* What the place of a flow in that table depends on: see offloadhash.h. */
struct offload_secret {
	uint64_t odd;
	uint32_t add[10];
	uint32_t shift;
	uint32_t reserved;
};

/* One direction of an offloaded session, in memory that the daemon and the kernel's program share.  Its key is the other
 * direction's rewrite read backwards, with `proto` and `zone`.
 * Writers: [S] offload.c before the kernel's table leads here  [P] the program, and offload.c beside it, both atomically */
struct offload_flow {
	uint8_t  src[16];            /* [S] how its packets leave */
	uint8_t  dst[16];            /* [S] */
	uint16_t sport;              /* [S] */
	uint16_t dport;              /* [S] */
	uint16_t address_delta;      /* [S] what translation adds to a sum of the addresses, */
	uint16_t port_delta;         /* [S] and to one of the ports */
	struct hop hop;              /* [S] */
	uint64_t packets;            /* [P] since they were last taken into the session */
	uint64_t bytes;              /* [P] */
	struct tcp_flow tcp;         /* [P] */
	uint64_t last_seen;          /* [P] nanoseconds of CLOCK_MONOTONIC */
	uint32_t session;            /* [S] id; 0: nobody's */
	uint8_t  window_scale;       /* [S] */
	uint8_t  translated;         /* [S] 1: addresses or ports change */
	uint8_t  proto;              /* [S] of its key, OFFLOAD_IPV6 added */
	uint8_t  zone;               /* [S] of its key */
	uint32_t taken_off;          /* [S] tick at which the table ceased to lead here */
	uint32_t moment;             /* [P] when last_seen was written, in the kernel's own ticks; always odd */
	uint64_t begun;              /* [S] when it began to lead here; nanoseconds since 1970, as in struct packet */
};

struct offloaded {
	struct offload_flow flow[2];
};

/* An interface whose packets the program may take. */
struct offload_port {
	uint32_t ifindex;            /* 0: none */
	uint8_t  zone;
	uint8_t  wire;               /* 1: the port of a virtual wire */
	uint16_t reserved;
};

enum offload_result {
	OFFLOAD_DONE,
	OFFLOAD_UNSUITED,            /* it has ended, or something more has to be seen of it */
	OFFLOAD_FULL,
};

/* What is looked at again when routes change: a session that is offloaded, and where its two directions go. */
struct offload_view {
	uint32_t id;
	uint32_t generation;
	uint32_t hop[2];
	struct flow_key key[2];
	uint32_t ingress;
	uint32_t egress;
};

/* Seconds.  One row per application; sessions follow a changed row from their next packet on. */
struct timers {
	uint32_t tcp_init;
	uint32_t tcp_handshake;
	uint32_t tcp;
	uint32_t tcp_half_closed;
	uint32_t tcp_time_wait;
	uint32_t tcp_unverified_rst;
	uint32_t udp;
	uint32_t icmp;
	uint32_t other;
	uint32_t discard_tcp;
	uint32_t discard_udp;
	uint32_t discard_other;
};

struct settings {
	uint32_t reject_non_syn;
	uint32_t aging_threshold;    /* percent of the table; 0: accelerated aging is off */
	uint32_t aging_factor;
	uint32_t calls_announced;    /* 1: PPTP calls may be predicted, beside other GRE between the same hosts */
	uint32_t drop_oversize;      /* 1: what is too large for inspection is dropped, not passed on unseen */
	uint8_t  reset_non_syn[MAX_ZONE_IDS];   /* by zone: what no session claims and begins none is answered by a RST */
};

enum checksum_state {
	CHECKSUM_TRUSTED,            /* the kernel or the NIC has verified it, or will never look */
	CHECKSUM_UNVERIFIED,         /* complete on the wire, nobody has checked it               */
	CHECKSUM_PARTIAL,            /* only the pseudo header is summed: the sender left the rest to its NIC */
	CHECKSUM_SUPER,              /* the same, of a super-packet: each of its segments will get its own    */
};

enum packet_kind {
	PACKET_FLOW,
	PACKET_ICMP_ERROR,           /* quotes a packet: `quoted` is valid */
	PACKET_LINK_CONTROL,         /* neighbour and multicast listener discovery: for the link, needs no session */
};

enum packet_hook {
	HOOK_PREROUTING = 0,
	HOOK_FORWARD = 2,            /* over a virtual wire; routed only if it comes from an interface of no zone */
	HOOK_OUTPUT = 3,
};

/* Addresses that belong to a zone: an interface's subnet, or (ZONE_HOST) an address of the firewall's own. */
struct origin {
	uint8_t first[16];
	uint8_t last[16];
	uint8_t zone;
};

/* The first part is the caller's; the second is filled in by packet_parse() and valid only if it said so. */
struct packet {
	uint8_t *data;               /* from the IP header on: hostile bytes */
	uint32_t len;
	uint32_t ifindex;            /* ingress interface (the port of a virtual wire); HOOK_OUTPUT: the egress one */
	uint32_t mark;
	uint8_t  hook;               /* enum packet_hook */
	uint8_t  checksum;           /* enum checksum_state */
	uint8_t  zone;
	uint8_t  cut;                /* 1: data is only the beginning of the packet; enough to know its flow, no more */
	uint64_t arrived;            /* nanoseconds since 1970; 0: not stamped */

	uint8_t  kind;               /* enum packet_kind */
	struct flow_key key;
	uint64_t hash;               /* of the key */
	uint32_t hint;               /* where the session may be: see flow_hint() */
	uint32_t ip_len;             /* IP header and what it says belongs to it */
	uint16_t l4;                 /* offset of the transport header */
	uint16_t l4_checksum;        /* offset of its checksum; 0: it has none */
	uint8_t  tcp_flags;          /* enum tcp_flag */
	uint8_t  window_scale;       /* of a SYN; 255: not offered */
	uint8_t  icmp_type;
	uint8_t  echo;               /* 1: an ICMP echo, request or reply */
	uint16_t call;               /* call id of a PPTP tunnel's packet, as dport; 0: none */
	uint8_t  is_signed;          /* 1: a SYN, FIN or RST with a signature */
	uint16_t mss_at;             /* offset of the MSS that a SYN offers; 0: none, or it is signed */
	uint16_t window;
	uint32_t seq;
	uint32_t ack;
	uint32_t seq_len;            /* sequence numbers it takes: payload, SYN, FIN */
	struct flow_key quoted;      /* the quoted packet's tuple, zone 0 */
	uint16_t quoted_l3;
	uint16_t quoted_l4;

	uint32_t session;            /* by slowpath_look() alone: the session that claims it, */
	uint32_t generation;
	uint8_t  dir;                /* and the flow of it */
};

enum verdict {
	VERDICT_CONTINUE,            /* between steps only */
	VERDICT_ACCEPT,              /* untouched */
	VERDICT_REWRITTEN,           /* accept, and the payload goes back to the kernel */
	VERDICT_PUNT,                /* the slow path decides */
	VERDICT_INSPECT,             /* tracked; the slow path reads it and sends it round */
	VERDICT_DROP,
	VERDICT_RESET,               /* of slowpath_look() alone: drop, count, and tell the sender by a RST */
};

/* What the slow path decided for a first packet: everything a session needs besides its key. */
struct decision {
	uint8_t  egress_zone;
	uint8_t  source_nat;         /* enum source_nat */
	uint8_t  destination_nat;    /* 1: to `destination`, `destination_port` */
	uint8_t  source[16];         /* translated source */
	uint8_t  destination[16];
	uint16_t destination_port;   /* network order; 0: unchanged */
	uint16_t port_min;           /* host order, inclusive: range of translated source ports */
	uint16_t port_max;
	uint16_t application;
	uint16_t flags;
	uint32_t rule;
	uint32_t nat_rule;
	uint32_t ingress;
	uint32_t egress;
	uint32_t parent;
	uint32_t discard;            /* 1: a DISCARD session */
	uint32_t first_len;          /* of a DISCARD session's first packet, which does not come round to be counted */
	uint32_t predicted;          /* PREDICT session that this one was expected as, and becomes; 0: none */
	uint32_t predicted_generation;
};

enum source_nat {
	SOURCE_KEEP,
	SOURCE_STATIC,               /* address changed, port kept */
	SOURCE_PORT,                 /* address and port: the port comes from the address's pool */
	SOURCE_BOUND,                /* address and port, port_min; a binding holds them, so no other will do */
};

/* Where the intervals of each field begin that a decision tells apart: ascending, the first at 0. */
struct class_starts {
	const uint8_t *address[2];   /* of source, of destination: 16 bytes each, at most MAX_STARTS */
	const uint16_t *port[2];     /* of TCP, of UDP: host order, at most PORT_STARTS */
	uint32_t addresses[2];
	uint32_t ports[2];
};

enum rematch_kind { REMATCH_THROUGH, REMATCH_TO_HOST, REMATCH_CHILD };

/* What a policy sees of live sessions that it cannot tell apart; up to `sessions` compared as bytes. */
struct rematch_class {
	uint32_t source;             /* interval; REMATCH_CHILD: id of the parent */
	uint32_t destination;        /* interval; REMATCH_CHILD: tick at which it began */
	uint32_t ingress;            /* as in struct session, and the next two */
	uint32_t egress;
	uint32_t rule;
	uint32_t nat_rule;           /* plus one, of the rule that translates it; 0: none does */
	uint16_t application;
	uint16_t port;               /* interval; REMATCH_TO_HOST: the port itself, translated, host order */
	uint8_t  from_zone;
	uint8_t  to_zone;
	uint8_t  proto;
	uint8_t  kind;               /* enum rematch_kind */
	uint32_t sessions;           /* how many there are */
	uint32_t rule_now;           /* the verdict: their rule from now on, */
	uint8_t  log_end;            /* what it logs, */
	uint8_t  ends;               /* or 1: they end */
	uint16_t reserved;
};

/* What session_install() answers instead of a session id. */
enum install_error {
	INSTALL_FULL = -1,           /* no slot, and no DISCARD session to make room                     */
	INSTALL_NO_PORT = -2,        /* the pool is exhausted                                            */
	INSTALL_CLASH = -3,          /* the return key, which must stay as it is, is a live session's    */
	INSTALL_EXISTS = -4,         /* somebody has installed this key meanwhile: send the packet round */
};

/* A session as it was at one moment, with the slot it lives in. */
struct session_copy {
	uint32_t id;
	uint32_t timeout;            /* ticks: its timer, as accelerated aging makes it */
	struct session session;
};

/* Names as JSON, by number. */
struct words {
	const char *const *json;
	uint32_t n;
};

/* What the numbers in a session are called, and when its record is written. */
struct record_names {
	struct words rule;
	struct words action;         /* by rule */
	struct words nat_rule;
	struct words application;
	struct words zone;
	struct words reason;         /* by enum end_reason */
	struct words interface;
	const uint32_t *ifindex;     /* of each interface */
	const char *time;            /* JSON */
	uint32_t longest;            /* length of the longest name */
	uint32_t now;                /* tick */
};

/* Room for lines, and what was written there. */
struct record_text {
	char *text;
	uint32_t size;
	uint32_t used;
	uint32_t lines;
};

/* Why sessions are not offloaded, by those whose offload was refused: each has a place, which another may take over. */
struct refusals {
	struct words reason;
	const char *all;             /* why none is, as JSON; NULL: some are */
	const uint64_t *places;      /* [id % REFUSED_PLACES]: generation << 32 | id / REFUSED_PLACES << 8 | reason */
};

/* Every condition that is set must hold.  Zones, ports, protocol: 0 is any; addresses are ranges, compared as bytes. */
struct session_filter {
	uint8_t  state;              /* enum session_state plus one; 0: any state that is alive */
	uint8_t  type;               /* enum session_type plus one */
	uint8_t  proto;
	uint8_t  family;
	uint8_t  zone[2];            /* of c2s, of s2c */
	uint16_t sport;              /* network order, of c2s */
	uint16_t dport;
	uint8_t  nat;                /* 1 + (FLAG_SNAT | FLAG_DNAT) wanted */
	uint8_t  source_set;
	uint8_t  destination_set;
	uint8_t  source[2][16];
	uint8_t  destination[2][16];
	uint32_t application;        /* row plus one */
	uint32_t rule;               /* number plus one */
	uint32_t nat_rule;           /* what struct session holds, plus one */
	uint32_t ingress;
	uint32_t egress;
	uint64_t min_bytes;          /* both directions together */
	uint64_t max_bytes;
	uint32_t min_age;            /* ticks since the session began */
	uint32_t now;
};

struct table_stats {
	uint32_t max_sessions;
	uint32_t allocated;
	uint32_t tcp;
	uint32_t udp;
	uint32_t icmp;
	uint32_t other;
	uint32_t predict;
	uint32_t discard;
	uint32_t scheduled;          /* sessions in the timer wheel */
	uint64_t installed;          /* since the table was made */
	uint64_t bytes;              /* of the mapping that grow with the number of sessions */
};

#define TOP_AMOUNTS 4

/* By what sessions are summed up, and by which sum the groups are put in order. */
enum top_by { TOP_SOURCE, TOP_DESTINATION, TOP_RULE, TOP_APPLICATION, TOP_ZONE };
enum top_order { TOP_SESSIONS, TOP_BYTES, TOP_PACKETS, TOP_GROWTH };

/* Sessions that have something in common. */
struct top_row {
	uint8_t  key[16];            /* the address, or the number in its first four bytes, host order */
	uint64_t amount[TOP_AMOUNTS];    /* by enum top_order; growth: bytes since the mark */
};

struct top_total {
	uint64_t amount[TOP_AMOUNTS];    /* of every session that passes the filter */
	uint64_t left_out[TOP_AMOUNTS];  /* of those among them for whose group there was no room */
	uint32_t groups;
};

/* Live sessions by what they are. */
struct census {
	uint32_t sessions[7][2][4];  /* by enum session_state, enum session_type, protocol: TCP UDP ICMP other */
	uint32_t application[MAX_APPLICATIONS];
	uint32_t offloaded;
	uint32_t inspected;
};

/* Every way a packet can end is one of these; counters.py describes each by its name.  A drop increments exactly one. */
enum counter {
	PKT_RECV,
	BYTES_RECV,
	PKT_AGAIN,                   /* of these, those that came round from the slow path */
	BYTES_AGAIN,
	PKT_SENT,
	PKT_PUNT,                    /* handed to the slow path */
	PKT_INSPECT,                 /* the same, to be read by an ALG */
	PKT_LINK_CONTROL,
	PKT_ICMP_ERROR,              /* error messages delivered for a session */

	FLOW_PARSE_IP_HDR,           /* drops from here to DROPS_END */
	FLOW_PARSE_IP_FRAG,
	FLOW_PARSE_EXT_HDR,
	FLOW_PARSE_L4_HDR,
	FLOW_PARSE_L4_CKSM,
	FLOW_PARSE_LAND,
	FLOW_PARSE_ICMP_QUOTE,
	FLOW_NO_INTERFACE,
	FLOW_POLICY_DENY,
	FLOW_HOST_SERVICE_DENY,
	FLOW_DISCARD_HIT,
	FLOW_IP_SPOOF,
	FLOW_FWD_L3_NOROUTE,
	FLOW_FWD_L3_MCAST_DROP,
	FLOW_ICMP_ERROR_NO_SESSION,
	FLOW_ICMP_ERROR_SPOOF,
	FLOW_ICMP_REDIRECT,
	FLOW_LINK_CONTROL_TRANSIT,
	FLOW_NAT_CHECKSUM,
	FLOW_MARKED_MISS,
	FLOW_QUEUED_TOO_LONG,
	FLOW_QUEUE_TRUNCATED,
	FLOW_QUEUE_FULL,
	FLOW_SLOWPATH_ERROR,
	FLOW_TCP_NON_SYN_DROP,
	TCP_FLAG_ZERO,
	TCP_FLAG_INVALID,
	TCP_DROP_OUT_OF_WND,
	TCP_DROP_STATE,
	TCP_DROP_RST_OUT_OF_WND,
	SESSION_ALLOC_FAILURE,
	SESSION_SOURCE_LIMIT,
	SESSION_DUPLICATE_KEY,
	NAT_DIPP_ALLOC_FAILURE,
	NAT_DIP_ALLOC_FAILURE,
	NAT_NPTV6_UNMAPPABLE,
	ALG_OVERSIZE_DROP,
	ALG_STREAM_GAP,
	ALG_STREAM_HELD,
	DROPS_END,

	PKT_OFFLOAD,                 /* forwarded by the kernel for a session */
	BYTES_OFFLOAD,
	SESSION_OFFLOADED,
	SESSION_ONLOADED,            /* came back to the queues before they ended */
	SESSION_INSTALLED,
	SESSION_CACHED,
	DISPATCH_LEARNED,            /* classes; then why a first packet was none of a class that is known */
	DISPATCH_UNKNOWN,
	DISPATCH_CLOSED,
	DISPATCH_PREDICT,
	DISPATCH_REFUSED,
	FLOW_SLOWPATH_ALLOW,         /* what Python has decided for a first packet; its refusals are drops */
	FLOW_SLOWPATH_DENY,
	FLOW_SLOWPATH_HOST,
	FLOW_SLOWPATH_OWN,
	FLOW_SLOWPATH_PREDICT,
	FLOW_SLOWPATH_AGAIN,
	FLOW_SLOWPATH_INSPECT,
	SESSION_FREED,
	SESSION_EXPIRED,
	SESSION_END_THREAT,          /* ends by reason, in the order of enum end_reason */
	SESSION_END_POLICY_DENY,
	SESSION_END_TCP_RST_FROM_CLIENT,
	SESSION_END_TCP_RST_FROM_SERVER,
	SESSION_END_RESOURCES_UNAVAILABLE,
	SESSION_END_TCP_FIN,
	SESSION_END_TCP_REUSE,
	SESSION_END_DECODER,
	SESSION_END_AGED_OUT,
	SESSION_END_UNKNOWN,
	SESSION_DISCARD_EVICTED,
	SESSION_ZONECHANGE,
	SESSION_ADDRESSCHANGE,
	TCP_RST_UNVERIFIED,
	TCP_SESSION_REUSED,
	SESSION_PREDICTED,
	SESSION_PREDICT_MATCHED,
	SESSION_PREDICT_LIMIT,
	ALG_OVERSIZE_PASS,
	ALG_GIVEN_UP,
	ALG_PAYLOAD_CHANGED,
	NAT_PORT_REALLOCATED,
	FLOW_ACTION_RESET,
	FLOW_ACTION_UNREACHABLE,
	FLOW_ACTION_ACKNOWLEDGED,
	FLOW_ACTION_LIMITED,
	QUEUE_RECEIVE_OVERRUN,
	QUEUE_VERDICT_ERROR,
	QUEUE_SEND_ERROR,
	LOG_RECORD_LOST,
	COUNTERS,
};

/* Packets that are diagnosed.  Ports in network order; 0 is any, as it is of protocol,
 * family and interface. */
struct diag_filter {
	uint8_t  source[2][16];      /* first and last address, compared as bytes */
	uint8_t  destination[2][16];
	uint16_t sport;
	uint16_t dport;
	uint8_t  proto;
	uint8_t  family;
	uint8_t  used;               /* 0: this place is empty */
	uint8_t  reserved;
	uint32_t ifindex;            /* ingress */
};

/* Where a packet is copied, and in which form. */
enum diag_stage {
	DIAG_RECEIVE,                /* as it came                                           */
	DIAG_FIREWALL,               /* as it came, and an active session claims it          */
	DIAG_TRANSMIT,               /* as it leaves                                         */
	DIAG_DROP,                   /* as it came, and it goes no further                   */
	DIAG_TRACE,                  /* no copy: what was decided about it, for the flow log */
	DIAG_STAGES,
};

/* What is taken at a stage until it stops by itself. */
struct diag_limit {
	uint64_t packets;            /* 0: nothing more is taken */
	uint64_t bytes;              /* of the copies */
	uint32_t snaplen;            /* bytes of one copy */
	uint32_t reserved;
};

/* What was taken since diag_set_stage(), and the counters of the packets that were meant since diag_begin(). */
struct diag_status {
	uint64_t packets[DIAG_STAGES];
	uint64_t bytes[DIAG_STAGES];
	uint64_t lost[DIAG_STAGES];  /* found no room in the ring */
	uint8_t  stopped[DIAG_STAGES];   /* 1: it has had enough */
	uint64_t counter[COUNTERS];
};

/* One copy, or one line of the flow log, as it lies in the ring; `copied` bytes follow.  What is said of the session holds
 * after the packet, but for tcp_before. */
struct diag_record {
	uint32_t size;               /* with what follows, rounded up to 8 */
	uint32_t ready;              /* the ring's own */
	uint64_t when;               /* nanoseconds since 1970 */
	uint32_t len;                /* bytes of the packet */
	uint32_t copied;
	uint32_t ifindex;            /* ingress; DIAG_TRANSMIT: egress; 0: the firewall itself, or not known */
	uint32_t mark;
	uint32_t reason;             /* enum counter of a drop; COUNTERS: none */
	uint32_t session;            /* 0: none claims it, and then nothing of what follows is known */
	uint32_t rule;
	uint32_t nat_rule;           /* plus one; 0: none */
	uint32_t ingress;            /* of the session */
	uint32_t egress;
	uint32_t parent;
	uint32_t seq;                /* of the packet, like the rest from here on */
	uint32_t ack;
	uint16_t window;
	uint16_t flags;              /* enum session_flag */
	uint16_t application;
	uint8_t  stage;              /* enum diag_stage */
	uint8_t  filter;             /* the first one that means it, from 1; 0: its session is watched */
	uint8_t  slow;               /* 1: in the slow path */
	uint8_t  verdict;            /* enum verdict; VERDICT_CONTINUE: not known yet */
	uint8_t  dir;
	uint8_t  state;              /* enum session_state */
	uint8_t  tcp_before;         /* enum tcp_state */
	uint8_t  tcp_state;
	uint8_t  kind;               /* enum packet_kind */
	uint8_t  hook;               /* enum packet_hook */
	uint8_t  checksum;           /* enum checksum_state */
	uint8_t  tcp_flags;
	uint8_t  icmp_type;
	uint8_t  hops;               /* time to live */
	uint8_t  parsed;             /* 1: well-formed; 0: of the key only what came before the fault is known */
	uint8_t  begun;              /* 1: the packet has begun its session */
	struct flow_key key;         /* as it came */
	struct flow_key out;         /* as it leaves, and into which zone; of a session only */
};
