package evaluate

import (
	"runtime"
	"time"
)

// Limits bounds what an Evaluator holds in memory. Zero fields mean the default.
type Limits struct {
	// QueuedWrites is how many writes of one range may wait. Default 4096.
	// Beyond it a write is answered Busy.
	QueuedWrites int
	// QueuedWriteBytes bounds the same queue by size. Default 16 MiB.
	QueuedWriteBytes int
	// PendingReads is how many reads of one range may be under way. Default
	// 8192. Beyond it a read is answered Busy.
	PendingReads int
	// Readers is how many goroutines answer reads. Default 2 per processor,
	// at least 4. At most half of them answer scans.
	Readers int
	// PageBytes bounds a page of a scan that asks for no size. Default 1 MiB.
	PageBytes int
	// SweepInterval is how often a range that has held rows with a TTL is
	// searched for expired ones. Default 5 min; negative: never. Expired rows
	// are never answered, but they take room until they are swept.
	SweepInterval time.Duration
}

func (l Limits) withDefaults() Limits {
	set := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	set(&l.QueuedWrites, 4096)
	set(&l.QueuedWriteBytes, 16<<20)
	set(&l.PendingReads, 8192)
	set(&l.Readers, max(4, 2*runtime.GOMAXPROCS(0)))
	set(&l.PageBytes, defaultPageBytes)
	if l.SweepInterval == 0 {
		l.SweepInterval = 5 * time.Minute
	}
	return l
}

const (
	defaultPageBytes = 1 << 20
	maxPageBytes     = 4 << 20
	// maxBatchGetKeys bounds one BatchGet, as entries are bounded.
	maxBatchGetKeys = 10_000
	// maxInFlight is how many write entries of a range are proposed and not
	// decided. Two keep the log busy while the next batch gathers.
	maxInFlight = 2
	// maxRounds is how many ReadIndex rounds of a range run at a time.
	maxRounds = 2
	// readChunk is how many reads of one round a reader goroutine takes.
	readChunk = 64
	// sweepChunk is how many expired rows one sweep write deletes.
	sweepChunk = 512
	// deleteChunk is how many keys one DeleteRange call deletes at most.
	deleteChunk = 4096
)

// timing holds the durations that tests shorten.
type timing struct {
	// request is the deadline of a request that names none; requestMax caps.
	request, requestMax time.Duration
	// propose bounds one proposal, readIndex one round, acquire one try.
	propose, readIndex, acquire time.Duration
	// undecided is how long, and tries how often, entries that were lost are
	// proposed before the lease is acquired anew; forgotten is when an entry counts
	// as lost although nothing says so.
	undecided, forgotten time.Duration
	tries                int
	// boundStep is how far ahead of the need read_bound is raised. It is also
	// how long a new leaseholder waits when the oracle does not answer.
	boundStep time.Duration
	// tick is how often a worker with something to wait for looks around.
	tick time.Duration
	// acquireBackoffMin and Max space tries to get the lease; after a definite
	// refusal by Raft acquireRefused is the longest pause.
	acquireBackoffMin, acquireBackoffMax time.Duration
	acquireRefused                       time.Duration
	// rest is how long PrepareTransfer stops evaluation.
	rest time.Duration
	// look is how often all ranges are looked at, for removed replicas and
	// missed leader changes.
	look time.Duration
	// stall is how often the engine is asked whether it keeps up.
	stall time.Duration
	// oracle bounds one question to PD.
	oracle time.Duration
}

func defaultTiming() timing {
	return timing{
		request: 10 * time.Second, requestMax: time.Minute,
		propose: 1500 * time.Millisecond, readIndex: time.Second, acquire: time.Second,
		undecided: 5 * time.Second, forgotten: 15 * time.Second, tries: 3,
		boundStep: time.Second, tick: 20 * time.Millisecond,
		acquireBackoffMin: 20 * time.Millisecond, acquireBackoffMax: time.Second,
		acquireRefused: 160 * time.Millisecond, rest: time.Second, look: time.Second,
		stall: 250 * time.Millisecond, oracle: time.Second,
	}
}
