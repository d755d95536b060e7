/* text.h - JSON into a buffer whose room was looked at before: what record.c and row.c share.
 *
 * Every name comes from Python as JSON, quotes included; numbers without a name are null.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <time.h>

struct text {
	char *at;
	char *end;
};

static inline void put(struct text *text, const char *word)
{
	size_t len = strlen(word);

	memcpy(text->at, word, len);
	text->at += len;
}

static inline void put_number(struct text *text, uint64_t number)
{
	char digits[20];
	int n = 0;

	do
		digits[n++] = (char)('0' + number % 10);
	while (number /= 10);
	while (n)
		*text->at++ = digits[--n];
}

static inline void put_field(struct text *text, const char *key, const char *json)
{
	put(text, key);
	put(text, json);
}

static inline void put_count(struct text *text, const char *key, uint64_t number)
{
	put(text, key);
	put_number(text, number);
}

static inline bool is_mapped(const uint8_t *address)
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

	return !memcmp(address, mapped, sizeof(mapped));
}

/* The usual spelling.  inet_ntop() would spell ::1:2 with dots. */
static inline void put_address(struct text *text, const char *key, const uint8_t *address)
{
	static const uint8_t zero[12];

	put(text, key);
	*text->at++ = '"';
	if (is_mapped(address)) {
		for (int i = 12; i < 16; i++) {
			put_number(text, address[i]);
			*text->at++ = i < 15 ? '.' : '"';
		}
		return;
	}
	if (!memcmp(address, zero, sizeof(zero)) && get16(address + 12))
		sprintf(text->at, "::%x:%x", get16(address + 12), get16(address + 14));
	else
		inet_ntop(AF_INET6, address, text->at, INET6_ADDRSTRLEN);
	text->at += strlen(text->at);
	*text->at++ = '"';
}

/* Seconds since 1970 as ISO 8601 in UTC; many in a row are of the same second. */
static inline void put_time(struct text *text, const char *key, uint32_t seconds)
{
	static __thread char spelled[32];
	static __thread uint32_t last;
	time_t when = seconds;
	struct tm tm;

	if (!spelled[0] || seconds != last) {
		gmtime_r(&when, &tm);
		strftime(spelled, sizeof(spelled), "\"%Y-%m-%dT%H:%M:%SZ\"", &tm);
		last = seconds;
	}
	put_field(text, key, spelled);
}

static inline const char *word_of(const struct words *words, uint32_t number)
{
	return number < words->n ? words->json[number] : "null";
}

static inline const char *interface_of(const struct record_names *names, uint32_t ifindex)
{
	for (uint32_t i = 0; i < names->interface.n; i++)
		if (names->ifindex[i] == ifindex)
			return names->interface.json[i];
	return "null";
}

static inline const char *flags_of(const struct session *s)
{
	static const char *const flags[] = {"\"\"", "\"NS\"", "\"ND\"", "\"NB\""};

	return flags[s->flags & (FLAG_SNAT | FLAG_DNAT)];
}
