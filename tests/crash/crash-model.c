/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash-model.c - what was written, acknowledged and flushed when, and what may be left of it
 *
 * Operations on one sector follow each other (crash-work.c never has two in flight), so the
 * order in which they began is the order they have.
 */
#include "crash-model.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "util/compiler.h"

static void *grow(void *array, size_t *room, size_t nr, size_t size)
{
	if (nr < *room)
		return array;
	*room = MAX(16, 2 * *room);
	array = realloc(array, *room * size);
	TP_INVARIANT(array);
	return array;
}

/* ---- sectors ---- */

#define STAMP_MAGIC UINT64_C(0x7374616d70206f66)
#define WORDS (MODEL_SECTOR / 8)

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= UINT64_C(0x9e3779b97f4a7c15);
	x ^= x >> 29;
	return x;
}

void stamp_fill(uint8_t *to, uint64_t id, uint64_t sector)
{
	uint64_t words[WORDS] = { STAMP_MAGIC, id, sector };

	if (id)
		for (unsigned i = 3; i < WORDS; i++)
			words[i] = mix(words[i - 1] + id + sector);
	else
		words[0] = words[2] = 0;
	memcpy(to, words, sizeof(words));
}

bool stamp_read(const uint8_t *from, uint64_t sector, uint64_t *ret_id)
{
	uint8_t want[MODEL_SECTOR];
	uint64_t id;

	memcpy(&id, from + 8, sizeof(id));
	stamp_fill(want, id, sector);
	*ret_id = id;
	return memcmp(from, want, sizeof(want)) == 0;
}

/* ---- keeping it ---- */

void model_clear(struct model *m)
{
	for (unsigned i = 0; i < m->nr_volumes; i++) {
		free(m->volumes[i]->ops);
		free(m->volumes[i]->flushes);
		free(m->volumes[i]);
	}
	free(m->names);
	free(m->flushes);
	*m = (struct model){ .last_id = m->last_id };
}

struct model_volume *model_add_volume(struct model *m, uint64_t size_bytes)
{
	struct model_volume *v = calloc(1, sizeof(*v));

	TP_INVARIANT(v && m->nr_volumes < MODEL_MAX_VOLUMES);
	v->base_size = v->size_bytes = size_bytes;
	v->hidden_from = MODEL_MAX_SECTORS;
	m->volumes[m->nr_volumes++] = v;
	return v;
}

size_t model_add_op(struct model *m, struct model_volume *v, const struct model_op *op)
{
	v->ops = grow(v->ops, &v->ops_room, v->nr_ops, sizeof(*v->ops));
	v->ops[v->nr_ops] = *op;
	v->ops[v->nr_ops].id = ++m->last_id;
	return v->nr_ops++;
}

void model_add_flush(struct model_volume *v, uint64_t began, uint64_t ended)
{
	v->flushes = grow(v->flushes, &v->flushes_room, v->nr_flushes, sizeof(*v->flushes));
	v->flushes[v->nr_flushes++] = (struct model_flush){ began, ended };
}

void model_add_failed_flush(struct model_volume *v, uint64_t ended)
{
	v->nr_told = v->nr_ops;
	v->told_moment = ended;
}

void model_add_pool_flush(struct model *m, uint64_t began, uint64_t ended)
{
	m->flushes = grow(m->flushes, &m->flushes_room, m->nr_flushes, sizeof(*m->flushes));
	m->flushes[m->nr_flushes++] = (struct model_flush){ began, ended };
}

struct model_names *model_add_names(struct model *m, uint64_t began)
{
	struct model_names *n;

	m->names = grow(m->names, &m->names_room, m->nr_names, sizeof(*m->names));
	n = &m->names[m->nr_names++];
	if (m->nr_names > 1)
		*n = n[-1];
	else
		for (unsigned i = 0; i < MODEL_NAMES; i++)
			n->volumes[i] = -1;
	n->began = began;
	n->ended = 0;
	return n;
}

void model_drop_names(struct model *m)
{
	m->nr_names--;
}

struct model_names *model_last_names(struct model *m)
{
	return &m->names[m->nr_names - 1];
}

const char *model_name(unsigned i)
{
	static const char *const names[MODEL_NAMES] = { "a", "b", "c", "d", "e", "f" };

	return names[i];
}

void model_tell(const struct model *m, FILE *out)
{
	for (unsigned n = 0; n < m->nr_volumes; n++) {
		const struct model_volume *v = m->volumes[n];

		for (size_t i = 0; i < v->nr_ops; i++)
			fprintf(out,
				"%" PRIu64 " to %" PRIu64 " volume %u: %s %" PRIu64
				", sectors %u to %u, size %" PRId64 "%s\n",
				v->ops[i].began, v->ops[i].ended, n,
				v->ops[i].zeros ? "zeros" : "write", v->ops[i].id, v->ops[i].begin,
				v->ops[i].end, (int64_t)v->ops[i].size_bytes,
				v->ops[i].durable ? ", durable" : "");
		for (size_t i = 0; i < v->nr_flushes; i++)
			fprintf(out, "%" PRIu64 " to %" PRIu64 " volume %u: flush\n",
				v->flushes[i].began, v->flushes[i].ended, n);
	}
	for (size_t i = 0; i < m->nr_flushes; i++)
		fprintf(out, "%" PRIu64 " to %" PRIu64 " pool: flush\n", m->flushes[i].began,
			m->flushes[i].ended);
	for (size_t i = 0; i < m->nr_names; i++) {
		fprintf(out, "%" PRIu64 " to %" PRIu64 " names:", m->names[i].began,
			m->names[i].ended);
		for (unsigned k = 0; k < MODEL_NAMES; k++)
			if (m->names[i].volumes[k] >= 0)
				fprintf(out, " %s=%d", model_name(k), m->names[i].volumes[k]);
		fprintf(out, "\n");
	}
}

/* ---- judgement ---- */

static uint64_t covered_until(const struct model_flush *flushes, size_t nr, uint64_t moment,
			      uint64_t least)
{
	for (size_t i = 0; i < nr; i++)
		if (flushes[i].ended <= moment)
			least = MAX(least, flushes[i].began);
	return least;
}

static uint64_t covered_at(const struct model *m, const struct model_volume *v, uint64_t moment)
{
	return covered_until(v->flushes, v->nr_flushes, moment,
			     covered_until(m->flushes, m->nr_flushes, moment, 0));
}

/*
 * What each sector may be: floor[s] is 1 + the index of the last op on it that is durable, 0 if
 * it is the base.  The same of the size.
 */
struct bounds {
	uint64_t moment;
	size_t floor[MODEL_MAX_SECTORS], size_floor;
	bool zeros[MODEL_MAX_SECTORS]; /* allowed */
	size_t nr_begun;
};

static void find_bounds(const struct model *m, const struct model_volume *v, uint64_t moment,
			struct bounds *b)
{
	uint64_t covered = covered_at(m, v, moment);
	uint64_t covered_when_told = covered_at(m, v, MIN(moment, v->told_moment));

	memset(b, 0, sizeof(*b));
	b->moment = moment;
	for (size_t i = 0; i < v->nr_ops && v->ops[i].began <= moment; i++) {
		const struct model_op *op = &v->ops[i];
		bool acknowledged = op->ended && op->ended <= moment;

		b->nr_begun = i + 1;
		if (!acknowledged ||
		    !(op->durable || op->ended < (i < v->nr_told ? covered_when_told : covered)))
			continue;
		for (unsigned s = op->begin; s < op->end; s++)
			b->floor[s] = i + 1;
		if (op->size_bytes != SIZE_SAME)
			b->size_floor = i + 1;
	}
	for (unsigned s = 0; s < MODEL_MAX_SECTORS; s++)
		b->zeros[s] = !b->floor[s] && !v->base[s];
	for (size_t i = 0; i < b->nr_begun; i++)
		for (unsigned s = v->ops[i].begin; v->ops[i].zeros && s < v->ops[i].end; s++)
			b->zeros[s] |= i + 1 >= b->floor[s];
}

static bool size_allowed(const struct model_volume *v, const struct bounds *b, uint64_t size)
{
	if (!b->size_floor && size == v->base_size)
		return true;
	for (size_t i = b->size_floor ? b->size_floor - 1 : 0; i < b->nr_begun; i++)
		if (v->ops[i].size_bytes == size)
			return true;
	return false;
}

/* The index of the op with number @id, or nr_ops. */
static size_t find_op(const struct model_volume *v, uint64_t id)
{
	size_t low = 0, high = v->nr_ops;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (v->ops[mid].id < id)
			low = mid + 1;
		else
			high = mid;
	}
	return low < v->nr_ops && v->ops[low].id == id ? low : v->nr_ops;
}

/* NULL, or what is wrong. */
static const char *judge_sector(const struct model_volume *v, const struct bounds *b, unsigned s,
				const uint8_t *content, uint64_t *ret_id)
{
	size_t i;

	*ret_id = 0;
	if (!stamp_read(content, s, ret_id))
		return "it is torn, or of no write to this sector";
	if (v->base_unknown || (s >= v->hidden_from && !b->floor[s]))
		return NULL;
	if (!*ret_id)
		return b->zeros[s] ? NULL : "zeros instead of what was flushed";
	if (*ret_id == v->base[s])
		return b->floor[s] ? "it is older than what was flushed" : NULL;
	i = find_op(v, *ret_id);
	if (i == v->nr_ops || v->ops[i].zeros || s < v->ops[i].begin || s >= v->ops[i].end)
		return "it is foreign";
	if (i >= b->nr_begun)
		return "it was not written yet";
	return i + 1 < b->floor[s] ? "it is older than what was flushed" : NULL;
}

static uint64_t floor_id(const struct model_volume *v, const struct bounds *b, unsigned s)
{
	return b->floor[s] ? v->ops[b->floor[s] - 1].id : v->base[s];
}

static bool judge_volume(const struct model *m, const struct model_volume *v, unsigned name,
			 uint64_t moment, const struct model_found *found, char *why,
			 size_t why_bytes)
{
	struct bounds b;
	uint64_t id;

	find_bounds(m, v, moment, &b);
	if (!size_allowed(v, &b, found->size_bytes[name])) {
		snprintf(why, why_bytes, "\"%s\" has %" PRIu64 " bytes", model_name(name),
			 found->size_bytes[name]);
		return false;
	}
	for (unsigned s = 0; s < found->size_bytes[name] / MODEL_SECTOR; s++) {
		const char *what = judge_sector(
			v, &b, s, found->content[name] + (size_t)s * MODEL_SECTOR, &id);

		if (!what)
			continue;
		snprintf(why, why_bytes,
			 "\"%s\", sector %u: write %" PRIu64 ", the last flushed one is %" PRIu64
			 "%s: %s",
			 model_name(name), s, id, floor_id(v, &b, s),
			 b.floor[s] && v->ops[b.floor[s] - 1].zeros ? " (zeros)" : "", what);
		return false;
	}
	return true;
}

static bool same_names(const struct model_names *n, const struct model_found *found)
{
	for (unsigned i = 0; i < MODEL_NAMES; i++)
		if (found->exists[i] != (n->volumes[i] >= 0))
			return false;
	return true;
}

static void tell_names(const struct model_found *found, char *why, size_t why_bytes)
{
	size_t at = (size_t)snprintf(why, why_bytes, "these names were never together:");

	for (unsigned i = 0; i < MODEL_NAMES && at < why_bytes; i++)
		if (found->exists[i])
			at += (size_t)snprintf(why + at, why_bytes - at, " %s", model_name(i));
}

bool model_allows(const struct model *m, uint64_t moment, const struct model_found *found,
		  char *why, size_t why_bytes)
{
	size_t first = 0;
	bool told = false;

	for (size_t i = 0; i < m->nr_names; i++)
		if (m->names[i].ended && m->names[i].ended <= moment)
			first = i;
	for (size_t i = first; i < m->nr_names && m->names[i].began <= moment; i++) {
		const struct model_names *n = &m->names[i];
		bool ok = same_names(n, found);

		/* Two states can have the same names for other volumes. */
		for (unsigned k = 0; ok && k < MODEL_NAMES; k++)
			if (n->volumes[k] >= 0)
				ok = judge_volume(m, m->volumes[n->volumes[k]], k, moment, found,
						  why, why_bytes);
		if (ok)
			return true;
		told |= same_names(n, found);
	}
	if (!told)
		tell_names(found, why, why_bytes);
	return false;
}
