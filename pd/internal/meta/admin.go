package meta

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// JournalSize is how many decisions are kept.
	JournalSize = 4096
	// maxSettings bounds the map of settings, and maxSettingBytes each of them.
	maxSettings     = 256
	maxSettingBytes = 4096
)

// putSettings changes what people have set. It is refused if somebody else was
// faster: the change was judged against other settings.
func (s *state) putSettings(c *pdpb.PutSettings) *pdpb.CommandResult {
	if c.GetExpectedVersion() != s.settingsVersion {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_STALE_EPOCH,
			"the settings were changed meanwhile")
	}
	next := maps.Clone(s.settings)
	for _, key := range c.GetUnset() {
		delete(next, key)
	}
	for key, value := range c.GetSet() {
		if len(key) > maxSettingBytes || len(value) > maxSettingBytes {
			return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT, "a setting is too long")
		}
		next[key] = value
	}
	if len(next) > maxSettings {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT, "too many settings")
	}
	s.settings = next
	s.settingsVersion++
	if c.GetConfig() != nil {
		s.config = proto.CloneOf(c.GetConfig())
	}
	return &pdpb.CommandResult{}
}

func (s *state) putPause(c *pdpb.PutPause) *pdpb.CommandResult {
	s.pause = nil
	if c.GetPause().GetUntilUnixMs() != 0 {
		s.pause = proto.CloneOf(c.GetPause())
	}
	return &pdpb.CommandResult{}
}

// appendJournal numbers the decisions and forgets the oldest. A batch that was
// sent again is known by its number.
func (s *state) appendJournal(c *pdpb.AppendJournal) *pdpb.CommandResult {
	if c.GetWriter() == s.journalWriter && c.GetBatch() <= s.journalBatch {
		return &pdpb.CommandResult{}
	}
	s.journalWriter, s.journalBatch = c.GetWriter(), c.GetBatch()
	for _, d := range c.GetDecisions() {
		d = proto.CloneOf(d)
		d.Seq = s.nextDecision
		s.nextDecision++
		s.journal = append(s.journal, d)
	}
	if extra := len(s.journal) - JournalSize; extra > 0 {
		s.journal = s.journal[extra:]
	}
	return &pdpb.CommandResult{}
}

// Settings are what people have set, and the version that a change must name.
// The map must not be changed.
func (m *Meta) Settings() (settings map[string]string, version uint64) {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	return m.machine.mu.state.settings, m.machine.mu.state.settingsVersion
}

// Pause is what holds the schedulers back; nil when nothing does. It may be
// over: the caller has the clock.
func (m *Meta) Pause() *pdpb.Pause {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	return m.machine.mu.state.pause
}

// Journal lists the decisions that are kept, oldest first.
func (m *Meta) Journal() []*pdpb.Decision {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	return slices.Clone(m.machine.mu.state.journal)
}
