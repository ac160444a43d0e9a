package meta

import (
	"maps"
	"strings"
	"testing"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// A change of settings is all or nothing, and only upon the settings that it
// was judged against.
func TestSettings(t *testing.T) {
	s := newState()
	must(t, s, putSettings(0, map[string]string{"a": "1", "b": "2"}), none)
	before := s.settings
	must(t, s, putSettings(0, map[string]string{"a": "3"}), stale)
	must(t, s, putSettings(1, map[string]string{"c": "1", "d": strings.Repeat("x", 5000)}), argument)
	must(t, s, putSettings(1, map[string]string{"c": "3"}, "a", "unknown"), none)
	if want := map[string]string{"b": "2", "c": "3"}; !maps.Equal(s.settings, want) {
		t.Errorf("settings %v, want %v", s.settings, want)
	}
	if !maps.Equal(before, map[string]string{"a": "1", "b": "2"}) {
		t.Errorf("what a reader was given has changed: %v", before)
	}
	many := map[string]string{}
	for i := range maxSettings {
		many[strings.Repeat("k", i+1)] = ""
	}
	must(t, s, putSettings(2, many), argument)
}

func TestPauseEnds(t *testing.T) {
	s := newState()
	put := func(until uint64) {
		must(t, s, &pdpb.Command{Command: &pdpb.Command_PutPause{
			PutPause: &pdpb.PutPause{Pause: &pdpb.Pause{UntilUnixMs: until}},
		}}, none)
	}
	if put(5); s.pause.GetUntilUnixMs() != 5 {
		t.Errorf("pause %v", s.pause)
	}
	if put(0); s.pause != nil {
		t.Errorf("pause %v", s.pause)
	}
}

// The journal keeps the last decisions, and no number is given twice.
func TestJournalIsBounded(t *testing.T) {
	s := newState()
	given := &pdpb.Decision{What: "x", Seq: 77}
	for i := range uint64(3) {
		batch := make([]*pdpb.Decision, JournalSize/2+1)
		for k := range batch {
			batch[k] = given
		}
		must(t, s, journal(i+1, batch...), none)
		must(t, s, journal(i+1, batch...), none) // sent again
	}
	const last = 3 * (JournalSize/2 + 1)
	if len(s.journal) != JournalSize || s.journal[0].GetSeq() != last-JournalSize+1 ||
		s.journal[JournalSize-1].GetSeq() != last || given.GetSeq() != 77 {
		t.Errorf("%d decisions, %d to %d", len(s.journal), s.journal[0].GetSeq(),
			s.journal[len(s.journal)-1].GetSeq())
	}
	back := stateFromProto(s.proto())
	must(t, back, journal(3, given), none) // sent again
	must(t, back, journal(4, given), none)
	if got := back.journal[JournalSize-1].GetSeq(); got != last+1 {
		t.Errorf("after a snapshot the next decision is %d", got)
	}
}
