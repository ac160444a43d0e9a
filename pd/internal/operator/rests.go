package operator

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/topology"
)

const (
	// firstRest is the pause after a first failure; each further one doubles it.
	firstRest = 2 * time.Second
	longRest  = 10 * time.Minute
	// recentFor is how long balancing does not turn a move back, unless the operator
	// says more.
	recentFor = 5 * time.Minute
	// maxMemory bounds the rests and the recent moves that are kept. A rest that
	// does not fit is forgotten: it is tried again sooner. So are the oldest moves.
	maxMemory = 20_000
)

// memory is what a controller knows of operators that are over.
type memory struct {
	rests  map[memoryKey]Rest
	recent map[recentKey]Recent
	// restList and recentList are what planners read, nil when to be made anew.
	restList   []Rest
	recentList []Recent
}

type memoryKey struct {
	rangeID uint64
	by      string
}

// recentKey: moves are known by the store that was left, of transfers the last.
type recentKey struct {
	rangeID uint64
	kind    Kind
	left    uint64
}

func newMemory() memory {
	return memory{rests: map[memoryKey]Rest{}, recent: map[recentKey]Recent{}}
}

// ended takes in how an operator ended.
func (m *memory) ended(o *Operator, r *topology.Range, failure string, final bool, now time.Time) {
	key := memoryKey{o.RangeID, o.By}
	m.restList, m.recentList = nil, nil
	switch {
	case failure == "":
		delete(m.rests, key)
		m.done(o, now)
		return
	case r == nil || r.SpanEpoch() != o.spanEpoch: // it is another range now
		delete(m.rests, key)
		return
	}
	old := m.rests[key]
	if len(m.rests) >= maxMemory && old.RangeID == 0 {
		return
	}
	pause := min(longRest, firstRest<<min(old.Failures, 20))
	m.rests[key] = Rest{
		RangeID: o.RangeID, By: o.By, Why: failure, Failures: old.Failures + 1,
		Until: now.Add(pause), Final: final,
		SizeBytes: r.SizeBytes(), SpanEpoch: r.SpanEpoch(),
	}
}

func (m *memory) done(o *Operator, now time.Time) {
	move := Recent{
		RangeID: o.RangeID, Kind: TransferLeader, From: o.Leader, At: now, keep: recentFor,
	}
	for _, s := range o.Steps {
		switch s.Kind {
		case AddLearner:
			move.Kind, move.To = AddLearner, s.StoreID
		case Remove:
			move.From = s.StoreID
		case TransferLeader:
			if move.Kind == TransferLeader {
				move.To = s.StoreID
			}
		}
	}
	// What drain and rules do to leaders, balancing may undo when they are over.
	if move.From == 0 || move.To == 0 ||
		move.Kind == TransferLeader && o.Priority < Balance {
		return
	}
	key := recentKey{rangeID: o.RangeID, kind: move.Kind}
	if move.Kind == AddLearner {
		key.left = move.From
		move.keep = max(recentFor, o.RememberFor)
	}
	if _, known := m.recent[key]; !known && len(m.recent) >= maxMemory {
		m.forgetOldest()
	}
	m.recent[key] = move
}

// forgetOldest makes room for moves. The newest are needed most: by them planners
// know which stores do not report yet what was done to them.
func (m *memory) forgetOldest() {
	keys := slices.SortedFunc(maps.Keys(m.recent), func(a, b recentKey) int {
		return cmp.Or(m.recent[a].At.Compare(m.recent[b].At), cmp.Compare(a.rangeID, b.rangeID),
			cmp.Compare(a.kind, b.kind), cmp.Compare(a.left, b.left))
	})
	for _, k := range keys[:len(keys)/8] {
		delete(m.recent, k)
	}
}

// forget drops what has no meaning any more.
func (m *memory) forget(now time.Time) {
	for k, r := range m.recent {
		if now.Sub(r.At) > r.keep {
			delete(m.recent, k)
			m.recentList = nil
		}
	}
	for k, r := range m.rests {
		// A pause that is long over says nothing about today.
		if !r.Final && now.Sub(r.Until) > longRest || now.Sub(r.Until) > 24*time.Hour {
			delete(m.rests, k)
			m.restList = nil
		}
	}
}

func (m *memory) lists() ([]Rest, []Recent) {
	if m.restList == nil {
		m.restList = slices.SortedFunc(maps.Values(m.rests), func(a, b Rest) int {
			return cmp.Or(cmp.Compare(a.RangeID, b.RangeID), cmp.Compare(a.By, b.By))
		})
	}
	if m.recentList == nil {
		m.recentList = slices.SortedFunc(maps.Values(m.recent), func(a, b Recent) int {
			return cmp.Or(cmp.Compare(a.RangeID, b.RangeID), cmp.Compare(a.Kind, b.Kind),
				cmp.Compare(a.From, b.From))
		})
	}
	return m.restList, m.recentList
}
