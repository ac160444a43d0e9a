// Package bench is a load generator: callers that draw keys, do operations on
// a target, and measure.
//
// # What is measured
//
// Closed loop (no rate): each of N callers does one operation after the other.
// It finds the capacity, but a target that stalls is asked less, so the tail
// looks better than users would see it.
//
// Open loop (a rate): operation i is due at i/rate whatever became of the ones
// before. Callers take the operations in this order; when all are busy the
// schedule waits for them, and latency counts from the moment the operation was
// due. So a stall is charged to every operation that was due in it: there is no
// coordinated omission. What was due and never begun is counted, and then the
// latencies are lower bounds.
//
// An operation belongs to the window if it began in it (open loop: was due in
// it); then its outcome and latency are recorded, however long it takes.
// Throughput counts the operations that ended inside the window. Latencies are
// those of operations that succeeded; failed ones are counted by error class.
//
// # Why there is no lock
//
// A caller is one goroutine and owns its random numbers, its buffers, its
// histograms and its counts; they are merged when it has ended. Callers share
// only atomics: the end of the window, the next operation of a schedule, the
// next key of an insert, and coarse counters for the line a second of progress,
// which are spread so that callers seldom meet. The one mutex is the one that
// orders acknowledged inserts under the latest distribution, one pass per
// insert.
//
// # What it costs
//
// The generator shares its machine with what it measures. An operation costs
// one reading of the clock, one draw and one count, and allocates nothing of
// its own. BenchmarkCaller, one caller and a target that does nothing, on a
// virtual machine of 2 EPYC cores:
//
//	closed loop, uniform reads       53 ns   0 allocations
//	the same with progress           54 ns   0 allocations
//	closed loop, YCSB A, zipfian     98 ns   0 allocations
//	open loop, always behind        100 ns   0 allocations
//
// An open loop that keeps up adds a timer for each operation. Timers fire up to
// a millisecond late on an idle machine; that is charged to the operation, like
// all that comes after it was due.
package bench
