package pd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ridgekv/ridge/pd/internal/members"
)

// Options are the knobs of one PD node. The zero value of every optional field
// is its default.
type Options struct {
	// Dir holds what this node is, and PD's Raft log and snapshots. Required. It
	// belongs to this member and this host name: it cannot be moved to another
	// machine.
	Dir string
	// MemberID names this node among Members. It may be 0 when Members is this
	// node alone: then it is what the directory says, and 1 in a new one.
	MemberID uint64
	// Members are the nodes that begin the PD group, this one included: 1, 3 or 5.
	// Required. It counts at the first start only and must then be the same on every
	// node; the group may change later. With Join it is this node alone.
	Members []Member
	// Join are gRPC addresses of PD nodes of the group that this node shall become
	// a member of. It counts until it is one. Default: this node begins a group.
	Join []string
	// Peers reaches other PD nodes. Required with Join. Without it a node that was
	// removed while it was away does not learn that.
	Peers Peers
	// RaftListenAddress is where PD's Raft transport listens. Default: this
	// member's RaftAddress.
	RaftListenAddress string

	// TLS secures PD's Raft traffic (mutual). Default: none, accepted only on
	// loopback: whoever reaches the port can crash the node.
	TLS *TLSFiles
	// Insecure accepts Raft without TLS beyond loopback.
	Insecure bool
	// Tick is the clock of PD's Raft group. Default 50 ms: a dead leader is
	// replaced within about a second. Longer is calmer on a slow network.
	Tick time.Duration

	// Replicas is how many voters a range shall have once enough stores are up:
	// 1, 3, 5 or 7. Default 3. Every change is applied by repair.
	Replicas int
	// SplitSizeBytes is the size from which a range is split. Default 96 MiB.
	// Smaller means more Raft groups, larger means slower moves.
	SplitSizeBytes uint64
	// StoreHeartbeat is how often stores shall report. Default 1 s.
	StoreHeartbeat time.Duration
	// StoreDownAfter is how long a store may be silent before its replicas are
	// replaced. Default 5 min. Shorter copies data for a mere restart.
	StoreDownAfter time.Duration
	// Retention is how long history is kept: the oldest snapshot that can be
	// read. Default 10 min. Longer costs disk.
	Retention time.Duration
	// ScheduleAfter bounds the wait for range reports after this node begins to
	// lead: planning begins when 90 % of the ranges have reported or when it
	// has passed. Default 30 s. Shorter plans on an incomplete picture.
	ScheduleAfter time.Duration
	// OperatorTimeout is how long the copying of a replica may take beyond the time
	// for its bytes, before the change is given up and planned anew. Default 2 min.
	// All other steps are given up after some 20 s.
	OperatorTimeout time.Duration
	// StoreMoves bounds how many replicas may be under construction on one store,
	// and how many one store may be sending, at a time. Default 4. More is faster
	// and disturbs users more.
	StoreMoves int
	// LeaderTransfers bounds how many leaderships one store may give away, and
	// how many it may take over, at a time. Default 8. Each holds the writes of
	// its range up for a moment.
	LeaderTransfers int
	// ImageBytesPerSecond bounds what a store sends as range images. Default: no
	// bound. Less disturbs users less and repairs more slowly.
	ImageBytesPerSecond uint64
	// LocationLabels are the keys of store labels that name failure domains, the
	// widest first: zone, rack, host. Default none: every store is one.
	LocationLabels []string
	// HighWaterPercent is how full a disk may be to receive replicas. Default 90.
	HighWaterPercent int
	// TolerancePercent is how far stores may lie apart, of the mean, before
	// balancing begins. Default 5. Less moves more data for less.
	TolerancePercent int
	// SplitLoadOps is the load, in operations per second, from which a range is
	// split. 0: ranges are split by size alone. `ridge pd` gives 25,000.
	SplitLoadOps uint64

	// Version is the version of the binary, shown by Status.
	Version string
	// Logger receives one line per change of state. Default: discarded.
	Logger *slog.Logger
	// Registerer receives the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Peers reaches other PD nodes by gRPC.
type Peers = members.Peers

// ErrJoinRefused is what an error of Peers.Join wraps that will not go away by
// itself.
var ErrJoinRefused = errors.New("refused")

// Member is one PD node.
type Member struct {
	// ID is not 0 and never reused. It is 0 for a node that PD gives one.
	ID uint64
	// RaftAddress is where the other members reach its Raft transport.
	RaftAddress string
	// GRPCAddress is where stores and clients reach its service.
	GRPCAddress string
}

// TLSFiles name PEM files. Every member trusts the same CA and shows a
// certificate of it.
type TLSFiles struct {
	CA, Cert, Key string
}

// withDefaults returns o with every zero field filled in.
func (o Options) withDefaults() Options {
	setDefault(&o.RaftListenAddress, o.self().RaftAddress)
	setDefault(&o.Tick, 50*time.Millisecond)
	setDefault(&o.Replicas, 3)
	setDefault(&o.SplitSizeBytes, 96<<20)
	setDefault(&o.StoreHeartbeat, time.Second)
	setDefault(&o.StoreDownAfter, 5*time.Minute)
	setDefault(&o.Retention, 10*time.Minute)
	setDefault(&o.ScheduleAfter, 30*time.Second)
	setDefault(&o.OperatorTimeout, 2*time.Minute)
	setDefault(&o.StoreMoves, 4)
	setDefault(&o.LeaderTransfers, 8)
	setDefault(&o.HighWaterPercent, 90)
	setDefault(&o.TolerancePercent, 5)
	setDefault(&o.Version, "dev")
	setDefault(&o.Logger, slog.New(slog.DiscardHandler))
	return o
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// named returns o with the ids filled in that a node alone need not give.
func (o Options) named() Options {
	if o.MemberID == 0 && len(o.Members) == 1 && o.Members[0].ID == 0 && len(o.Join) == 0 {
		o.Members = []Member{o.Members[0]}
		o.Members[0].ID = 1
	}
	return o
}

// self returns the member this node is, or a zero one.
func (o Options) self() Member {
	if len(o.Members) == 1 && (o.MemberID == 0 || len(o.Join) > 0) {
		return o.Members[0]
	}
	for _, m := range o.Members {
		if m.ID == o.MemberID {
			return m
		}
	}
	return Member{}
}

// Validate reports every fault of o, joined.
func (o Options) Validate() error {
	o = o.named().withDefaults()
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(o.Dir != "", "pd: Dir is required")
	if len(o.Join) > 0 {
		check(len(o.Members) == 1 && o.MemberID == 0,
			"pd: a node that joins gets its id, and gives only its own addresses")
		check(o.Peers != nil, "pd: Join needs Peers")
	} else {
		check(o.self().ID != 0, "pd: MemberID %d is not among Members", o.MemberID)
		check(len(o.Members) == 1 || len(o.Members) == 3 || len(o.Members) == 5,
			"pd: %d members; 1, 3 or 5 keep a majority well defined", len(o.Members))
	}
	o.checkMembers(check)
	check(o.TLS != nil || o.Insecure || onLoopback(o.RaftListenAddress),
		"pd: Raft on %s without TLS: set TLS, or Insecure if the network is trusted",
		o.RaftListenAddress)
	if o.TLS != nil {
		check(o.TLS.CA != "" && o.TLS.Cert != "" && o.TLS.Key != "",
			"pd: TLS needs CA, Cert and Key")
	}
	check(o.Tick >= 5*time.Millisecond && o.Tick <= time.Second,
		"pd: Tick %s is not within 5ms and 1s", o.Tick)
	check(o.Replicas >= 1 && o.Replicas <= 7 && o.Replicas%2 == 1,
		"pd: Replicas %d: 1, 3, 5 or 7", o.Replicas)
	check(o.SplitSizeBytes >= 64<<10, "pd: SplitSizeBytes %d is below 64 KiB", o.SplitSizeBytes)
	check(o.StoreHeartbeat >= 10*time.Millisecond && o.StoreDownAfter >= 3*o.StoreHeartbeat,
		"pd: StoreDownAfter %s must be at least 3 StoreHeartbeats of %s (each at least 10ms), "+
			"or a slow heartbeat looks like death", o.StoreDownAfter, o.StoreHeartbeat)
	check(o.Retention >= time.Second, "pd: Retention %s is below 1s", o.Retention)
	check(o.ScheduleAfter > 0 && o.OperatorTimeout > 0,
		"pd: ScheduleAfter and OperatorTimeout must be positive")
	o.checkBalance(check)
	return errors.Join(faults...)
}

func (o Options) checkBalance(check func(ok bool, format string, args ...any)) {
	check(o.StoreMoves >= 1 && o.StoreMoves <= 64, "pd: StoreMoves %d is not within 1 and 64",
		o.StoreMoves)
	check(o.LeaderTransfers >= 1 && o.LeaderTransfers <= 64,
		"pd: LeaderTransfers %d is not within 1 and 64", o.LeaderTransfers)
	check(o.ImageBytesPerSecond == 0 || o.ImageBytesPerSecond >= 64<<10,
		"pd: ImageBytesPerSecond %d is below 64 KiB: repair would take for ever",
		o.ImageBytesPerSecond)
	check(o.HighWaterPercent >= 10 && o.HighWaterPercent <= 100,
		"pd: HighWaterPercent %d is not within 10 and 100", o.HighWaterPercent)
	check(o.TolerancePercent >= 1 && o.TolerancePercent <= 100,
		"pd: TolerancePercent %d is not within 1 and 100", o.TolerancePercent)
	seen := map[string]bool{}
	for _, key := range o.LocationLabels {
		check(key != "" && len(key) <= 64 && utf8.ValidString(key) && !seen[key],
			"pd: LocationLabels: %q is empty, too long, or given twice", key)
		seen[key] = true
	}
}

func (o Options) checkMembers(check func(ok bool, format string, args ...any)) {
	ids, addresses := map[uint64]bool{}, map[string]bool{}
	if len(o.Join) > 0 {
		check(!members.Wildcard(o.self().GRPCAddress) && !members.Wildcard(o.self().RaftAddress),
			"pd: %s / %s is what others would dial: name the host",
			o.self().GRPCAddress, o.self().RaftAddress)
	}
	for _, a := range o.Join {
		_, port, err := net.SplitHostPort(a)
		check(err == nil && port != "" && port != "0", "pd: Join: %q is not host:port", a)
	}
	for _, m := range o.Members {
		check((m.ID != 0 || len(o.Join) > 0) && !ids[m.ID],
			"pd: member id %d is zero or given twice", m.ID)
		ids[m.ID] = true
		for _, a := range []string{m.RaftAddress, m.GRPCAddress} {
			_, port, err := net.SplitHostPort(a)
			check(err == nil && port != "" && port != "0",
				"pd: member %d: address %q is not host:port", m.ID, a)
			check(!addresses[a], "pd: address %q is given twice", a)
			addresses[a] = true
		}
	}
	_, _, err := net.SplitHostPort(o.RaftListenAddress)
	check(err == nil, "pd: RaftListenAddress %q is not host:port", o.RaftListenAddress)
}

func onLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
