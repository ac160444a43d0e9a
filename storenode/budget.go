package storenode

import (
	"fmt"

	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Budget is how MemoryBytes is divided: what each part may hold. Pages of the
// engine's files are no part of it: the kernel lends them, and takes them back
// when it needs them.
type Budget struct {
	// Memtables are the one that is written, those that wait, and the one that
	// is written out.
	Memtables int64
	// Tables are the tables in the making: a memtable's, and two of each
	// compactor, whatever the size of their values. It is a third of the memory at
	// most, which is less than that below 1 GiB; a fifth below 512 MiB.
	Tables int64
	// BlockCache and RowCache are the engine's caches.
	BlockCache, RowCache int64
	// Requests are what callers have sent and have not been answered, with all
	// that is made of it: see requestCopies.
	Requests int64
	// Intake is what a follower has been sent and has not applied, as it came and
	// as it is written into log and engine. SendQueue waits for a connection to
	// another store.
	Intake, SendQueue int64
	// Rest is for the process: replicas, stacks, what is garbage already.
	Rest int64
}

// All is the sum.
func (b Budget) All() int64 {
	return b.Memtables + b.Tables + b.BlockCache + b.RowCache + b.Requests + b.Intake +
		b.SendQueue + b.Rest
}

// String lists the parts.
func (b Budget) String() string {
	mib := func(v int64) int64 { return (v + 1<<20 - 1) >> 20 }
	return fmt.Sprintf("memtables %d, tables in the making %d, block cache %d, row cache %d, "+
		"requests %d, intake %d, send queue %d, the rest %d: together %d MiB",
		mib(b.Memtables), mib(b.Tables), mib(b.BlockCache), mib(b.RowCache), mib(b.Requests),
		mib(b.Intake), mib(b.SendQueue), mib(b.Rest), mib(b.All()))
}

// requestCopies is how often the bytes of a write are in memory at most until it is
// answered: in its message, in the entry that is made of it, in Raft, and in what
// is being written into the log (twice), to two stores and into the engine.
const requestCopies = 8

// minInFlightBytes is room for one entry of the largest size and another one.
const minInFlightBytes = 8 << 20

// inFlightBytes bounds the messages of all callers. More of them would only wait:
// what a disk takes in a second is little beside what callers can send.
func (b Budget) inFlightBytes() int64 {
	return max(b.Requests/requestCopies, minInFlightBytes)
}

// intakeBytes bounds the entries that followers here have not applied.
func (b Budget) intakeBytes() int64 { return b.Intake / 2 }

// Budget is how the memory of a store with these options is divided. Fields that
// are set count as they are; the block cache gets what all others leave.
func (o Options) Budget() Budget {
	o = o.divided()
	e, m := o.Engine, o.MemoryBytes
	tableBytes := e.tableShape().sizeBytes
	b := Budget{
		Memtables: int64(e.NumMemtables+2) * engine.MemTableMemory(e.MemTableSizeBytes),
		Tables: engine.BuilderMemory(e.MemTableSizeBytes, tableBytes) +
			2*int64(e.NumCompactors)*engine.BuilderMemory(tableBytes, tableBytes),
		BlockCache: e.BlockCacheSizeBytes, RowCache: max(e.RowCacheSizeBytes, 0),
		Requests: m / 8, Intake: m / 16, SendQueue: m / 32, Rest: m / 16,
	}
	b.Tables = min(b.Tables, m/3)
	if m < smallMemoryBytes {
		b.Tables, b.Rest = m/5, m/32
	}
	if b.BlockCache == 0 {
		b.BlockCache = max(m-b.All(), minBlockCacheBytes)
	}
	return b
}

const (
	// smallMemoryBytes is where memtables, which have a least size, leave little
	// for the rest.
	smallMemoryBytes = 512 << 20
	// largeMemoryBytes is from where tables may be large, which makes them few.
	largeMemoryBytes = 4 << 30
	// maxMemtables is how many memtables may wait, however much memory there is.
	maxMemtables       = 5
	minBlockCacheBytes = 8 << 20
)

// divided fills in the fields of the engine that follow from the memory, but not
// the block cache.
func (o Options) divided() Options {
	setDefault(&o.MemoryBytes, defaultMemoryBytes)
	e, m := &o.Engine, o.MemoryBytes
	if m < largeMemoryBytes {
		setDefault(&e.MemTableSizeBytes, 32<<20)
	}
	if m < defaultMemoryBytes {
		setDefault(&e.NumCompactors, 2)
	}
	if m < smallMemoryBytes {
		setDefault(&e.RowCacheSizeBytes, m/32)
	}
	setDefault(&e.MemTableSizeBytes, 64<<20)
	setDefault(&e.NumCompactors, 3)
	setDefault(&e.RowCacheSizeBytes, m/10)
	// A fifth of the memory is for memtables: the one that is written, the one
	// that is written out, and those that wait.
	fifth := m / 5 / engine.MemTableMemory(e.MemTableSizeBytes)
	setDefault(&e.NumMemtables, int(min(max(fifth-2, 1), maxMemtables)))
	return o
}

// tableShape is how large tables are: a builder needs several times as much. With
// memtables of 64 MiB they may be larger, and grow from level to level.
type tableShape struct {
	sizeBytes  int64
	multiplier int
}

func (e EngineOptions) tableShape() tableShape {
	if e.MemTableSizeBytes < 64<<20 {
		return tableShape{sizeBytes: 4 << 20, multiplier: 1}
	}
	return tableShape{sizeBytes: 8 << 20, multiplier: 2}
}
