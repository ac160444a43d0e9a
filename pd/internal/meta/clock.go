package meta

import (
	"context"
	"maps"
	"time"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// ProbeClocks asks the other members for their wall clocks and returns how far
// each that answered is ahead of this one, once that is enough or wait has
// passed. Who answers is alive and has applied everything up to the question.
// wake must be a channel that the caller rings whenever Bell rang; there is one
// probe at a time.
func (m *Meta) ProbeClocks(
	ctx context.Context, nonce uint64, wait time.Duration, wake <-chan struct{},
	enough func(answers map[uint64]time.Duration) bool,
) (map[uint64]time.Duration, error) {
	m.machine.mu.Lock()
	m.machine.mu.expected, m.machine.mu.answers = nonce, map[uint64]uint64{}
	m.machine.mu.Unlock()
	_, err := m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_ProbeClock{
		ProbeClock: &pdpb.ProbeClock{MemberId: m.o.MemberID, Nonce: nonce},
	}})
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		ahead := m.clockAnswers()
		if enough(ahead) {
			return ahead, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
			return ahead, nil
		case <-wake:
		}
	}
}

func (m *Meta) clockAnswers() map[uint64]time.Duration {
	now := time.Now().UnixMilli()
	m.machine.mu.RLock()
	answers := maps.Clone(m.machine.mu.answers)
	m.machine.mu.RUnlock()
	out := map[uint64]time.Duration{}
	for id, wall := range answers {
		out[id] = time.Duration(int64(wall)-now) * time.Millisecond
	}
	return out
}

// AnswerClock answers a probe of another member, if one is waiting.
func (m *Meta) AnswerClock(ctx context.Context) error {
	m.machine.mu.Lock()
	q := m.machine.mu.question
	m.machine.mu.question = nil
	m.machine.mu.Unlock()
	if q == nil || q.GetMemberId() == m.o.MemberID {
		return nil
	}
	_, err := m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_AnswerClock{
		AnswerClock: &pdpb.AnswerClock{
			MemberId: m.o.MemberID, Nonce: q.GetNonce(),
			WallUnixMs: uint64(time.Now().UnixMilli()),
		},
	}})
	return err
}
