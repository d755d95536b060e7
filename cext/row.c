/* row.c - sessions as rows of the control socket: `show session all`, where there may be millions, and `show session id`.
 *
 * A row is a line {"row": X} of the answer.  X is the session as contract section 4 has it, or (columns) an array of no
 * more than the list on a terminal shows of it: a sixth of the bytes, for who lays it out.  A row that does not fit is
 * not begun.
 *
 * Rows are made of copies.  Nothing is locked meanwhile, neither a slot nor Python, so whoever makes them may be stopped
 * in the middle for as long as packets want the processor.
 */
#include "internal.h"
#include "text.h"

static const char *const STATE[] = {
	[SESSION_INIT] = "\"INIT\"",       [SESSION_OPENING] = "\"OPENING\"", [SESSION_ACTIVE] = "\"ACTIVE\"",
	[SESSION_DISCARD] = "\"DISCARD\"", [SESSION_CLOSING] = "\"CLOSING\"", [SESSION_CLOSED] = "\"CLOSED\"",
	[SESSION_FREE] = "\"FREE\"",
};
static const char *const TYPE[] = {[SESSION_FLOW] = "\"FLOW\"", [SESSION_PREDICT] = "\"PREDICT\""};
static const char *const TRANSLATION[] = {"null", "\"source\"", "\"destination\"", "\"source + destination\""};

static const char *yes_no(bool condition)
{
	return condition ? "true" : "false";
}

/* A PREDICT session has 0 for an address that is not known yet. */
static void put_host(struct text *text, const char *key, const struct flow_key *flow, const uint8_t *address)
{
	static const uint8_t unknown[16];

	if (flow->family != 6 && !memcmp(address, unknown, sizeof(unknown)))
		put_field(text, key, "\"0.0.0.0\"");
	else
		put_address(text, key, address);
}

static void put_interface(struct text *text, const char *key, const struct record_names *names, uint32_t ifindex)
{
	const char *name = interface_of(names, ifindex);

	if (strcmp(name, "null")) {
		put_field(text, key, name);
		return;
	}
	put(text, key);
	put_count(text, "\"", ifindex);
	put(text, "\"");
}

/* The answering flow of a PREDICT session is not there yet. */
static const char *state_of(const struct session *s, int dir)
{
	return STATE[dir && s->type == SESSION_PREDICT ? SESSION_OPENING : s->state[0]];
}

static void put_side(struct text *text, const char *side, const struct session *s, int dir,
		     const struct record_names *names)
{
	const struct flow_key *key = &s->key[dir];

	put(text, side);
	put_host(text, "{\"source\":", key, key->src);
	put_field(text, ",\"source_zone\":", word_of(&names->zone, key->zone));
	put_host(text, ",\"dst\":", key, key->dst);
	put_count(text, ",\"proto\":", key->proto);
	put_count(text, ",\"sport\":", ntohs(key->sport));
	put_count(text, ",\"dport\":", ntohs(key->dport));
	put_field(text, ",\"state\":", state_of(s, dir));
	put_field(text, ",\"type\":", TYPE[s->type]);
	put(text, ",\"src_user\":\"unknown\",\"dst_user\":\"unknown\"}");
}

static bool is_offloadable(uint8_t proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6;
}

/* Why a session is not offloaded; null if it is. */
static const char *obstacle(const struct session_copy *copy, const struct refusals *refusals)
{
	const struct session *s = &copy->session;
	uint64_t refused = __atomic_load_n(&refusals->places[copy->id % REFUSED_PLACES], __ATOMIC_RELAXED);

	if (s->flags & FLAG_OFFLOADED)
		return "null";
	if (s->flags & (FLAG_INSPECTED | FLAG_ADJUSTED))
		return "\"alg\"";
	if (refusals->all)
		return refusals->all;
	if (s->flags & FLAG_HOST)
		return "\"host\"";
	if (!is_offloadable(s->key[0].proto))
		return "\"protocol\"";
	if (s->flags & FLAG_WATCHED)
		return "\"packet-diag\"";
	if (refused >> 8 == ((uint64_t)s->generation << 24 | copy->id / REFUSED_PLACES))
		return word_of(&refusals->reason, refused & 0xff);
	return "\"not-established\"";
}

static void put_amounts(struct text *text, const struct session_copy *copy, uint32_t now)
{
	const struct session *s = &copy->session;
	uint32_t idle = now - s->last_seen, left = idle < copy->timeout ? copy->timeout - idle : 0;

	put_time(text, ",\"start_time\":", s->start);
	put_count(text, ",\"timeout\":", copy->timeout / TENTHS);
	put_count(text, ",\"time_to_live\":", left / TENTHS);
	put_count(text, ",\"bytes_c2s\":", s->bytes[0]);
	put_count(text, ",\"bytes_s2c\":", s->bytes[1]);
	put_count(text, ",\"packets_c2s\":", s->packets[0]);
	put_count(text, ",\"packets_s2c\":", s->packets[1]);
}

static void put_decision(struct text *text, const struct session *s, const struct record_names *names)
{
	bool in_ager = s->state[0] == SESSION_ACTIVE || s->state[0] == SESSION_DISCARD;

	put_field(text, ",\"rule\":", word_of(&names->rule, s->rule));
	put_field(text, ",\"nat_rule\":", s->nat_rule ? word_of(&names->nat_rule, s->nat_rule - 1) : "null");
	put_field(text, ",\"address_port_translation\":", TRANSLATION[s->flags & (FLAG_SNAT | FLAG_DNAT)]);
	put_field(text, ",\"logged_at_end\":", yes_no(s->flags & FLAG_LOG_END));
	put_field(text, ",\"in_ager\":", yes_no(in_ager));
	put(text, ",\"synced_from_ha_peer\":false");
}

static void put_way(struct text *text, const struct session_copy *copy, const struct record_names *names,
		    const struct refusals *refusals)
{
	const struct session *s = &copy->session;

	put_field(text, ",\"layer7_processing\":", s->flags & FLAG_INSPECTED ? "\"enabled\"" : "\"completed\"");
	put_field(text, ",\"offload\":", yes_no(s->flags & FLAG_OFFLOADED));
	put_field(text, ",\"offload_reason\":", obstacle(copy, refusals));
	put_field(text, ",\"via_syn_cookies\":false,\"terminated_on_host\":", yes_no(s->flags & FLAG_HOST));
	put_interface(text, ",\"ingress_interface\":", names, s->ingress);
	put_interface(text, ",\"egress_interface\":", names, s->egress);
	put(text, ",\"qos_rule\":\"N/A (class 4)\"");
}

static void put_origin_and_end(struct text *text, const struct session *s, const struct record_names *names)
{
	const char *side = s->flags & FLAG_BY_SERVER ? "\"server\"" : "\"client\"";
	bool predicted = s->flags & FLAG_PREDICTED;

	if (s->parent)
		put_count(text, ",\"parent_session\":", s->parent);
	else
		put(text, ",\"parent_session\":null");
	put_field(text, ",\"prediction_triggered_by\":", predicted ? side : "null");
	put_field(text, ",\"prediction_matched_once\":", predicted ? yes_no(s->type == SESSION_FLOW) : "null");
	put_field(text, ",\"end_reason\":",
		  s->end_reason == END_NONE ? "\"unknown\"" : word_of(&names->reason, s->end_reason));
}

static void put_session(struct text *text, const struct session_copy *copy, const struct record_names *names,
			const struct refusals *refusals)
{
	const struct session *s = &copy->session;

	put_count(text, "{\"row\":{\"id\":", copy->id);
	put_field(text, ",\"vsys\":\"vsys1\",\"application\":", word_of(&names->application, s->application));
	put_field(text, ",\"state\":", state_of(s, 0));
	put_field(text, ",\"type\":", TYPE[s->type]);
	put_field(text, ",\"flags\":", flags_of(s));
	put_side(text, ",\"c2s\":", s, 0, names);
	put_side(text, ",\"s2c\":", s, 1, names);
	put_amounts(text, copy, names->now);
	put_decision(text, s, names);
	put_way(text, copy, names, refusals);
	put_origin_and_end(text, s, names);
	put(text, "}}\n");
}

/* In the order of the list: a translated address is what the other flow calls its far end. */
static void put_columns(struct text *text, const struct session_copy *copy, const struct record_names *names)
{
	const struct session *s = &copy->session;
	const struct flow_key *c2s = &s->key[0], *s2c = &s->key[1];

	put_count(text, "{\"row\":[", copy->id);
	put_field(text, ",", word_of(&names->application, s->application));
	put_field(text, ",", state_of(s, 0));
	put_field(text, ",", TYPE[s->type]);
	put_field(text, ",", flags_of(s));
	put_host(text, ",", c2s, c2s->src);
	put_count(text, ",", ntohs(c2s->sport));
	put_field(text, ",", word_of(&names->zone, c2s->zone));
	put_count(text, ",", c2s->proto);
	put_host(text, ",", s2c, s2c->dst);
	put_count(text, ",", ntohs(s2c->dport));
	put_host(text, ",\"vsys1\",", c2s, c2s->dst);
	put_count(text, ",", ntohs(c2s->dport));
	put_field(text, ",", word_of(&names->zone, s2c->zone));
	put_host(text, ",", s2c, s2c->src);
	put_count(text, ",", ntohs(s2c->sport));
	put(text, "]}\n");
}

uint32_t row_write(const struct session_copy *copies, uint32_t n, bool columns, const struct record_names *names,
		   const struct refusals *refusals, struct record_text *out)
{
	struct text text = {out->text, out->text + out->size};
	size_t room = ROW_ROOM + ROW_NAMES * (size_t)names->longest;
	uint32_t i;

	for (i = 0; i < n && (size_t)(text.end - text.at) >= room; i++) {
		if (columns)
			put_columns(&text, &copies[i], names);
		else
			put_session(&text, &copies[i], names, refusals);
	}
	out->used = (uint32_t)(text.at - out->text);
	out->lines = i;
	return i;
}
