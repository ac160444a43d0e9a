package raft

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ridgekv/ridge/storenode/internal/raft/logstore"
)

// The formats of the Raft log, as the store's identity record names them.
const (
	// LogKindRidge is one log for all ranges of the store, see logstore.
	LogKindRidge = logstore.Name
	// LogKindPebble is Dragonboat's log: LogShards instances of Pebble.
	LogKindPebble = "sharded-pebble"
)

// TLSFiles name PEM files. Every store shows a certificate of the CA whose
// names cover the host part of its Raft address.
type TLSFiles struct{ CA, Cert, Key string }

// Options configure a Host. The zero value of an optional field is its default.
type Options struct {
	// Dir holds the Raft log. Required. The log's path contains the host name.
	Dir string
	// ClusterID keeps clusters apart on the wire and must never change.
	// Required.
	ClusterID uint64
	// StoreID is this store. Required. A log of another store is refused.
	StoreID uint64
	// ListenAddress is the host:port of the Raft transport. Required.
	ListenAddress string
	// AdvertiseAddress is how other stores reach it; default: ListenAddress.
	// Only Resolve of the other stores uses it.
	AdvertiseAddress string
	// TLS makes the Raft transport mutual TLS. Default nil: whoever reaches the
	// port can crash the store.
	TLS *TLSFiles
	// Resolve finds the present Raft address of a store. Required. It is called
	// whenever a connection is made and must not block.
	Resolve func(storeID uint64) (address string, ok bool)

	// Tick is Raft's clock. Default 500 ms. Timeouts of calls are counted in
	// it. Failover does not depend on it: see campaign.go.
	Tick time.Duration
	// HeartbeatTicks is the leader's beat. Default 2.
	HeartbeatTicks int
	// ElectionTicks is how long a replica waits for a silent leader, up to twice
	// as long at random. Default 10. More than twice HeartbeatTicks; at most 60,
	// or a burst of ticks would not fit a replica's queue.
	ElectionTicks int
	// ExecShards is the number of workers that step replicas and write the log.
	// Default 4. Frozen by the first start. Fewer share an fsync among more
	// ranges.
	ExecShards int
	// LogKind is the format of the log. Default LogKindRidge. Frozen by the
	// first start.
	LogKind string
	// LogShards is the number of Pebble instances of the log. Default 4, and
	// always 1 for LogKindRidge. Frozen by the first start.
	LogShards int
	// IntakeBytes bounds the entries of all ranges that this store has received
	// from leaders and not applied; beyond it they are dropped and sent again
	// later. Default 64 MiB; at least 8 MiB, several entries of the largest size.
	IntakeBytes uint64
	// SendQueueBytes bounds what waits for the connection to another store.
	// Default 64 MiB. Beyond it messages are dropped, and Raft sends them again.
	SendQueueBytes uint64

	// LogSnapshotBytes is how many bytes a range may write until its log is
	// cut. Default 16 MiB. About twice as much is kept, and replayed at a start.
	LogSnapshotBytes uint64
	// LogSnapshotEntries is the same in entries. Default 20,000.
	LogSnapshotEntries uint64
	// LogSnapshotAge is the longest time between cuts of a log that has grown.
	// Default 10 min. It bounds what a start replays for quiet ranges.
	LogSnapshotAge time.Duration
	// LogSnapshotInterval is how often ranges are looked at. Default 1 s.
	LogSnapshotInterval time.Duration
	// BirthAlarmAfter is how long a child may stay unborn until it is reported.
	// Default 30 s. Until its birth the parent's log grows.
	BirthAlarmAfter time.Duration

	// Logger receives one line per change of state. Default: discarded.
	Logger *slog.Logger
	// Registerer receives the metrics. Default: none.
	Registerer prometheus.Registerer
}

// withDefaults returns o with every zero field filled in.
func (o Options) withDefaults() Options {
	setDefault(&o.AdvertiseAddress, o.ListenAddress)
	setDefault(&o.Tick, 500*time.Millisecond)
	setDefault(&o.HeartbeatTicks, 2)
	setDefault(&o.ElectionTicks, 10)
	o.LogKind, o.LogShards, o.ExecShards = LogDefaults(o.LogKind, o.LogShards, o.ExecShards)
	setDefault(&o.IntakeBytes, 64<<20)
	setDefault(&o.SendQueueBytes, 64<<20)
	setDefault(&o.LogSnapshotBytes, 16<<20)
	setDefault(&o.LogSnapshotEntries, 20_000)
	setDefault(&o.LogSnapshotAge, 10*time.Minute)
	setDefault(&o.LogSnapshotInterval, time.Second)
	setDefault(&o.BirthAlarmAfter, 30*time.Second)
	setDefault(&o.Logger, slog.New(slog.DiscardHandler))
	return o
}

// LogDefaults fills in what is zero of the settings that a first start freezes.
func LogDefaults(kind string, logShards, execShards int) (string, int, int) {
	setDefault(&kind, LogKindRidge)
	if kind == LogKindRidge {
		setDefault(&logShards, 1)
	}
	setDefault(&logShards, 4)
	setDefault(&execShards, 4)
	return kind, logShards, execShards
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Validate reports every fault of o, joined.
func (o Options) Validate() error {
	o = o.withDefaults()
	var faults []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Errorf("raft: "+format, args...))
		}
	}
	fault(o.Dir == "", "no directory")
	fault(o.ClusterID == 0, "no cluster id")
	fault(o.StoreID == 0, "no store id")
	fault(!config.IsValidAddress(o.ListenAddress), "listen address %q is not host:port",
		o.ListenAddress)
	fault(!config.IsValidAddress(o.AdvertiseAddress), "advertised address %q is not host:port",
		o.AdvertiseAddress)
	fault(o.Resolve == nil, "no way to resolve stores")
	fault(o.TLS != nil && (o.TLS.CA == "" || o.TLS.Cert == "" || o.TLS.Key == ""),
		"TLS needs a CA, a certificate and a key")
	fault(o.Tick < time.Millisecond, "a tick of %s", o.Tick)
	// Dragonboat panics on the first of these.
	fault(o.ElectionTicks <= 2*o.HeartbeatTicks || o.HeartbeatTicks < 1,
		"%d election ticks must be more than twice %d heartbeat ticks",
		o.ElectionTicks, o.HeartbeatTicks)
	fault(o.ElectionTicks > maxElectionTicks, "%d election ticks, at most %d",
		o.ElectionTicks, maxElectionTicks)
	fault(o.LogKind != LogKindRidge && o.LogKind != LogKindPebble, "log kind %q, not %q or %q",
		o.LogKind, LogKindRidge, LogKindPebble)
	fault(o.LogKind == LogKindRidge && o.LogShards != 1, "%d log shards, %q has one",
		o.LogShards, LogKindRidge)
	fault(o.ExecShards < 1 || o.LogShards < 1, "%d exec shards, %d log shards",
		o.ExecShards, o.LogShards)
	fault(o.IntakeBytes < 8<<20, "an intake of %d bytes cannot hold several entries",
		o.IntakeBytes)
	return errors.Join(faults...)
}
