package evaluate

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ridgekv/ridge/proto/keys"
)

const (
	// sampleOneOf operations one is sampled.
	sampleOneOf = 64
	// sampleSlots keys are kept of a window: halves are known to a few percent.
	sampleSlots = 128
	// sampleKeyBytes is what is kept of a long key.
	sampleKeyBytes = 1024
	// sampleWindow is how long a window is at least, sampleLongest at most;
	// between them it lasts until sampleLeast keys are known.
	sampleWindow  = 5 * time.Second
	sampleLongest = time.Minute
	sampleLeast   = 32
)

// Load tells where in its span the load of a range falls. At most one of SplitKey
// and HotKey is set; neither while too little is known.
type Load struct {
	// SplitKey divides the load so that either side bears at least a quarter, and
	// as evenly as whole keys allow.
	SplitKey []byte
	// HotKey bears more than half of the load, so that no key divides it.
	HotKey        []byte
	HotKeyPercent int
}

// samples is a reservoir of the keys that requests of a range named lately: one
// fills up while the one before it is asked. Both speak of one span only.
// Whoever finds it in use drops the sample: no request waits for another here.
type samples struct {
	mu struct {
		sync.Mutex
		spanEpoch uint64
		// began is when the window began; seen counts its samples, of which keys
		// is a fair choice.
		began time.Time
		seen  int
		keys  [][]byte
		// last is the window before, which ended at lastEnd.
		last    [][]byte
		lastEnd time.Time
	}
}

// picked says of one operation in sampleOneOf that it is to be sampled. It draws
// at random, so that no pattern of requests is missed.
func picked() bool { return rand.Uint32()%sampleOneOf == 0 }

// sampleKey is a key that stands for the call.
func (c *call) sampleKey() []byte {
	switch len(c.keys) {
	case 0:
		return c.span.Start
	case 1:
		return c.keys[0]
	}
	return c.keys[rand.IntN(len(c.keys))]
}

// note takes a sampled key in; it copies what it keeps.
func (s *samples) note(key []byte, spanEpoch uint64, now time.Time) {
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	if s.mu.spanEpoch != spanEpoch {
		s.mu.last, s.mu.keys, s.mu.seen = nil, nil, 0
		s.mu.spanEpoch, s.mu.began = spanEpoch, now
	}
	if age := now.Sub(s.mu.began); age >= sampleLongest ||
		age >= sampleWindow && s.mu.seen >= sampleLeast {
		s.mu.last, s.mu.lastEnd = s.mu.keys, now
		s.mu.keys, s.mu.seen, s.mu.began = nil, 0, now
	}
	s.mu.seen++
	key = key[:min(len(key), sampleKeyBytes)]
	if len(s.mu.keys) < sampleSlots {
		s.mu.keys = append(s.mu.keys, bytes.Clone(key))
	} else if i := rand.IntN(s.mu.seen); i < sampleSlots {
		s.mu.keys[i] = bytes.Clone(key)
	}
}

// load is what the last whole window says of the span, if it is not too old.
func (s *samples) load(span keys.Span, spanEpoch uint64, now time.Time) Load {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.spanEpoch != spanEpoch || now.Sub(s.mu.lastEnd) > sampleLongest {
		return Load{}
	}
	return divide(s.mu.last, span)
}

// divide finds the key that halves the sampled load. When either side of every
// cut bears less than a quarter, one key lies across both quarters: it bears more
// than half. Keys that were cut short keep their order, and a cut between two of
// them lies between the keys too.
func divide(sampled [][]byte, span keys.Span) Load {
	in := slices.DeleteFunc(slices.Clone(sampled), func(k []byte) bool {
		return !span.Contains(k)
	})
	n := len(in)
	if n < sampleLeast {
		return Load{}
	}
	slices.SortFunc(in, bytes.Compare)
	cut, hot, most, began := 0, 0, 0, 0
	for i := 1; i <= n; i++ {
		if i < n && bytes.Equal(in[i], in[i-1]) {
			continue
		}
		if i-began > most {
			hot, most = began, i-began
		}
		began = i
		if i < n && min(i, n-i) > min(cut, n-cut) {
			cut = i
		}
	}
	if 4*min(cut, n-cut) >= n {
		return Load{SplitKey: in[cut]}
	}
	return Load{HotKey: in[hot], HotKeyPercent: 100 * most / n}
}

// LoadOf tells where the load of a range falls that this store evaluates for.
func (ev *Evaluator) LoadOf(rangeID uint64) Load {
	v, ok := ev.workers.Load(rangeID)
	if !ok {
		return Load{}
	}
	w := v.(*worker)
	st := w.rep.State()
	return w.samples.load(st.Span(), st.SpanEpoch(), time.Now())
}
