package topology

import (
	"cmp"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// View is an immutable picture for planners.
type View struct {
	Now time.Time
	// Ranges are ordered by span.
	Ranges []*Range
	Stores []*Store
	// DownAfter is how long a store may be silent before it counts as down,
	// SilentAfter how long before nothing new is given to it.
	DownAfter, SilentAfter time.Duration
	// StaleAfter is how old a leaseholder's report may be; 0 is any age.
	StaleAfter time.Duration
	// MissingAfter is how long a store's own lists must lack a replica before it
	// counts as missing.
	MissingAfter time.Duration
	// Replicas is the configured number of voters, SplitSizeBytes the size from
	// which a range is split.
	Replicas       int
	SplitSizeBytes uint64
	// SplitLoadOps is the load, in operations per second, from which a range is
	// split; 0 is never.
	SplitLoadOps uint64
	// LocationLabels are the keys of store labels that name failure domains, the
	// widest first. Rules are the placement rules, by id.
	LocationLabels []string
	Rules          []*pdpb.PlacementRule
	// HighWaterPercent is how full a disk may be to receive replicas; 0 is any.
	HighWaterPercent int
	// TolerancePercent is how far stores may lie apart, of the mean, before
	// balancing begins.
	TolerancePercent int
	// Still turns balancing off and says why.
	Still string
}

// View takes a picture.
func (t *Topology) View(now time.Time) View {
	v := View{Now: now, Stores: t.Stores()}
	t.mu.RLock()
	defer t.mu.RUnlock()
	v.Ranges = make([]*Range, 0, t.mu.spans.Len())
	t.mu.spans.Ascend(func(r *Range) bool {
		v.Ranges = append(v.Ranges, r)
		return true
	})
	return v
}

// Fulfils reports whether the store's labels fulfil all constraints.
func (s *Store) Fulfils(constraints []*pdpb.LabelConstraint) bool {
	return meta.Fulfils(s.Store.GetLabels(), constraints)
}

// ConstraintText renders constraints for people.
func ConstraintText(constraints []*pdpb.LabelConstraint) string {
	return meta.ConstraintText(constraints)
}

// Rule is the placement rule of a key: the narrowest one whose span holds it;
// nil when there is none.
func (v View) Rule(key []byte) *pdpb.PlacementRule {
	var out *pdpb.PlacementRule
	for _, r := range v.Rules {
		span := keys.FromProto(r.GetSpan())
		if span.Contains(key) &&
			(out == nil || keys.FromProto(out.GetSpan()).ContainsSpan(span)) {
			out = r
		}
	}
	return out
}

// Voters is how many voters r shall have when all is well.
func (v View) Voters(r *Range) int {
	if n := int(v.Rule(r.Range.GetSpan().GetStart()).GetVoters()); n > 0 {
		return n
	}
	return v.Replicas
}

// Store returns a store by its id; nil when it is not known.
func (v View) Store(id uint64) *Store {
	i, ok := slices.BinarySearchFunc(v.Stores, id, func(s *Store, id uint64) int {
		return cmp.Compare(s.Store.GetStoreId(), id)
	})
	if !ok {
		return nil
	}
	return v.Stores[i]
}

// State is a store's state as planners see it: silence makes it DOWN.
func (v View) State(s *Store) metapb.StoreState {
	switch {
	case s == nil:
		return metapb.StoreState_STORE_STATE_GONE
	case s.Store.GetState() == metapb.StoreState_STORE_STATE_GONE:
		return metapb.StoreState_STORE_STATE_GONE
	case v.Now.Sub(s.Heard) >= v.DownAfter:
		return metapb.StoreState_STORE_STATE_DOWN
	}
	return s.Store.GetState()
}

// Silent reports whether s has missed heartbeats, or sent none to this PD yet: it
// may be alive, but nothing is built upon it.
func (v View) Silent(s *Store) bool {
	return s == nil || s.Stats == nil || v.State(s) == metapb.StoreState_STORE_STATE_GONE ||
		v.Now.Sub(s.Heard) >= v.SilentAfter
}

// Receives reports whether a new replica may be placed on s: it is up, was
// heard lately and has room.
func (v View) Receives(s *Store) bool {
	return v.State(s) == metapb.StoreState_STORE_STATE_UP &&
		s.Stats != nil && !v.Silent(s) &&
		(s.Store.GetDiskState() == metapb.DiskState_DISK_STATE_OK ||
			s.Store.GetDiskState() == metapb.DiskState_DISK_STATE_UNSPECIFIED)
}
