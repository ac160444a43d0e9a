// Package settings are the knobs of PD that can be turned while it runs: what a
// node was started with, and over it what people have set for the cluster.
//
// It is pure. What people have set is replicated by meta, so every PD that
// comes to lead finds it; what a node was started with counts only where nobody
// has set anything.
package settings

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// Settings are in force for the whole cluster.
type Settings struct {
	// Replicas is how many voters a range shall have: 1, 3, 5 or 7.
	Replicas int
	// SplitSizeBytes is the size from which a range is split.
	SplitSizeBytes uint64
	// StoreHeartbeat is how often stores report. It cannot be set: stores have
	// their own say. It bounds StoreDownAfter.
	StoreHeartbeat time.Duration
	// StoreDownAfter is how long a store may be silent before it is replaced.
	StoreDownAfter time.Duration
	// Retention is how long history is kept.
	Retention time.Duration
	// OperatorTimeout is how long one step of a change may take.
	OperatorTimeout time.Duration
	// StoreMoves bounds the replicas a store receives at a time and those it
	// sends, LeaderTransfers the leaderships it gives and takes.
	StoreMoves, LeaderTransfers int
	// ImageBytesPerSecond bounds what a store sends as range images; 0 is no bound.
	ImageBytesPerSecond uint64
	// SplitLoadOps is the load from which a range is split; 0 is never.
	SplitLoadOps uint64
	// LocationLabels are the keys of labels that name failure domains.
	LocationLabels []string
	// HighWaterPercent is how full a disk may be to receive replicas.
	HighWaterPercent int
	// TolerancePercent is how far stores may lie apart before balancing begins.
	TolerancePercent int
}

// knob is one setting that people can change.
type knob struct {
	key, help string
	show      func(Settings) string
	parse     func(*Settings, string) error
}

var knobs = []knob{
	number("high_water_percent", "how full a disk may be to receive replicas",
		func(s *Settings) *int { return &s.HighWaterPercent }, parseInt, strconv.Itoa),
	number("image_bytes_per_second", "bound on what a store sends as range images; 0 is none",
		func(s *Settings) *uint64 { return &s.ImageBytesPerSecond }, parseSize, showSize),
	number("leader_transfers", "leaderships a store may give away, and take over, at a time",
		func(s *Settings) *int { return &s.LeaderTransfers }, parseInt, strconv.Itoa),
	number("location_labels", "labels of stores that name failure domains, the widest first",
		func(s *Settings) *[]string { return &s.LocationLabels }, parseList, showList),
	number("operator_timeout", "how long copying a replica may take beyond the time for its bytes",
		func(s *Settings) *time.Duration { return &s.OperatorTimeout }, parseDuration, showDuration),
	number("replicas", "voters of a range once there are as many stores: 1, 3, 5 or 7",
		func(s *Settings) *int { return &s.Replicas }, parseInt, strconv.Itoa),
	number("retention", "how long history is kept for snapshot reads",
		func(s *Settings) *time.Duration { return &s.Retention }, parseDuration, showDuration),
	number("split_load_ops", "operations per second from which a range is split; 0 is never",
		func(s *Settings) *uint64 { return &s.SplitLoadOps }, parseCount, showCount),
	number("split_size", "size at which a range is split",
		func(s *Settings) *uint64 { return &s.SplitSizeBytes }, parseSize, showSize),
	number("store_down_after", "silence after which the replicas of a store are replaced",
		func(s *Settings) *time.Duration { return &s.StoreDownAfter }, parseDuration, showDuration),
	number("store_moves", "replicas a store may be receiving, and sending, at a time",
		func(s *Settings) *int { return &s.StoreMoves }, parseInt, strconv.Itoa),
	number("tolerance_percent", "how far stores may lie apart, of the mean, before balancing begins",
		func(s *Settings) *int { return &s.TolerancePercent }, parseInt, strconv.Itoa),
}

func number[T any](
	key, help string, field func(*Settings) *T, parse func(string) (T, error), show func(T) string,
) knob {
	return knob{
		key: key, help: help,
		show: func(s Settings) string { return show(*field(&s)) },
		parse: func(s *Settings, text string) error {
			v, err := parse(strings.TrimSpace(text))
			if err != nil {
				return fmt.Errorf("%s: %q: %w", key, text, err)
			}
			*field(s) = v
			return nil
		},
	}
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, errors.New("not a duration such as 90s or 5m")
	}
	return d, nil
}

func parseInt(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, errors.New("not a whole number")
	}
	return n, nil
}

func parseCount(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, errors.New("not a whole number")
	}
	return n, nil
}

func showCount(n uint64) string { return strconv.FormatUint(n, 10) }

// parseList reads a,b,c; nothing is an empty list.
func parseList(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	list := strings.Split(text, ",")
	for i, e := range list {
		if list[i] = strings.TrimSpace(e); list[i] == "" || slices.Contains(list[:i], list[i]) {
			return nil, errors.New("an element is empty or given twice")
		}
	}
	return list, nil
}

func showList(list []string) string { return strings.Join(list, ",") }

func showDuration(d time.Duration) string { return d.String() }

// parseSize reads 64MB, 1GiB or 4096. K, M and G count in 1,024s with or without
// an i, as everywhere in Ridge.
func parseSize(text string) (uint64, error) {
	unit := strings.TrimLeft(text, "0123456789. ")
	n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(text, unit)), 10, 43)
	shift, known := map[string]uint{"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[strings.TrimSuffix(
		strings.TrimSuffix(strings.ToLower(unit), "b"), "i")]
	if err != nil || !known || n >= 1<<(60-shift) {
		return 0, errors.New("not a size such as 64MB")
	}
	return n << shift, nil
}

// showSize is exact: what is shown can be set again.
func showSize(n uint64) string {
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if shift := 40 - 10*i; n != 0 && n%(1<<shift) == 0 {
			return strconv.FormatUint(n>>shift, 10) + unit
		}
	}
	return strconv.FormatUint(n, 10)
}

func find(key string) (knob, bool) {
	i := slices.IndexFunc(knobs, func(k knob) bool { return k.key == key })
	if i < 0 {
		return knob{}, false
	}
	return knobs[i], true
}

// Overlay returns base with what people have set over it. Every fault is
// reported; what is faulty leaves base as it is, so that the settings of a newer
// version do not stop an older one.
func Overlay(base Settings, set map[string]string) (Settings, error) {
	var faults []error
	for _, key := range slices.Sorted(maps.Keys(set)) {
		k, ok := find(key)
		if !ok {
			faults = append(faults, fmt.Errorf("no setting is called %q; there are %s", key, Keys()))
			continue
		}
		faults = append(faults, k.parse(&base, set[key]))
	}
	return base, errors.Join(faults...)
}

// Keys names all settings.
func Keys() string {
	var out []string
	for _, k := range knobs {
		out = append(out, k.key)
	}
	return strings.Join(out, ", ")
}

// Known reports whether there is such a setting.
func Known(key string) bool {
	_, ok := find(key)
	return ok
}

// Validate reports every fault of s, joined.
func (s Settings) Validate() error {
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(s.Replicas >= 1 && s.Replicas <= 7 && s.Replicas%2 == 1,
		"replicas %d: 1, 3, 5 or 7", s.Replicas)
	check(s.SplitSizeBytes >= 64<<10 && s.SplitSizeBytes <= 8<<30,
		"split_size %s is not within 64KiB and 8GiB", showSize(s.SplitSizeBytes))
	check(s.StoreDownAfter >= 3*s.StoreHeartbeat,
		"store_down_after %s must be at least 3 heartbeats of %s, or a slow heartbeat looks like death",
		s.StoreDownAfter, s.StoreHeartbeat)
	check(s.Retention >= time.Second, "retention %s is below 1s", s.Retention)
	check(s.OperatorTimeout >= time.Second, "operator_timeout %s is below 1s", s.OperatorTimeout)
	check(s.StoreMoves >= 1 && s.StoreMoves <= 64,
		"store_moves %d is not within 1 and 64", s.StoreMoves)
	check(s.LeaderTransfers >= 1 && s.LeaderTransfers <= 64,
		"leader_transfers %d is not within 1 and 64", s.LeaderTransfers)
	check(s.ImageBytesPerSecond == 0 || s.ImageBytesPerSecond >= 64<<10,
		"image_bytes_per_second %s: 0 is no bound, less than 64KiB would take for ever",
		showSize(s.ImageBytesPerSecond))
	check(s.HighWaterPercent >= 10 && s.HighWaterPercent <= 100,
		"high_water_percent %d is not within 10 and 100", s.HighWaterPercent)
	check(s.TolerancePercent >= 1 && s.TolerancePercent <= 100,
		"tolerance_percent %d is not within 1 and 100", s.TolerancePercent)
	return errors.Join(faults...)
}

// List renders the settings in force for people. given is what the node was
// started with.
func List(given Settings, set map[string]string) []*pdpb.Setting {
	now, _ := Overlay(given, set)
	var out []*pdpb.Setting
	for _, k := range knobs {
		_, isSet := set[k.key]
		out = append(out, &pdpb.Setting{
			Key: k.key, Value: k.show(now), Given: k.show(given), Set: isSet, Help: k.help,
		})
	}
	return out
}

// Config is what stores need to know.
func (s Settings) Config() *pdpb.ClusterConfig {
	return &pdpb.ClusterConfig{
		Replicas: uint32(s.Replicas), SplitSizeBytes: s.SplitSizeBytes,
		StoreHeartbeatMs: uint64(s.StoreHeartbeat.Milliseconds()),
		RetentionMs:      uint64(s.Retention.Milliseconds()),
		LocationLabels:   s.LocationLabels, StoreMoves: uint32(s.StoreMoves),
		LeaderTransfers:     uint32(s.LeaderTransfers),
		ImageBytesPerSecond: s.ImageBytesPerSecond, SplitLoadOps: s.SplitLoadOps,
		HighWaterPercent: uint32(s.HighWaterPercent), TolerancePercent: uint32(s.TolerancePercent),
	}
}
