/* record.c - lines of the traffic log, where they are written by the hundred thousand: what the dispatch cache has begun
 * and what the ager has ended.
 *
 * What a record says is contract section 5; the others are made by logs.py, and a test compares the two.  Every name comes
 * from Python as JSON, quotes included; numbers without a name are null.  A line that does not fit is not begun.
 */
#include <arpa/inet.h>

#include "internal.h"
#include "text.h"

#define LINE_ROOM 1024                /* of what is no name */
#define NAMES_ROOM 9                  /* names in a line */

static void put_flow(struct text *text, const struct session *s)
{
	const struct flow_key *c2s = &s->key[0], *s2c = &s->key[1];

	put_address(text, ",\"src\":", c2s->src);
	put_address(text, ",\"dst\":", c2s->dst);
	put_count(text, ",\"sport\":", ntohs(c2s->sport));
	put_count(text, ",\"dport\":", ntohs(c2s->dport));
	put_count(text, ",\"proto\":", c2s->proto);
	put_address(text, ",\"nat_src\":", s2c->dst);
	put_address(text, ",\"nat_dst\":", s2c->src);
	put_count(text, ",\"nat_sport\":", ntohs(s2c->dport));
	put_count(text, ",\"nat_dport\":", ntohs(s2c->sport));
	put_count(text, ",\"bytes_sent\":", s->bytes[0]);
	put_count(text, ",\"bytes_received\":", s->bytes[1]);
	put_count(text, ",\"packets_sent\":", s->packets[0]);
	put_count(text, ",\"packets_received\":", s->packets[1]);
}

/* Whatever its rule says by now: what is no refusal was allowed. */
static const char *action_of(const struct session *s, const struct record_names *names)
{
	return s->flags & FLAG_ONE_WAY ? word_of(&names->action, s->rule) : "\"allow\"";
}

static void put_line(struct text *text, const struct session_copy *copy, const char *event, const char *reason,
		     const struct record_names *names)
{
	const struct session *s = &copy->session;

	put_field(text, "{\"event\":", event);
	put_field(text, ",\"time\":", names->time);
	put_count(text, ",\"session_id\":", copy->id);
	put_field(text, ",\"rule\":", word_of(&names->rule, s->rule));
	put_field(text, ",\"nat_rule\":", s->nat_rule ? word_of(&names->nat_rule, s->nat_rule - 1) : "null");
	put_field(text, ",\"application\":", word_of(&names->application, s->application));
	put_field(text, ",\"from\":", word_of(&names->zone, s->key[0].zone));
	put_field(text, ",\"to\":", word_of(&names->zone, s->key[1].zone));
	put_flow(text, s);
	put_time(text, ",\"start\":", s->start);
	put_count(text, ",\"elapsed\":", (names->now - s->start_tick) / TENTHS);
	put_field(text, ",\"action\":", action_of(s, names));
	put_field(text, ",\"session_end_reason\":", reason);
	if (s->parent)
		put_count(text, ",\"parent_session_id\":", s->parent);
	else
		put(text, ",\"parent_session_id\":null");
	put_field(text, ",\"ingress_interface\":", interface_of(names, s->ingress));
	put_field(text, ",\"egress_interface\":", interface_of(names, s->egress));
	put_field(text, ",\"flags\":", flags_of(s));
	put_field(text, ",\"via\":", s->flags & FLAG_CACHED ? "\"cache\"}\n" : "\"slow\"}\n");
}

static bool is_action(const struct record_names *names, const struct session *s, const char *action)
{
	return !strcmp(word_of(&names->action, s->rule), action);
}

/* What became of a session that begins. */
static void put_begun(struct text *text, const struct session_copy *copy, const struct record_names *names)
{
	if (copy->session.state[0] != SESSION_DISCARD)
		put_line(text, copy, "\"start\"", "null", names);
	else if (is_action(names, &copy->session, "\"drop\""))
		put_line(text, copy, "\"drop\"", "\"policy-deny\"", names);
	else
		put_line(text, copy, "\"deny\"", "\"policy-deny\"", names);
}

/* A DISCARD session has had its record when its first packet was refused. */
static bool tells_end(const struct session *s)
{
	return s->flags & FLAG_LOG_END && !(s->flags & FLAG_ONE_WAY);
}

uint32_t record_write(const struct session_copy *copies, uint32_t n, bool ended, const struct record_names *names,
		      struct record_text *out)
{
	struct text text = {out->text, out->text + out->size};
	uint32_t i;

	out->lines = 0;
	for (i = 0; i < n; i++) {
		const struct session *s = &copies[i].session;

		if (ended && !tells_end(s))
			continue;
		if ((size_t)(text.end - text.at) < LINE_ROOM + NAMES_ROOM * (size_t)names->longest)
			break;
		if (ended)
			put_line(&text, &copies[i], "\"end\"", word_of(&names->reason, s->end_reason), names);
		else
			put_begun(&text, &copies[i], names);
		out->lines++;
	}
	out->used = (uint32_t)(text.at - out->text);
	return i;
}
