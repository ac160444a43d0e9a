package settings

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var given = Settings{
	Replicas: 3, SplitSizeBytes: 96 << 20, StoreHeartbeat: time.Second,
	StoreDownAfter: 5 * time.Minute, Retention: 10 * time.Minute,
	OperatorTimeout: 10 * time.Minute, StoreMoves: 4, LeaderTransfers: 8, HighWaterPercent: 80,
	TolerancePercent: 5,
}

func TestOverlay(t *testing.T) {
	for _, c := range []struct {
		key, value string
		want       string // of the listed value, or of the error
	}{
		{"replicas", "5", "5"},
		{"replicas", " 1 ", "1"},
		{"replicas", "2", "1, 3, 5 or 7"},
		{"replicas", "three", `"three"`},
		{"split_size", "64MB", "64MiB"},
		{"split_size", "64 mib", "64MiB"},
		{"split_size", "70000", "70000"},
		{"split_size", "1KB", "not within"},
		{"split_size", "9999999999TB", "not a size"},
		{"split_size", "-1MB", "not a size"},
		{"store_down_after", "2s", "3 heartbeats"},
		{"store_down_after", "30m", "30m0s"},
		{"retention", "soon", "not a duration"},
		{"retention", "1ms", "below 1s"},
		{"operator_timeout", "1m", "1m0s"},
		{"store_moves", "0", "not within"},
		{"location_labels", "zone, rack", "zone,rack"},
		{"location_labels", "zone,,rack", "empty"},
		{"location_labels", "", ""},
		{"image_bytes_per_second", "1", "for ever"},
		{"image_bytes_per_second", "64MB", "64MiB"},
		{"split_load_ops", "1e3", "whole number"},
		{"tolerance_percent", "0", "not within"},
		{"replica", "3", "there are high_water_percent"},
	} {
		set := map[string]string{c.key: c.value}
		s, err := Overlay(given, set)
		if err == nil {
			err = s.Validate()
		}
		if err != nil {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s %q: %v, want %q", c.key, c.value, err, c.want)
			}
			continue
		}
		for _, l := range List(given, set) {
			if l.GetSet() != (l.GetKey() == c.key) || l.GetSet() && l.GetValue() != c.want ||
				!l.GetSet() && l.GetValue() != l.GetGiven() || l.GetHelp() == "" {
				t.Errorf("%s %q: listed %v, want %s", c.key, c.value, l, c.want)
			}
		}
	}
}

// What a newer version has set does not stop an older one.
func TestUnknownSettingsAreLeftOut(t *testing.T) {
	s, err := Overlay(given, map[string]string{"newer": "x", "replicas": "5", "split_size": "?"})
	if err == nil || s.Replicas != 5 || s.SplitSizeBytes != given.SplitSizeBytes {
		t.Errorf("%+v, %v", s, err)
	}
}

// What is listed can be set again.
func TestListedValuesParse(t *testing.T) {
	for _, l := range List(given, nil) {
		s, err := Overlay(Settings{StoreHeartbeat: given.StoreHeartbeat}, map[string]string{
			l.GetKey(): l.GetValue(),
		})
		if err != nil {
			t.Error(err)
		}
		for _, again := range List(s, nil) {
			if again.GetKey() == l.GetKey() && again.GetValue() != l.GetValue() {
				t.Errorf("%s: %s became %s", l.GetKey(), l.GetValue(), again.GetValue())
			}
		}
	}
	if err := given.Validate(); err != nil {
		t.Error(err)
	}
}
