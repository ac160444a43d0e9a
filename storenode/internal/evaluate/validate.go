package evaluate

import (
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/storenode/internal/apply"
)

// maxTTL keeps expires_at far from the end of the timestamps.
const maxTTL = 200 * 365 * 24 * time.Hour

// maxBulkMutations and maxBulkBytes bound one BulkWrite request: it is cut
// into entries, but it waits in memory.
const (
	maxBulkMutations = 4 * keys.MaxEntryKeys
	maxBulkBytes     = 4 * keys.MaxEntrySizeBytes
)

// validate refuses what can never succeed, whatever the range looks like.
func (c *call) validate() error {
	for _, k := range c.keys {
		if err := checkKey("key", k); err != nil {
			return err
		}
	}
	if c.hasSpan {
		if err := c.checkBounds(); err != nil {
			return err
		}
	}
	switch b := c.req.GetBody().(type) {
	case *kvpb.Request_Put:
		return checkRow(b.Put.GetValue(), b.Put.GetTtlMs())
	case *kvpb.Request_CompareAndSwap:
		return checkRow(b.CompareAndSwap.GetValue(), b.CompareAndSwap.GetTtlMs())
	case *kvpb.Request_BatchGet:
		if err := checkCount("keys of BatchGet", len(c.keys), maxBatchGetKeys); err != nil {
			return err
		}
	case *kvpb.Request_BatchWrite:
		ms := b.BatchWrite.GetMutations()
		if err := checkCount("mutations of BatchWrite", len(ms), keys.MaxEntryKeys); err != nil {
			return err
		}
		return checkMutations("BatchWrite", ms, keys.MaxEntrySizeBytes-apply.EntryOverheadBytes)
	case *kvpb.Request_BulkWrite:
		ms := b.BulkWrite.GetMutations()
		if err := checkCount("mutations of BulkWrite", len(ms), maxBulkMutations); err != nil {
			return err
		}
		return checkMutations("BulkWrite", ms, maxBulkBytes)
	}
	return c.validateRead()
}

func (c *call) validateRead() error {
	level := c.consistency.GetLevel()
	switch {
	case level < 0 || level > kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_STALE:
		return errs.InvalidArgument{Field: "consistency.level", Reason: "unknown"}
	case c.snapshot() && c.at() == 0:
		return errs.InvalidArgument{Field: "consistency.snapshot_ts", Reason: "missing"}
	}
	return nil
}

func (c *call) checkBounds() error {
	if len(c.span.Start) > 0 {
		if err := checkKeySize("start", c.span.Start); err != nil {
			return err
		}
	}
	if len(c.span.End) > 0 {
		// An end may be keys.Next of the longest key.
		if n := len(c.span.End); n > keys.MaxKeySizeBytes+1 {
			return errs.TooLarge{
				What: "end", SizeBytes: uint64(n), Limit: keys.MaxKeySizeBytes + 1,
			}
		}
	}
	if !c.span.Valid() {
		return errs.InvalidArgument{Field: "end", Reason: "not above start"}
	}
	return nil
}

func checkKey(field string, k []byte) error {
	if len(k) == 0 {
		return errs.InvalidArgument{Field: field, Reason: "empty"}
	}
	return checkKeySize(field, k)
}

func checkKeySize(field string, k []byte) error {
	// A start may be keys.Next of the longest key, as resume keys are.
	limit := keys.MaxKeySizeBytes
	if field == "start" {
		limit++
	}
	if len(k) > limit {
		return errs.TooLarge{What: field, SizeBytes: uint64(len(k)), Limit: uint64(limit)}
	}
	return nil
}

func checkRow(value []byte, ttlMillis uint64) error {
	if n := len(value); n > keys.MaxValueSizeBytes {
		return errs.TooLarge{
			What: "value", SizeBytes: uint64(n), Limit: keys.MaxValueSizeBytes,
		}
	}
	if ttlMillis > uint64(maxTTL/time.Millisecond) {
		return errs.InvalidArgument{Field: "ttl_ms", Reason: "above 200 years; 0 means for ever"}
	}
	return nil
}

func checkCount(what string, n, limit int) error {
	if n > limit {
		return errs.TooLarge{What: what, SizeBytes: uint64(n), Limit: uint64(limit)}
	}
	return nil
}

func checkMutations(what string, ms []*kvpb.Mutation, limit int) error {
	if len(ms) == 0 {
		return errs.InvalidArgument{Field: "mutations", Reason: "empty"}
	}
	size := 0
	for _, m := range ms {
		if m.GetDelete() && (len(m.GetValue()) > 0 || m.GetTtlMs() > 0) {
			return errs.InvalidArgument{Field: "mutations", Reason: "a delete has no value or TTL"}
		}
		if err := checkRow(m.GetValue(), m.GetTtlMs()); err != nil {
			return err
		}
		size += apply.EffectSizeBytes(apply.Effect{
			Key: m.GetKey(), Value: m.GetValue(), Delete: m.GetDelete(),
		})
	}
	return checkCount("bytes of "+what, size, limit)
}
