// Package ts is the timestamp: one uint64, physical milliseconds since the
// Unix epoch shifted left by 18, plus 18 logical bits that act as a
// sub-millisecond clock.
package ts

import (
	"math"
	"time"
)

// Timestamp orders commits and snapshots. Zero is before everything.
type Timestamp uint64

// LogicalBits is the width of the logical part.
const LogicalBits = 18

// Max is the largest timestamp. Nothing is ever written at it.
const Max Timestamp = math.MaxUint64

// New builds a timestamp.
func New(physicalMillis uint64, logical uint32) Timestamp {
	return Timestamp(physicalMillis<<LogicalBits | uint64(logical)&(1<<LogicalBits-1))
}

// FromTime converts a wall-clock time, filling the logical bits with its
// sub-millisecond part.
func FromTime(t time.Time) Timestamp {
	sub := uint64(t.Nanosecond() % int(time.Millisecond))
	return New(uint64(t.UnixMilli()), uint32(sub<<LogicalBits/uint64(time.Millisecond)))
}

// Physical is the millisecond part.
func (t Timestamp) Physical() uint64 { return uint64(t) >> LogicalBits }

// Logical is the sub-millisecond part.
func (t Timestamp) Logical() uint32 { return uint32(t & (1<<LogicalBits - 1)) }

// Time converts back, to the millisecond.
func (t Timestamp) Time() time.Time { return time.UnixMilli(int64(t.Physical())) }

// Add moves t by d, to 1/2^18 of a millisecond. It saturates at 0 and Max.
func (t Timestamp) Add(d time.Duration) Timestamp {
	if d < 0 {
		delta := units(-d)
		if delta > uint64(t) {
			return 0
		}
		return t - Timestamp(delta)
	}
	delta := units(d)
	if delta > math.MaxUint64-uint64(t) {
		return Max
	}
	return t + Timestamp(delta)
}

// Sub is the time from u to t. It is exact to the microsecond.
func (t Timestamp) Sub(u Timestamp) time.Duration {
	if t < u {
		return -u.Sub(t)
	}
	d := uint64(t - u)
	millis, logical := d>>LogicalBits, d&(1<<LogicalBits-1)
	return time.Duration(millis)*time.Millisecond +
		time.Duration(logical*uint64(time.Millisecond)>>LogicalBits)
}

func units(d time.Duration) uint64 {
	millis, rest := uint64(d/time.Millisecond), uint64(d%time.Millisecond)
	return millis<<LogicalBits + rest<<LogicalBits/uint64(time.Millisecond)
}
