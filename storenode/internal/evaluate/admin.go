package evaluate

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// job is administrative work of a worker. The first one in line is begun when
// the lease is held and, if it wants so, the pipeline is empty.
type job struct {
	// drained: it begins when nothing is in flight, and meanwhile no write is
	// evaluated.
	drained bool
	begin   func(now time.Time, st *catalog.State)
	once    sync.Once
	done    chan error
}

func newJob(drained bool) *job { return &job{drained: drained, done: make(chan error, 1)} }

func (j *job) finish(err error) { j.once.Do(func() { j.done <- err }) }

// do runs a job. When ctx ends first, a job that has not begun never does; of
// any other the outcome is unknown.
func (w *worker) do(ctx context.Context, j *job) error {
	w.mu.Lock()
	closed := w.mu.closed
	if closed == nil {
		w.mu.jobs = append(w.mu.jobs, j)
	}
	w.mu.Unlock()
	if closed != nil {
		return closed
	}
	w.ring()
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		if w.forget(j) {
			return errs.Busy{Reason: "range jobs", RetryAfter: time.Second}
		}
		return errs.UnknownOutcome{RangeID: w.rangeID}
	}
}

// forget takes a job out of the line. It reports false when the job has begun.
func (w *worker) forget(j *job) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.Index(w.mu.jobs, j)
	if i >= 0 {
		w.mu.jobs = slices.Delete(w.mu.jobs, i, i+1)
	}
	return i >= 0
}

// jobWaits reports whether a job wants the pipeline empty.
func (w *worker) jobWaits() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.frozen || len(w.mu.jobs) > 0 && w.mu.jobs[0].drained
}

// startJobs begins the jobs whose turn it is.
func (w *worker) startJobs(now time.Time, l raft.Leader) {
	for w.mayEvaluate(now, l) {
		st := w.rep.State()
		w.mu.Lock()
		if len(w.mu.jobs) == 0 || w.mu.frozen || st.Tenure() != w.mu.tenure ||
			w.mu.jobs[0].drained && len(w.flights) > 0 {
			w.mu.Unlock()
			return
		}
		j := w.mu.jobs[0]
		w.mu.jobs = w.mu.jobs[1:]
		w.mu.Unlock()
		j.begin(now, st)
	}
}

// leading finds the worker of a range that this store should evaluate for.
func (ev *Evaluator) leading(rangeID uint64) (*worker, error) {
	rep, ok := ev.deps.Catalog.Replica(rangeID)
	if !ok {
		return nil, errs.RangeNotFound{RangeID: rangeID}
	}
	if l := ev.deps.Host.Leader(rangeID); !rep.State().Serving() || l.Known && !l.Self {
		return nil, ev.notLeader(rangeID, rep)
	}
	w := ev.worker(rep)
	if w == nil {
		return nil, errStopping
	}
	return w, nil
}

// SplitChild names the child of a split, as PD allocated it.
type SplitChild struct {
	RangeID uint64
	// ReplicaIDs are the ids of the child's replicas; ReplicaIDs[i] goes to
	// the store of Members[i].
	ReplicaIDs []uint64
	// Members are the replicas of the parent at ExpectedConfig.
	Members []*metapb.Replica
	// ExpectedConfig is the config-change index Members were read at.
	ExpectedConfig uint64
}

// replicas are the child's replicas.
func (c SplitChild) replicas() ([]*metapb.Replica, error) {
	if c.RangeID == 0 || len(c.Members) == 0 || len(c.Members) != len(c.ReplicaIDs) {
		return nil, errs.InvalidArgument{Field: "child", Reason: "needs one replica id per member"}
	}
	out := make([]*metapb.Replica, len(c.Members))
	for i, m := range c.Members {
		if m.GetRole() != metapb.Role_ROLE_VOTER {
			return nil, errs.InvalidArgument{Field: "child", Reason: "the range has a learner"}
		}
		out[i] = &metapb.Replica{
			ReplicaId: c.ReplicaIDs[i], StoreId: m.GetStoreId(), Role: metapb.Role_ROLE_VOTER,
		}
	}
	return out, nil
}

// Split divides a range at splitKey and returns both halves. It is evaluated
// with an empty pipeline, and nothing is evaluated until it is decided.
func (ev *Evaluator) Split(
	ctx context.Context, rangeID uint64, splitKey []byte, child SplitChild,
) (left, right *metapb.Range, err error) {
	members, err := child.replicas()
	if err != nil {
		return nil, nil, err
	}
	w, err := ev.leading(rangeID)
	if err != nil {
		return nil, nil, err
	}
	right = &metapb.Range{
		RangeId: child.RangeID, Replicas: members,
		Epoch: &metapb.Epoch{Config: catalog.BirthIndex},
	}
	j := newJob(true)
	j.begin = func(_ time.Time, st *catalog.State) {
		if err := checkSplit(st, splitKey); err != nil {
			j.finish(err)
			return
		}
		right.Span = keys.Span{Start: splitKey, End: st.Span().End}.Proto()
		right.Epoch.Span = st.SpanEpoch() + 1
		w.launchSplit(j, st, &logpb.Split{
			SplitKey: splitKey, ChildRangeId: child.RangeID, ChildReplicas: members,
			ExpectedConfig: child.ExpectedConfig,
		})
	}
	if err := w.do(ctx, j); err != nil {
		return nil, nil, err
	}
	return ev.describe(w.rep.State()), right, nil
}

func checkSplit(st *catalog.State, key []byte) error {
	if err := checkKey("split_key", key); err != nil {
		return err
	}
	switch {
	case !st.Span().Contains(key):
		return errs.KeyNotInRange{Key: key, Range: describeState(st)}
	case bytes.Equal(key, st.Span().Start):
		return errs.InvalidArgument{Field: "split_key", Reason: "is the start of the range"}
	case len(st.Unborn()) > 0:
		return errs.Busy{Reason: "a child of the range is not born yet", RetryAfter: time.Second}
	}
	return nil
}

// launchSplit proposes a split with the exact max_read_ts. From here until it
// is decided no read is registered: the child would not know of it.
func (w *worker) launchSplit(j *job, st *catalog.State, m *logpb.Split) {
	w.mu.Lock()
	w.mu.frozen = true
	m.MaxReadTs = uint64(w.mu.maxRead)
	w.mu.Unlock()
	f := &flight{kind: apply.KindSplit}
	f.done = func(how fate, why string) {
		w.mu.Lock()
		w.mu.frozen = false
		w.mu.Unlock()
		// Whether it happened is read from the state: a repetition does not say.
		now := w.rep.State()
		_, held := w.ev.deps.Catalog.Replica(m.GetChildRangeId())
		happened := now.SpanEpoch() > st.SpanEpoch() &&
			(held || now.LastChildRangeID() == m.GetChildRangeId())
		switch {
		case (how == fateApplied || how == fateRefused) && happened:
			j.finish(nil)
		case how == fateApplied || how == fateRefused:
			if why == "" {
				why = "refused"
			}
			j.finish(errs.Busy{Reason: "split: " + why, RetryAfter: time.Second})
		case how == fateUnknown:
			j.finish(errs.UnknownOutcome{RangeID: w.rangeID})
		default:
			j.finish(w.notLeader())
		}
	}
	w.launchMessage(f, st, m)
}

// Settled returns when this store holds the lease and nothing that it proposed is
// in flight. If it leads since before a read of its own, the state here then shows
// every split in the log: those of former leaseholders precede the lease's own
// entry or are refused, and the lease was not lost in entries yet to be applied.
func (ev *Evaluator) Settled(ctx context.Context, rangeID uint64) error {
	w, err := ev.leading(rangeID)
	if err != nil {
		return err
	}
	j := newJob(true)
	j.begin = func(time.Time, *catalog.State) { j.finish(nil) }
	return w.do(ctx, j)
}

// Checksum asks every replica of the range to compute its checksum. It returns
// when the entry is applied here; the sums come with the replicas' reports.
func (ev *Evaluator) Checksum(ctx context.Context, rangeID uint64) error {
	w, err := ev.leading(rangeID)
	if err != nil {
		return err
	}
	j := newJob(false)
	j.begin = func(_ time.Time, st *catalog.State) {
		f := &flight{kind: apply.KindChecksum, done: func(how fate, why string) {
			switch how {
			case fateApplied:
				j.finish(nil)
			case fateRefused:
				j.finish(errs.Busy{Reason: "checksum: " + why, RetryAfter: time.Second})
			case fateUnknown:
				j.finish(errs.UnknownOutcome{RangeID: w.rangeID})
			default:
				j.finish(w.notLeader())
			}
		}}
		w.launchMessage(f, st, &logpb.Checksum{CheckId: rand.Uint64()})
	}
	return w.do(ctx, j)
}

// PrepareTransfer makes the range ready for another leaseholder, so that its
// writes need not wait there. First read_bound is no more raised ahead, and
// the oracle passes it while everything goes on; then evaluation rests until
// the lease is elsewhere or 1 s has passed. The caller moves the leadership.
func (ev *Evaluator) PrepareTransfer(ctx context.Context, rangeID uint64) error {
	w, err := ev.leading(rangeID)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.mu.exact = true
	w.mu.Unlock()
	if err := w.untilPassed(ctx); err != nil {
		w.mu.Lock()
		w.mu.exact = false
		w.mu.Unlock()
		return err
	}
	j := newJob(true)
	j.begin = func(now time.Time, _ *catalog.State) {
		w.restUntil = now.Add(ev.timing.rest)
		j.finish(nil)
	}
	return w.do(ctx, j)
}

// untilPassed waits until the oracle has passed read_bound, at most one step.
func (w *worker) untilPassed(ctx context.Context) error {
	ticker := time.NewTicker(w.ev.timing.tick)
	defer ticker.Stop()
	for began := time.Now(); ; {
		w.ev.deps.Clock.Want()
		if w.ev.deps.Clock.Seen() >= w.rep.State().ReadBound() ||
			time.Since(began) > w.ev.timing.boundStep {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// DrainAll takes no more requests and returns when all that were taken are
// answered.
func (ev *Evaluator) DrainAll(ctx context.Context) error {
	ev.draining.Store(true)
	ticker := time.NewTicker(ev.timing.tick)
	defer ticker.Stop()
	for ev.busy() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (ev *Evaluator) busy() bool {
	busy := false
	ev.workers.Range(func(_, v any) bool {
		w := v.(*worker)
		w.mu.Lock()
		busy = busy || len(w.mu.queue) > 0 || len(w.mu.jobs) > 0 ||
			w.mu.tenure != 0 && w.mu.assigned > w.mu.applied
		w.mu.Unlock()
		busy = busy || w.pending.Load() > 0
		return !busy
	})
	return busy
}
